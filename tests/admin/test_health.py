"""Whether robots should be sent here: what balancers hear, and when."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.admin.health import HealthServer
from tests.support import DEADLINE, PLENTY, Daemon, Tunnel, open_descriptors, read_all, wait_for
from tests.support.log import Said
from tests.support.peer import WELCOME, Peer, connect

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
OK, FULL, STOPPING = ((f"HTTP/1.1 {status}", word) for status, word in (
    ("200 OK", "ok"), ("503 full", "full"), ("503 stopping", "stopping")
))  # fmt: skip
IN_THE_BACKLOG = 32  # Backlog= of the unit


def connected(listening: socket.socket, request: bytes = GET) -> socket.socket:
    """A connection on which somebody has asked."""
    sock = socket.create_connection(listening.getsockname(), timeout=DEADLINE)
    sock.sendall(request)
    return sock


def heard(sock: socket.socket) -> tuple[str, str]:
    """The answer's first line, and its body."""
    with sock:
        head, _, body = read_all(sock).decode().partition("\r\n\r\n")
    return head.split("\r\n")[0], body.removesuffix("\n")


def check(listening: socket.socket, request: bytes = GET) -> tuple[str, str]:
    return heard(connected(listening, request))


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=IN_THE_BACKLOG) as sock:
        yield sock


def start(tunnel: Tunnel, listening: socket.socket, *more: str, limit: int | None = None) -> Daemon:
    daemon = tunnel.daemon(tunnel.server_arguments(*more), passed=("shadow-health", listening), limit=limit)
    daemon.wait_for_log("accepting robots")
    return daemon


def robot(tunnel: Tunnel, name: str) -> Peer:
    peer = connect(tunnel, name)
    assert peer.hello(name)[0] == WELCOME
    return peer


def asked(unavailable: str, *requests: bytes) -> list[bytes]:
    """What a server answers, from the first byte to the last; all requests are there when it comes."""

    async def scenario() -> list[bytes]:
        listening = socket.create_server(("127.0.0.1", 0), backlog=IN_THE_BACKLOG)
        listening.setblocking(False)
        waiting = [connected(listening, request) for request in requests]
        server: Any = SimpleNamespace(unavailable=unavailable)
        health = HealthServer(server)
        health.listen(listening, PLENTY)
        with contextlib.ExitStack() as stack:
            for sock in waiting:
                stack.enter_context(sock)
            answers = [await asyncio.to_thread(read_all, sock) for sock in waiting]
        await health.close()
        return answers

    return asyncio.run(scenario())


def test_it_tells_one_word_and_nothing_else() -> None:
    rest = b"Content-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    assert asked("", GET) == [b"HTTP/1.1 200 OK\r\n" + rest % 3 + b"ok\n"]
    assert asked("full", GET) == [b"HTTP/1.1 503 full\r\n" + rest % 5 + b"full\n"]
    assert asked("full", GET.replace(b"GET", b"HEAD")) == [b"HTTP/1.1 503 full\r\n" + rest % 5]


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (b"OPTIONS / HTTP/1.0\r\n\r\n", b"404", b"only /healthz is here\n"),  # haproxy's "option httpchk"
        (b"OPTIONS /healthz HTTP/1.0\r\n\r\n", b"405", b"only GET\n"),
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"404", b"only /healthz is here\n"),
        (b"GET /healthz HTTP/1.0\r\n\r\n", b"200", b"ok\n"),
    ],
)
def test_other_requests(request_: bytes, status: bytes, body: bytes) -> None:
    (answer,) = asked("", request_)
    assert answer.startswith(b"HTTP/1.1 " + status + b" ")
    assert answer.partition(b"\r\n\r\n")[2] == body


def test_all_who_have_waited_for_a_restart_are_answered_and_nothing_is_logged(said: Said) -> None:
    """They come in all at once, and from one address, if it is that of a router."""
    answers = asked("", *[GET] * IN_THE_BACKLOG)
    assert [answer.partition(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 200 OK"] * IN_THE_BACKLOG
    assert said == []


def test_a_server_with_as_many_robots_as_may_be_is_full(tunnel: Tunnel, listening: socket.socket) -> None:
    server = start(tunnel, listening, "--max-robots=2")
    before = server.log
    for _ in range(20):
        assert check(listening) == OK
    # What is said at the start may not all be written yet when it is ready.
    said = [
        line for line in server.log.removeprefix(before).splitlines() if "encrypting in userspace" not in line
    ]
    assert said == [], "it is asked every second"
    with robot(tunnel, "011"):
        assert check(listening) == OK
        with robot(tunnel, "012"):
            assert check(listening) == FULL
            assert check(listening, b"HEAD /healthz HTTP/1.1\r\n\r\n") == (FULL[0], "")
        wait_for(lambda: check(listening) == OK, "a place to be free again")


def test_a_server_without_descriptors_for_robots_is_full(tunnel: Tunnel, listening: socket.socket) -> None:
    server = start(tunnel, listening, limit=60)
    with contextlib.ExitStack() as stack:
        while open_descriptors(server.process.pid) < 60 - 60 // 5 // 2 - 1:
            stack.enter_context(connected(listening, GET[:9]))
            assert check(listening) == OK
        for _ in range(4):  # as robots do
            stack.enter_context(socket.create_connection(("127.0.0.1", tunnel.port)))
        server.wait_for_log("accepting pauses")
        assert check(listening) == FULL
    wait_for(lambda: check(listening) == OK, "descriptors")


def test_who_has_been_accepted_hears_that_the_server_stops(tunnel: Tunnel, listening: socket.socket) -> None:
    server = start(tunnel, listening)
    halfway = connected(listening, GET[:9])
    assert check(listening) == OK  # it came later, so the other one has been accepted
    server.process.send_signal(signal.SIGTERM)
    assert heard(halfway) == STOPPING
    assert server.wait() == 0


def test_who_asks_during_a_restart_waits_a_moment(tunnel: Tunnel, listening: socket.socket) -> None:
    """systemd has the socket meanwhile."""
    assert start(tunnel, listening).stop() == 0
    waiting = connected(listening)
    start(tunnel, listening)
    assert heard(waiting) == OK
