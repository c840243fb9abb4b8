"""Who has connected: where they come from, and what is logged if they never say who they are."""

import asyncio
import logging
import socket

import pytest

from shadow import events
from shadow.net.tcp import reset
from shadow.server.newcomer import Failure, LeftWithoutAWord, Newcomer, newcomer_on, wait_for_a_word
from tests.support import tcp_pair


@pytest.mark.parametrize(
    ("host", "peer", "source"),
    [
        ("192.0.2.1", "192.0.2.1:7", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1:7", "192.0.2.1"),
        ("2001:db8::1", "[2001:db8::1]:7", "2001:db8::/64"),
    ],
)
def test_where_somebody_comes_from(host: str, peer: str, source: str) -> None:
    with socket.socket() as sock:
        newcomer = Newcomer(sock, host, 7)
        assert (newcomer.peer, newcomer.source, newcomer.proxy) == (peer, source, "")
        introduced = newcomer.introduced("203.0.113.7", 4711, 0.5)
        assert introduced == Newcomer(sock, "203.0.113.7", 4711, peer, 0.5)


def test_what_the_socket_knows() -> None:
    ours, theirs = tcp_pair()
    with ours:
        host, port = theirs.getsockname()
        assert newcomer_on(ours) == Newcomer(ours, host, port)
        reset(theirs)
        with pytest.raises(OSError, match="not connected"):
            newcomer_on(ours)


@pytest.mark.parametrize("failure", list(Failure))
def test_failing(failure: Failure, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[object, int, str]] = []
    monkeypatch.setattr(events, "log", lambda *what: logged.append(what))
    sock = socket.socket()
    Newcomer(sock, "192.0.2.1", 7).fail("why", failure)
    assert sock.fileno() == -1
    level = logging.DEBUG if failure == "silent" else logging.WARNING
    event = events.HandshakeFailed(peer="192.0.2.1:7", cause=failure.value)
    assert logged == [(event, level, "no handshake with 192.0.2.1:7: why")]


def test_the_first_word() -> None:
    async def body(sock: socket.socket) -> None:
        sock.setblocking(False)
        await wait_for_a_word(sock)

    for leave in (socket.socket.close, reset):
        ours, theirs = tcp_pair()
        with ours:
            theirs.sendall(b"word")
            asyncio.run(body(ours))
            assert ours.recv(9) == b"word"
            leave(theirs)
            with pytest.raises(LeftWithoutAWord, match="left without a word"):
                asyncio.run(body(ours))
