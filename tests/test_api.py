"""The API's socket: who may call, what a call must look like, and that no caller holds up the server."""

import asyncio
import contextlib
import grp
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shadow import api, journal
from shadow.api import Api, Watcher
from shadow.journal import Event
from shadow.operations import make_service
from tests.call import INTERFACE, Call
from tests.support import DEADLINE, Daemon, Tunnel, echo, serving, wait_for

INTERFACE_FILE = Path(api.__file__).with_name(f"{INTERFACE}.varlink")


@pytest.fixture
def server(tunnel: Tunnel) -> Daemon:
    return tunnel.start_server_with_api()


@pytest.fixture
def path(tunnel: Tunnel) -> Path:
    return tunnel.ldir / INTERFACE


def test_it_can_be_explored(server: Daemon, path: Path) -> None:
    with Call(path) as call:
        told = call.ask("org.varlink.service.GetInfo")["parameters"]
        assert told["interfaces"] == ["org.varlink.service", INTERFACE]
        assert told["product"] == "shadow-server"
        description = call.ask("org.varlink.service.GetInterfaceDescription", {"interface": INTERFACE})
        assert description["parameters"]["description"] == INTERFACE_FILE.read_text()
    assert server.process.poll() is None


@pytest.mark.parametrize(
    "message",
    [
        b"\0", b"{}\0", b"[]\0", b"nonsense\0", b"\xff\0", b'"GetStatus"\0', b'{"method": 3}\0',
        b'{"method": "x.y.Z", "parameters": []}\0', b"[" * 50000 + b"\0", b"x" * 70000, b"x" * 70000 + b"\0",
    ],
)  # fmt: skip
def test_what_is_no_call_ends_the_connection(server: Daemon, path: Path, message: bytes) -> None:
    with Call(path) as call:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            call.sock.sendall(message)
        assert call.ended()
    with Call(path) as call:
        assert "parameters" in call.ask("GetStatus")
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("method", "parameters", "error"),
    [
        ("Nonsense", None, "org.varlink.service.MethodNotFound"),
        ("__init__", None, "org.varlink.service.MethodNotFound"),
        ("org.example.Other.List", None, "org.varlink.service.InterfaceNotFound"),
        ("Describe", None, "org.varlink.service.InvalidParameter"),
        ("Describe", {"name": 11}, "org.varlink.service.InvalidParameter"),
        ("Describe", {"name": "011", "more": 1}, "org.varlink.service.InvalidParameter"),
        ("Disconnect", None, "org.varlink.service.InvalidParameter"),
        ("Disconnect", {"robot": "011", "stream": "1"}, "org.varlink.service.InvalidParameter"),
        ("Watch", None, "org.varlink.service.ExpectedMore"),
        ("Describe", {"name": "011"}, f"{INTERFACE}.NoSuchRobot"),
        ("ListStreams", {"robot": "011"}, f"{INTERFACE}.NoSuchRobot"),
        ("Disconnect", {"stream": "1"}, f"{INTERFACE}.NoSuchStream"),
    ],
)
def test_a_call_that_cannot_be_answered(
    server: Daemon, path: Path, method: str, parameters: Any, error: str
) -> None:
    with Call(path) as call:
        assert call.ask(method, parameters)["error"] == error
        assert "parameters" in call.ask("GetStatus")  # the connection is good for more
    assert "Traceback" not in server.log


def test_a_call_that_wants_no_answer(server: Daemon, path: Path) -> None:
    with Call(path) as call:
        call.say("Reload", oneway=True)
        assert "version" in call.ask("GetStatus")["parameters"]
    server.wait_for_log("reloaded")


def test_callers_come_and_go(server: Daemon, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callers = [Call(path) for _ in range(64)]
    for call in callers:
        call.ask("GetStatus")
    with Call(path) as one_too_many:
        assert one_too_many.ended()
    for call in callers:
        call.sock.close()

    def answered() -> bool:
        with Call(path) as call, contextlib.suppress(EOFError, OSError):
            return bool(call.ask("GetStatus"))
        return False

    wait_for(answered, "room for another caller")
    assert server.process.poll() is None


def test_a_watch_ends_when_its_caller_leaves(server: Daemon, path: Path) -> None:
    for _ in range(70):  # more than may call at once
        with Call(path) as call:
            if "error" in call.ask("Watch", more=True):
                raise AssertionError
    assert "Traceback" not in server.log

    def room() -> bool:
        with Call(path) as call, contextlib.suppress(EOFError, OSError):
            return bool(call.ask("GetStatus"))
        return False

    wait_for(room, "room for another caller")


def test_the_server_stops_with_callers_on_the_line(server: Daemon, path: Path) -> None:
    with Call(path) as watching, Call(path) as silent:
        assert watching.ask("Watch", more=True)["parameters"] == {"ready": True}
        silent.ask("GetStatus")
        assert server.stop() == 0
        assert silent.ended()
    assert "Traceback" not in server.log


def test_a_server_without_the_library(tunnel: Tunnel, tmp_path: Path) -> None:
    (tmp_path / "varlink.py").write_text("raise ImportError")
    server = tunnel.start_server_with_api(environment={"PYTHONPATH": str(tmp_path)})
    server.wait_for_log(r"WARNING: shadowctl cannot ask this server: the Python library varlink is missing")
    with Call(tunnel.ldir / INTERFACE) as call:
        assert call.ended()
    with serving(echo) as service:  # all else works
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")


# Who may steer.


def test_who_a_caller_is() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        uid, groups = api._credentials(ours)
    assert uid == os.getuid()
    assert groups == {os.getgid(), *os.getgroups()}


@pytest.mark.parametrize(
    ("uid", "groups", "may"),
    [(0, set(), True), (990, {990}, True), (1000, {1000, 77}, True), (1000, {1000, 990}, False)],
)
def test_who_may_steer(monkeypatch: pytest.MonkeyPatch, uid: int, groups: set[int], may: object) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 990)  # the daemon's own user
    monkeypatch.setattr(grp, "getgrnam", {"shadow-tunnel-admin": SimpleNamespace(gr_gid=77)}.__getitem__)
    assert api.may_steer(uid, groups) is may


