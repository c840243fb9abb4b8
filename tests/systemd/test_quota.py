"""How often one and the same may be said, and that nothing is forgotten of what was not."""

from shadow.systemd import quota
from shadow.systemd.quota import PAUSE, Quota, Rate

THREE = Rate(3, 10.0)


def test_a_burst_and_then_one_at_a_time() -> None:
    said: Quota[int] = Quota()
    assert [said.admit("x", THREE, number, 0.0) for number in range(5)] == [True] * 3 + [False] * 2
    assert said.admit("y", THREE, 0, 0.0), "another one has a quota of its own"
    assert said.admit("x", THREE, 0, 10.0)
    assert not said.admit("x", THREE, 0, 10.0)
    assert [said.admit("x", THREE, 0, 1000.0) for _ in range(4)] == [True] * 3 + [False], (
        "no more than a burst"
    )


def test_what_was_held_back_is_told_after_a_while() -> None:
    said: Quota[int] = Quota()
    assert said.patience(0.0) is None
    for number in range(10):
        said.admit("x", THREE, number, 1.0)
    assert said.patience(2.0) == PAUSE - 1
    assert said.due(2.0) == []
    (held,) = said.due(1.0 + PAUSE)
    assert (held.count, held.last) == (7, 9)
    assert said.patience(2.0) is None
    assert said.due() == []
    for number in range(10):
        said.admit("x", THREE, number, 1.0 + PAUSE)
    assert [held.count for held in said.due()] == [7], "what was earned meanwhile is a burst"


def test_it_remembers_so_many_and_tells_of_those_it_forgets() -> None:
    said: Quota[str] = Quota()
    for _ in range(5):
        said.admit("first", THREE, "first", 0.0)
    for number in range(2 * quota._KEYS_MAX):
        said.admit(number, THREE, "x", 0.0)
    assert said.patience(0.0) == 0.0
    assert [(held.count, held.last) for held in said.due(0.0)] == [(2, "first")]
    assert len(said._buckets) == quota._KEYS_MAX
