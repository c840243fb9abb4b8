"""What the kernel is told and asked of TCP connections."""

import asyncio
import socket

import pytest

from bench.processes import free_port
from shadow.errors import LocalError
from shadow.net import tcp
from shadow.net.tcp import listen_tcp
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


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "reachable"),
    [
        (True, True, {"127.0.0.1", "::1"}),
        (True, False, {"127.0.0.1"}),
        (False, True, {"::1"}),
    ],
)
def test_families(ipv4: bool, ipv6: bool, reachable: set[str]) -> None:  # noqa: FBT001
    port = free_port()
    sockets = listen_tcp(port, ipv4=ipv4, ipv6=ipv6)
    answered = set()
    for host in ("127.0.0.1", "::1"):
        try:
            socket.create_connection((host, port), timeout=5).close()
        except ConnectionRefusedError:
            continue
        answered.add(host)
    for sock in sockets:
        sock.close()
    assert answered == reachable


def test_a_port_that_is_taken_is_named() -> None:
    port = free_port()
    (sock,) = listen_tcp(port, ipv4=True, ipv6=True)
    with sock, pytest.raises(LocalError, match=rf"port {port}: Address already in use; is another"):
        listen_tcp(port, ipv4=True, ipv6=True)


def test_peeking_takes_nothing() -> None:
    ours, theirs = tcp_pair()
    ours.setblocking(False)

    async def body() -> list[bytes]:
        async with asyncio.timeout(DEADLINE):
            waiting = asyncio.create_task(tcp.peek(ours, 3))
            await asyncio.sleep(0)
            assert not waiting.done()
            theirs.sendall(b"abcdef")
            seen = [await waiting, await tcp.peek(ours, 9), ours.recv(9)]
            theirs.close()
            return [*seen, await tcp.peek(ours, 9)]

    with ours:
        assert asyncio.run(body()) == [b"abc", b"abcdef", b"abcdef", b""]
