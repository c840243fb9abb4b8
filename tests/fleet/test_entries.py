"""Entries in little memory: the same as a dictionary would say."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from shadow.fleet.entries import Entries, Holder
from shadow.fleet.keys import Entry
from tests.support.fleet import entry


def put(entries: Entries, name: str, what: Entry) -> bool:
    return entries.put(name, what, what.encode())


def test_there_and_back() -> None:
    entries = Entries()
    one = entry(revision=7)
    assert put(entries, "011", one)
    assert not put(entries, "011", one), "nothing new"
    assert entries["011"] == one
    assert entries.revision("011") == 7
    assert entries.kept("011") == (7, one.encode())
    assert "011" in entries
    assert entries.remove("011")
    assert not entries.remove("011")
    assert (entries.revision("011"), entries.kept("011"), entries.get("011")) == (0, None, None)
    assert dict(entries) == {}


def test_a_place_is_used_again_when_a_server_has_no_robots_any_more() -> None:
    """Servers that crash again and again do not fill the memory."""
    entries = Entries()
    for inc in range(100):
        put(entries, "011", entry(inc=str(inc), revision=inc))
    assert entries.holders == {Holder("a", "99"): 1}
    assert len(entries._names) == 2
    assert list(entries.held_by(Holder("a", "98"))) == []


CHANGES = st.lists(
    st.tuples(st.sampled_from("abcd"), st.none() | st.tuples(st.sampled_from("xyz"), st.sampled_from("12")))
)


@given(CHANGES)
def test_whatever_happens(changes: list[tuple[str, tuple[str, str] | None]]) -> None:
    entries, model = Entries(), dict[str, Entry]()
    for revision, (name, holder) in enumerate(changes, 1):
        if holder is None:
            assert entries.remove(name) == (model.pop(name, None) is not None)
        else:
            model[name] = entry(*holder, revision=revision)
            assert put(entries, name, model[name])
        assert dict(entries) == model
        assert len(entries) == len(model)
        by = {Holder(one.server, one.inc) for one in model.values()}
        for who in by:
            names = {name for name, one in model.items() if (one.server, one.inc) == who}
            assert set(entries.held_by(who)) == names
            assert entries.holders[who] == len(names)
        assert set(entries.holders) == by


def test_it_takes_little_memory() -> None:
    entries = Entries()
    for number in range(1000):
        put(entries, f"robot-{number:05}", entry(sid="0123456789abcdef" * 2, revision=number))
    per_robot = sum(sys.getsizeof(packed) for packed in entries._packed.values()) / 1000
    assert per_robot < 400
