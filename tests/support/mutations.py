"""What another version, or a bug, might have left in the place of a letter."""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

_RAW = ["Infinity", "-Infinity", "NaN", "1e999", "1e308", "-1", "0", "[" * 100000, '"\\ud800"', str(10**4000)]
_MARK = "a raw value"

_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["../x", "ffffffffffffffffff", "-5", "control", "open", "x" * 30000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def letters(draw: st.DrawFn, facts: Mapping[str, Any]) -> bytes:
    """The text of a letter with these facts, of which one or two are changed, missing or new."""
    changed: dict[str, Any] = {"version": 1, **facts}
    raw = _MARK
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from([*sorted(changed), "unknown"]))
        how = draw(st.sampled_from(["other", "raw", "gone"]))
        if how == "gone":
            changed.pop(name, None)
        elif how == "raw":
            changed[name], raw = _MARK, draw(st.sampled_from(_RAW))
        else:
            changed[name] = draw(_values)
    return json.dumps(changed).replace(json.dumps(_MARK), raw).encode()[: 2**16]


KINDS = ["null", "udp", "unix", "listening", "tcp", "reader", "writer", "memfd"]
"""Descriptors that may lie in the place of another."""


def descriptor(kind: str) -> int:
    """A new descriptor of one of ``KINDS``."""
    if kind == "null":
        return os.open(os.devnull, os.O_RDWR)
    if kind == "memfd":
        return os.memfd_create("something")
    if kind in {"reader", "writer"}:
        ends = os.pipe()
        os.close(ends[kind == "reader"])
        return ends[kind == "writer"]
    if kind == "unix":
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours.detach()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
    if kind == "listening":
        sock.listen()
    return sock.detach()


@st.composite
def swaps(draw: st.DrawFn, count: int) -> list[str | int]:
    """What lies where ``count`` descriptors were: each by its number, or another by its kind."""
    places: list[str | int] = list(range(count))
    for _ in range(draw(st.integers(0, 2))):
        where = draw(st.integers(0, count - 1))
        places[where] = draw(st.sampled_from([*KINDS, *range(count)]))
    return places[: draw(st.sampled_from([count, count, count, 0, 1]))]


def parcel_of(text: bytes, descriptors: Sequence[int], places: Sequence[str | int]) -> socket.socket:
    """A bundle of one letter, whatever is in it."""
    made = [os.dup(descriptors[place]) if isinstance(place, int) else descriptor(place) for place in places]
    inside, outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with outside:
        socket.send_fds(outside, [text], made)
    for number in made:
        os.close(number)
    return inside
