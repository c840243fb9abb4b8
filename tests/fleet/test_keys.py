"""The directory's keys and values, and what is none of them."""

import contextlib
import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow.fleet.keys import (
    Entry,
    Family,
    Keys,
    Live,
    Pointer,
    Progress,
    Strange,
    Stranger,
    parse_entry,
    parse_live,
    parse_pointer,
    reread_entry,
)
from shadow.net.address import Endpoint

KEYS = Keys("main")
ENTRY = Entry("a", "1f", "2e", "3d", 4, ("", "web"), "[::1]:5", 6.5, "7c", 8)
CA = "5e" * 32
POINTER = Pointer(7, 8, "9f" * 32, 10, "a")
LIVE = Live("1f", Endpoint("::1", 2223), Endpoint("a.example", 2222), draining=True, software="shadow 1")
BUSY = dataclasses.replace(LIVE, progress=Progress(3, 600))


def test_there_and_back() -> None:
    assert parse_entry(ENTRY.encode(), 8) == ENTRY
    assert parse_live(LIVE.encode()) == LIVE
    assert parse_live(Live("1f").encode()) == Live("1f")
    assert parse_live(BUSY.encode()).progress == BUSY.progress
    assert parse_live(dataclasses.replace(LIVE, progress=Progress(0)).encode()).progress == Progress(0)
    for pointer in POINTER, POINTER._replace(number=2**160 - 1):
        assert parse_pointer(pointer.encode(), 10) == pointer
    small = Entry("a", "1f", "2e", "3d", 0)
    assert parse_entry(small.encode(), 0) == small


@pytest.mark.parametrize(
    "value", [ENTRY.encode(), b" \t\r\n" + ENTRY.encode() + b"\r\n", b'{"o":[],' + ENTRY.encode()[1:]]
)
def test_what_was_parsed_once_is_read_again(value: bytes) -> None:
    assert reread_entry(value, 8) == parse_entry(value, 8) == ENTRY


def test_progress_makes_no_difference() -> None:
    """The others need not look at a server's robots again because it is a second further."""
    assert parse_live(BUSY.encode()) == LIVE
    for nonsense in ("3", -1, 2.5, True, [3], 2**63):
        found = parse_live(json.dumps({**json.loads(BUSY.encode()), "visited": nonsense}).encode())
        assert (found, found.progress) == (LIVE, Progress(None, 600))


def test_unknown_fields_are_ignored() -> None:
    assert parse_entry(json.dumps({**json.loads(ENTRY.encode()), "new": [1]}).encode(), 8) == ENTRY
    assert parse_live(json.dumps({**json.loads(LIVE.encode()), "new": [1]}).encode()) == LIVE


def test_keys() -> None:
    assert KEYS.robot("011") == b"/shadow/main/r/011"
    assert KEYS.server("a") == b"/shadow/main/live/a"
    assert KEYS.parse(KEYS.robot("011")) == (Family.ROBOT, "011")
    assert KEYS.parse(KEYS.server("a")) == (Family.SERVER, "a")
    assert KEYS.parse(KEYS.pointer(CA)) == (Family.LIST, CA)
    assert KEYS.piece(CA, POINTER, 3) == f"/shadow/main/crl/{CA}/7/{POINTER.sha256}/3".encode()
    assert KEYS.piece(CA, POINTER, 3).startswith(KEYS.pieces(CA))
    assert KEYS.parse(KEYS.piece(CA, POINTER, 3)) == (Family.OTHER, "")
    assert KEYS.list_of(KEYS.piece(CA, POINTER, 3)) == (7, POINTER.sha256)
    assert KEYS.list_of(KEYS.pointer(CA)) is None
    assert KEYS.parse(b"/shadow/main/op/drain") == (Family.OTHER, "")


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"/shadow/main/",
        b"/shadow/main/r",
        b"/shadow/main/r/",
        b"/shadow/main/r/a/b",
        b"/shadow/main/r/../x",
        b"/shadow/main/r/a\n",
        b"/shadow/main/r/\xff",
        b"/shadow/main/r/" + b"x" * 65,
        b"/shadow/main/live/",
        b"/shadow/main/live/a:b",
        b"/shadow/main/crl/",
        b"/shadow/main/crl/c0ffee",
        b"/shadow/main/crl/" + b"a" * 64 + b"/",
        b"/shadow/main/crl/" + b"a" * 64 + b"/7/0",
        b"/shadow/main/crl/" + b"a" * 64 + b"/x/" + b"a" * 64 + b"/0",
        b"/shadow/main/robots/a",
        b"/shadow/other/r/a",
        b"/registry/pods/a",
    ],
)
def test_keys_of_others(key: bytes) -> None:
    with pytest.raises(Stranger) as caught:
        KEYS.parse(key)
    assert caught.value.why is Strange.KEY


