"""The two ends of a stream: what those share that are no links."""

import socket

import pytest

from shadow.relay.ends import Plain
from tests.support import tcp_pair


def test_an_abort_is_a_reset_where_there_is_one() -> None:
    inner, outer = tcp_pair()
    Plain(inner).abort()
    with outer, pytest.raises(ConnectionResetError):
        outer.recv(1)


def test_a_unix_socket_has_none() -> None:
    """Its peer learns by what it has not been read."""
    for unread in (b"", b"bytes"):
        inner, outer = socket.socketpair()
        outer.sendall(unread)
        Plain(inner).abort()
        with outer:
            if unread:
                with pytest.raises(ConnectionResetError):
                    outer.recv(1)
            assert outer.recv(1) == b""
