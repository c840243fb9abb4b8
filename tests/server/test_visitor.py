"""Visitors: who they are, and whether they are still there."""

import os
import socket

import pytest

from shadow.server.visitor import has_left, make_visitor


def test_the_kernel_tells_who_it_is() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        visitor = make_visitor(ours, "", "2a", 5.0)
        assert (visitor.uid, visitor.pid) == (os.getuid(), os.getpid())
        assert (visitor.offered, visitor.stream) == ("default", "2a")
        visitor.close()
        assert theirs.recv(1) == b""


@pytest.mark.parametrize(
    ("said", "leave", "left"),
    [
        (b"", "close", True),
        (b"last words", "close", False),
        (b"", "shutdown", False),
        (b"", "stay", False),
        (b"x", "stay", False),
    ],
)
def test_has_left(said: bytes, leave: str, left: bool) -> None:  # noqa: FBT001
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        theirs.sendall(said)
        if leave == "close":
            theirs.close()
        elif leave == "shutdown":
            theirs.shutdown(socket.SHUT_WR)
        assert has_left(ours) is left
        assert ours.recv(100) == said if said else True, "looking must not take anything away"


def test_one_that_left_with_our_bytes_unread_has_left() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    ours.send(b"unread")
    theirs.close()
    with ours:
        assert has_left(ours)