def changed(**fields: Any) -> bytes:
    said = {**json.loads(ENTRY.encode()), **fields}
    return json.dumps({name: value for name, value in said.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", Strange.JSON),
        (b"hello", Strange.JSON),
        (b"\xff\xfe", Strange.JSON),
        (ENTRY.encode().decode().encode("utf-16"), Strange.JSON),
        (b"[]", Strange.JSON),
        (b"1", Strange.JSON),
        (b"[" * 4096, Strange.JSON),
        (b'{"v":1' + b" " * 4096 + b"}", Strange.SIZE),
        (b"{}", Strange.VERSION),
        (changed(v=2), Strange.VERSION),
        (changed(v="1"), Strange.VERSION),
        (changed(v=True), Strange.VERSION),
        (changed(v=1.0), Strange.VERSION),
        (changed(s=...), Strange.FIELD),
        (changed(s="a/b"), Strange.FIELD),
        (changed(s=7), Strange.FIELD),
        (changed(i="a b"), Strange.FIELD),
        (changed(sid=""), Strange.FIELD),
        (changed(sid=None), Strange.FIELD),
        (changed(b="x" * 65), Strange.FIELD),
        (changed(b=[]), Strange.FIELD),
        (changed(n=-1), Strange.FIELD),
        (changed(n=1.5), Strange.FIELD),
        (changed(n=True), Strange.FIELD),
        (changed(n=2**53), Strange.FIELD),
        (changed(n=...), Strange.FIELD),
        (changed(o="web"), Strange.FIELD),
        (changed(o=["a@b"]), Strange.FIELD),
        (changed(o=[None]), Strange.FIELD),
        (changed(o=["x"] * 65), Strange.FIELD),
        (changed(p="\x1b[2J"), Strange.FIELD),
        (changed(p="\ud800"), Strange.FIELD),
        (changed(p="x" * 65), Strange.FIELD),
        (changed(p=5), Strange.FIELD),
        (changed(t=-1), Strange.FIELD),
        (changed(t=float("nan")), Strange.FIELD),
        (changed(t=float("inf")), Strange.FIELD),
        (changed(t="now"), Strange.FIELD),
        (changed(c="no hex"), Strange.FIELD),
        (changed(c=5), Strange.FIELD),
    ],
)
def test_values_that_are_no_entry(value: bytes, why: Strange) -> None:
    with pytest.raises(Stranger) as caught:
        parse_entry(value, 1)
    assert caught.value.why is why
    with pytest.raises(Stranger):
        parse_live(value)


@pytest.mark.parametrize(
    "fields",
    [
        {"number": -1},
        {"number": 2**160},
        {"number": "7"},
        {"since": -1},
        {"since": 1.5},
        {"sha256": "9F" * 32},
        {"sha256": "9f"},
        {"sha256": 7},
        {"chunks": 11},
        {"chunks": None},
        {"server": "a b"},
    ],
)
def test_values_that_point_to_no_list(fields: dict[str, Any]) -> None:
    with pytest.raises(Stranger) as caught:
        parse_pointer(json.dumps({**json.loads(POINTER.encode()), **fields}).encode(), 10)
    assert caught.value.why is Strange.FIELD


@pytest.mark.parametrize(
    "fields",
    [
        {"inc": ""},
        {"inc": 7},
        {"peer": "a"},
        {"peer": 7},
        {"peer": "a:0"},
        {"dial": "::1:5"},
        {"dial": "a b:5"},
    ],
)
def test_values_that_say_nothing_of_a_server(fields: dict[str, Any]) -> None:
    with pytest.raises(Stranger) as caught:
        parse_live(json.dumps({**json.loads(LIVE.encode()), **fields}).encode())
    assert caught.value.why is Strange.FIELD


def test_what_a_server_says_of_its_software_is_made_harmless() -> None:
    assert parse_live(Live("1f", software="a\x1b[2J" + "x" * 100).encode()).software == "a?[2J" + "x" * 59


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.sampled_from(["s", "i", "sid", "b", "n", "o", "p", "t", "c", "v", "inc", "peer", "dial"]), JSON)
def test_whatever_a_field_is_there_is_an_entry_or_a_reason(name: str, value: Any) -> None:
    said = {**json.loads(LIVE.encode()), **json.loads(ENTRY.encode()), name: value}
    for parse in (parse_live, lambda value: parse_entry(value, 1)):
        with contextlib.suppress(Stranger):
            parse(json.dumps(said).encode())


@given(st.binary(max_size=200))
def test_whatever_the_bytes_are(data: bytes) -> None:
    for parse in (KEYS.parse, parse_live, lambda value: parse_entry(value, 1)):
        with contextlib.suppress(Stranger):
            parse(data)
