"""Parcels: descriptors and a word about them."""

import json
import os
import socket

import pytest

from shadow.errors import LocalError
from shadow.parcel import DESCRIPTORS_MAX, close_all, pack, unpack


def raw(text: bytes, descriptors: list[int]) -> socket.socket:
    inside, outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with outside:
        socket.send_fds(outside, [text], descriptors)
    return inside


def test_what_goes_in_comes_out_again_and_again() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"inside")
    with pack({"robot": "011", "slot": 3}, [reader, writer]) as box:
        close_all([reader, writer])
        close_all(unpack(box)[1])
        facts, descriptors = unpack(box)  # it stays as it is
        assert facts == {"robot": "011", "slot": 3}
        assert len(descriptors) == 2
        assert not any(os.get_inheritable(descriptor) for descriptor in descriptors)
        assert os.read(descriptors[0], 100) == b"inside"
        close_all(descriptors)


def test_it_keeps_a_connection_alive_whose_maker_is_gone() -> None:
    ours, theirs = socket.socketpair()
    with pack({}, [ours.fileno()]) as box, theirs:
        ours.close()
        theirs.send(b"still here")
        _facts, (descriptor,) = unpack(box)
        with socket.socket(fileno=descriptor) as sock:
            assert sock.recv(100) == b"still here"
    assert theirs.fileno() == -1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"not JSON", "not one of ours"),
        (b"[]", "not of version 1"),
        (json.dumps({"version": 2}).encode(), "not of version 1"),
        (b"x" * 70000, "larger than any of ours"),
    ],
)
def test_others_are_refused_and_their_descriptors_closed(text: bytes, said: str) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with raw(text, [0]) as box, pytest.raises(LocalError, match=said):
        unpack(box)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_an_empty_socket_is_no_parcel() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, pytest.raises(LocalError, match="cannot be read"):
        unpack(ours)


def test_too_many_descriptors() -> None:
    with pytest.raises(LocalError, match="cannot hand over"):
        pack({}, [0] * (DESCRIPTORS_MAX + 1))
