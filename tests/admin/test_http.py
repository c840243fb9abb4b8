"""As much HTTP as a scrape takes, and what becomes of everything else."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import TypeVar

import pytest

from shadow import events
from shadow.admin import http
from shadow.admin.http import MetricsServer, Page
from tests.support import DEADLINE, PLENTY, read_all

T = TypeVar("T")
ACCEPT = b"GET /metrics HTTP/1.1\r\nHost: x\r\nACCEPT:  a/b \r\n\r\n"


async def page(accept: str) -> tuple[str, bytes]:
    return "text/x", f"you accept {accept}\n".encode()


def exhibited(shown: Page | None, visit: Callable[[int], T]) -> T:
    """Run ``visit``, which blocks, with the port of a server."""

    async def scenario() -> T:
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        server = MetricsServer(shown)
        server.listen(listening, PLENTY)
        try:
            return await asyncio.to_thread(visit, listening.getsockname()[1])
        finally:
            await server.close()

    return asyncio.run(scenario())


def ask(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(request)
        try:
            return read_all(sock)
        except ConnectionResetError:
            return b""


def test_the_page() -> None:
    answer = exhibited(page, lambda port: ask(port, ACCEPT))
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/x\r\nContent-Length: 15\r\nConnection: close"
    assert answer == head + b"\r\n\r\nyou accept a/b\n"


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (b"GET /metrics?x=y HTTP/1.1\r\n\r\n", b"200 OK", b"you accept \n"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", b"200 OK", b""),
        (b"GET / HTTP/1.1\r\n\r\n", b"404 Not Found", b"only /metrics is here\n"),
        (b"GET\r\n\r\n", b"404 Not Found", b"only /metrics is here\n"),
        (b"\xff\xfe\r\n\r\n", b"404 Not Found", b"only /metrics is here\n"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405 Method Not Allowed", b"only GET\n"),
        (b"HEAD / HTTP/1.1\r\n\r\n", b"404 Not Found", b""),
    ],
)
def test_other_requests(request_: bytes, status: bytes, body: bytes) -> None:
    answer = exhibited(page, lambda port: ask(port, request_))
    head, _, shown = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert shown == body


def test_what_may_be_asked_is_said() -> None:
    answer = exhibited(page, lambda port: ask(port, b"DELETE /metrics HTTP/1.1\r\n\r\n"))
    assert b"\r\nAllow: GET, HEAD\r\n" in answer  # RFC 9110, 15.5.6


def test_a_library_that_is_missing() -> None:
    assert exhibited(None, lambda port: ask(port, ACCEPT)).startswith(b"HTTP/1.1 503 ")


def test_a_request_that_never_ends() -> None:
    assert exhibited(page, lambda port: ask(port, b"x" * 20000)) == b""


def test_a_request_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_PATIENCE", 0.1)

    def wait(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as sock:
            return read_all(sock)

    assert exhibited(page, wait) == b""


def test_silent_ones_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_SCRAPERS_MAX", 2)

    def visit(port: int) -> list[bytes]:
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(9)]
            answers = [ask(port, ACCEPT) for _ in range(3)]
            assert all(read_all(sock) == b"" for sock in silent[:8])  # the last may still have its place
            return answers

    assert all(answer.startswith(b"HTTP/1.1 200 OK") for answer in exhibited(page, visit))


def test_who_takes_nothing_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_PATIENCE", 0.1)

    async def long(_accept: str) -> tuple[str, bytes]:
        return "text/x", b"x" * 2**26  # more than the kernel takes

    async def scenario() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        server = MetricsServer(long)
        server.listen(listening, PLENTY)
        with socket.create_connection(listening.getsockname(), timeout=DEADLINE) as sock:
            sock.sendall(ACCEPT)
            await asyncio.to_thread(sock.recv, 1)
            async with asyncio.timeout(DEADLINE):
                while server._tasks:
                    await asyncio.sleep(0.01)
        await server.close()

    asyncio.run(scenario())


def test_a_bug_ends_that_scrape_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(accept: str) -> tuple[str, bytes]:
        raise ZeroDivisionError(accept)

    events.LOGGER.propagate, before = True, events.LOGGER.propagate
    try:
        with caplog.at_level(logging.ERROR, "shadow"):
            assert exhibited(broken, lambda port: ask(port, ACCEPT)) == b""
    finally:
        events.LOGGER.propagate = before
    assert "unexpected error: a request for /metrics failed (please report)" in caplog.text