def test_who_may_steer_without_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 990)
    monkeypatch.setattr(grp, "getgrnam", {}.__getitem__)
    assert not api.may_steer(1000, {1000})
    assert api.may_steer(0, set())


# What is watched.


@pytest.fixture
def lines() -> Iterator[None]:
    """A log that goes nowhere but to watchers."""
    level, handlers = journal.LOGGER.level, journal.LOGGER.handlers[:]
    journal.LOGGER.setLevel(logging.INFO)
    journal.LOGGER.handlers[:] = [logging.NullHandler()]
    yield
    journal.LOGGER.setLevel(level)
    journal.LOGGER.handlers[:] = handlers


@pytest.mark.usefixtures("lines")
def test_a_watcher_who_does_not_keep_up_hears_how_much_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_EVENTS_MAX", 3)

    async def scenario() -> list[dict[str, Any]]:
        watcher = Watcher()
        assert watcher.take() == {"ready": True}
        assert not watcher.news.is_set()
        for number in range(8):
            journal.log(Event.ROBOT_CONNECTED, logging.INFO, f"line {number}", robot=f"{number}")
        await asyncio.wait_for(watcher.news.wait(), DEADLINE)
        told = []
        while watcher.news.is_set():
            told.append(watcher.take())
        watcher.close()
        journal.log(Event.ROBOT_CONNECTED, logging.INFO, "too late")
        await asyncio.sleep(0)
        assert not watcher.news.is_set()
        return told

    told = asyncio.run(scenario())
    assert [reply["event"]["message"] for reply in told] == ["line 0", "line 1", "line 2"]
    assert [reply.get("lost") for reply in told] == [None, None, 5]
    assert told[0]["event"] == {
        "event": "robot-connected", "priority": 6, "message": "line 0", "fields": {"ROBOT": "0"},
    }  # fmt: skip


@pytest.mark.usefixtures("lines")
def test_a_line_without_an_event_and_a_peers_own_words() -> None:
    async def scenario() -> list[dict[str, Any]]:
        watcher = Watcher()
        watcher.take()
        logging.getLogger("shadow").error("a bug %s", "\x1b[2J")
        journal.log(Event.STREAM_STARTED, logging.WARNING, "x", stream="\x1b")
        await asyncio.wait_for(watcher.news.wait(), DEADLINE)
        told = [watcher.take(), watcher.take()]
        watcher.close()
        return told

    first, second = asyncio.run(scenario())
    assert first["event"] == {"event": "message", "priority": 3, "message": "a bug ?[2J", "fields": {}}
    assert second["event"]["fields"] == {"STREAM": "?"}


def test_a_bug_in_a_method_ends_that_call_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def GetStatus(self) -> None:  # noqa: N802 - the interface's name
            raise ZeroDivisionError

    def talk() -> bool:
        with Call(tmp_path / "api") as call:
            call.say("GetStatus")
            return call.ended()

    async def scenario() -> bool:
        broken = Api(make_service(Broken()))
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(tmp_path / "api"))
        listening.listen()
        listening.setblocking(False)
        broken.listen(listening, lambda _error: None)
        try:
            return await asyncio.to_thread(talk)
        finally:
            await broken.close()

    journal.LOGGER.propagate, before = True, journal.LOGGER.propagate
    try:
        with caplog.at_level(logging.ERROR, "shadow"):
            assert asyncio.run(scenario())
    finally:
        journal.LOGGER.propagate = before
    assert "a call of the API failed in a way nobody thought of" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_the_catalogue_of_methods_is_complete() -> None:
    """Every method of the interface has its operation."""
    from shadow.operations import Operations  # noqa: PLC0415

    methods = re.findall(r"^method (\w+)\(", INTERFACE_FILE.read_text(), re.MULTILINE)
    assert sorted(methods) == sorted(name for name in vars(Operations) if name[0].isupper())
