"""Bundles: descriptors and a word about them."""

import json
import os
import socket

import pytest

from shadow.errors import LocalError
from shadow.systemd.bundle import (
    DESCRIPTORS_MAX,
    BundleWriter,
    Letter,
    as_sockets,
    close_all,
    empty,
    pack,
    unpack,
)


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


def letters(box: socket.socket) -> list[Letter]:
    taken = list(empty(box))
    assert all(isinstance(letter, Letter) for letter in taken), taken
    return taken  # type: ignore[return-value]


def test_many_letters_are_taken_out_once_and_in_order() -> None:
    writer = BundleWriter()
    with writer.bundle as box:
        for number in range(20):
            assert writer.put(Letter({"number": number}, [0] * (number % 3)))
        writer.close()
        taken = letters(box)
        assert [letter.facts["number"] for letter in taken] == list(range(20))
        assert [len(letter.descriptors) for letter in taken] == [number % 3 for number in range(20)]
        for letter in taken:
            close_all(letter.descriptors)
        assert letters(box) == []


def test_a_packer_says_when_it_is_full_and_loses_nothing() -> None:
    writer = BundleWriter()
    with writer.bundle as box:
        count = 0
        while writer.put(Letter({"number": count, "text": "x" * 1000}, [])):
            count += 1
        assert count > 50  # else thousands of robots were thousands of bundles
        writer.close()
        assert len(letters(box)) == count


def test_letters_of_others_do_not_stop_the_rest() -> None:
    inside, outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with inside:
        for text in (b'{"version": 1, "a": 1}', b"rubbish", b'{"version": 1, "a": 2}'):
            socket.send_fds(outside, [text], [0])
        outside.close()
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        first, bad, last = empty(inside)
        assert isinstance(first, Letter)
        assert isinstance(last, Letter)
        assert (first.facts, last.facts) == ({"a": 1}, {"a": 2})
        assert "not one of ours" in str(bad)
        close_all([*first.descriptors, *last.descriptors])
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_emptying_what_is_no_parcel_ends() -> None:
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with reader, writer:
        assert [type(letter) for letter in empty(reader)] == [LocalError]


def test_a_letter_too_long() -> None:
    writer = BundleWriter()
    with writer.bundle, pytest.raises(LocalError, match=r"70\d{3} bytes are too much"):
        writer.put(Letter({"text": "x" * 70000}, []))
    writer.close()


def test_sockets_out_of_a_parcel() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        (sock,) = as_sockets([ours.detach()])
        with sock:
            assert not sock.getblocking()
            theirs.send(b"x")
            assert sock.recv(1) == b"x"


def test_one_that_is_no_socket_closes_all() -> None:
    ours, theirs = socket.socketpair()
    with theirs, open(os.devnull) as nothing:  # noqa: PTH123
        other = os.dup(nothing.fileno())
        with pytest.raises(LocalError, match="what is no socket"):
            as_sockets([ours.detach(), other])
        assert theirs.recv(1) == b""
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(other)
