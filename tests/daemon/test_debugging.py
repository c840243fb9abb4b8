"""What whoever debugs a daemon gets to see: a page, tracebacks, and a line at each step."""

import asyncio
import contextlib
import functools
import logging
import os
import re
import signal
import socket
from collections.abc import Iterator

import pytest

from shadow import events
from shadow.daemon import debugging
from shadow.daemon.debugging import Page
from tests.support import Daemon, Tunnel, echo, serving, wait_for


def page_of(daemon: Daemon) -> str:
    """The page that a daemon writes when asked."""
    daemon.process.send_signal(signal.SIGUSR1)
    daemon.wait_for_log(r"thread MainThread at \S+:\d+ in ")
    return daemon.log[daemon.log.rindex("INFO: pid ") :]


def relay_rests(daemon: Daemon) -> bool:
    return re.search(r"^thread relay-0 at pool.py:\d+ in \w+$", page_of(daemon), re.M) is not None


def test_a_page_shows_everything(tunnel: Tunnel) -> None:
    with serving(echo) as service:
        server = tunnel.start_server()
        client = tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        with tunnel.visit() as visitor:
            visitor.sendall(b"x")
            assert visitor.recv(1) == b"x"
            for daemon in (server, client):
                page = page_of(daemon)
                assert re.match(r"INFO: pid \d+, version \S+, \d+ descriptors of \d+\n", page)
                assert re.search("INFO: (server: 1 robot|client: Connected to .*), 1 stream", page)
                assert re.search(r"INFO: \d+ timers, the next:\n  in \d+\.\d s \w+", page)
                assert re.search(r"^task Task-\d+: \S+ at \S+:\d+ in \w+$", page, re.M)
                # It rests there; if it was just at work, in another module, the next page says so.
                wait_for(functools.partial(relay_rests, daemon), "the relay's thread to rest")


def test_where_each_thread_is_whatever_the_event_loop_does(tunnel: Tunnel) -> None:
    server = tunnel.start_server()
    server.process.send_signal(signal.SIGUSR2)
    server.wait_for_log(r"(Current thread|Thread) 0x[0-9a-f]+ .*most recent call first")
    server.wait_for_log(r'File ".*/daemon/life\.py", line \d+ in run')
    assert server.process.poll() is None


def test_who_has_not_fed_the_watchdog_leaves_a_trace(tunnel: Tunnel) -> None:
    """The service manager ends it with SIGABRT."""
    server = tunnel.start_server()
    server.process.send_signal(signal.SIGABRT)
    assert server.wait() == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in server.log
    assert re.search(r'File ".*/daemon/life\.py", line \d+ in run', server.log)


@pytest.mark.parametrize(
    ("level", "steps", "lines"), [("debug", True, True), ("info", False, True), ("error", False, False)]
)
def test_how_much_is_logged(tunnel: Tunnel, level: str, *, steps: bool, lines: bool) -> None:
    server = tunnel.start_server()
    client = tunnel.daemon(tunnel.client_arguments("--lport=9", f"--log-level={level}"))
    wait_for(tunnel.socket_path().exists, "the robot's socket")
    if lines:  # the server has the socket before the client has heard that it is welcome
        client.wait_for_log("connected to")
    assert client.stop() == 0
    assert ("DEBUG: " in client.log) is steps
    assert ("connected to" in client.log) is lines
    assert "DEBUG: " not in server.log


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(events, "log", lambda _event, _level, text: said.append(text))
    return said


def test_a_long_page_is_cut_into_messages_and_then_short(
    messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(debugging, "_LINES_MAX", 100)
    turns = 0

    async def body() -> None:
        nonlocal turns
        page = Page(lambda: (f"line {number}\x1b" for number in range(101)))
        page.write()
        page.write()  # there is one already
        while not any(text.startswith(("no timers", "1 timer")) for text in messages):
            turns += 1
            await asyncio.sleep(0)

    asyncio.run(body())
    assert [text.count("\n") + 1 for text in messages[1:4]] == [40, 40, 20]
    assert messages[1].startswith("line 0?\nline 1?\n")
    assert messages[4] == "… and more than these 100 lines; see shadowctl list"
    assert sum(text.startswith(f"pid {os.getpid()}, ") for text in messages) == 1
    assert turns >= 3, "others have their turn"


def test_a_page_that_breaks_off_says_so_and_goes_on(
    messages: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> Iterator[str]:
        yield from ("line" for _ in range(50))
        raise ValueError("what nobody has thought of")

    async def body() -> None:
        Page(lines).write()
        while len(messages) < 3:
            await asyncio.sleep(0)

    asyncio.run(body())
    assert "thread MainThread" in messages[2]
    assert "the page about the daemon breaks off" in caplog.text
    assert "what nobody has thought of" in caplog.text


def probe(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port)):
        return True
    return False


def test_a_page_is_written_whatever_else_is_logged(tunnel: Tunnel) -> None:
    server = tunnel.daemon(tunnel.server_arguments("--log-level=error"))
    wait_for(lambda: probe("127.0.0.1", tunnel.port), "the server to listen")
    assert "server: 0 robots, 0 streams" in page_of(server)


def test_steps_are_off_unless_asked_for() -> None:
    assert not events.STEPS.isEnabledFor(logging.DEBUG)
