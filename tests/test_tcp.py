"""What the kernel is told and asked of TCP connections."""

import socket

import pytest

from shadow import tcp
from tests.support import DEADLINE, tcp_pair


def test_a_reset_is_no_end() -> None:
    ours, theirs = tcp_pair()
    with theirs:
        theirs.settimeout(DEADLINE)
        tcp.reset(ours)
        with pytest.raises(ConnectionResetError):
            theirs.recv(1)


def test_what_is_tcp() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_INET6) as other, socket.socket(type=socket.SOCK_DGRAM) as udp:
        assert [tcp.is_tcp(sock) for sock in (ours, other, udp)] == [False, True, False]
