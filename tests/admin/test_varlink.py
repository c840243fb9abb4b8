"""The API's socket: who may call, what a call must look like, and that no caller holds up the server."""

import asyncio
import contextlib
import grp
import itertools
import logging
import os
import re
import select
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from shadow import events
from shadow.admin import varlink
from shadow.admin.later import Later
from shadow.admin.methods import make_service
from shadow.admin.varlink import Api
from shadow.server.overview import Overview
from tests.support import CHECKOUT, DEADLINE, PLENTY, Daemon, Tunnel, echo, serving, wait_for
from tests.support.call import INTERFACE, Call

T = TypeVar("T")
INTERFACE_FILE = CHECKOUT / "shadow" / f"{INTERFACE}.varlink"


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
        ("Drain", {"draining": True, "timeout": 0}, "org.varlink.service.InvalidParameter"),
        ("Drain", {"draining": True, "timeout": -1.5}, "org.varlink.service.InvalidParameter"),
        ("Drain", {"draining": True, "timeout": float("inf")}, "org.varlink.service.InvalidParameter"),
        ("Drain", {"draining": True, "timeout": "1"}, "org.varlink.service.InvalidParameter"),
        ("Drain", {"draining": True, "timeout": 1e99}, "org.varlink.service.InvalidParameter"),
        ("Drain", {"draining": True, "timeout": 600}, f"{INTERFACE}.DrainFailed"),
        ("Drain", {"draining": True, "server": "s2"}, f"{INTERFACE}.NoSuchServer"),
        ("Disconnect", {"robot": "011", "server": "s2"}, f"{INTERFACE}.NoSuchServer"),
        ("Disconnect", {"robot": "011", "fleet": True}, f"{INTERFACE}.NoSuchRobot"),
        ("ListStreams", {"robot": "011", "fleet": True}, f"{INTERFACE}.NoSuchRobot"),
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


# Who is answered, when many call.


@contextlib.contextmanager
def user(uid: int) -> Iterator[None]:
    """Be somebody else for a moment: the kernel tells who it was that connected."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def calls(server: Daemon, path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Call]]:
    """Connections of users by their numbers; each has been answered once."""
    assert server.process.poll() is None
    # Relative to the folder, for nobody but root may go through those above.
    path.parent.chmod(0o755)
    path.chmod(0o666)
    monkeypatch.chdir(path.parent)
    with contextlib.ExitStack() as stack:

        def call(uid: int, method: str = "GetStatus", **more: Any) -> Call:
            with user(uid):
                made = stack.enter_context(Call(Path(path.name)))
            assert "parameters" in made.ask(method, **more)
            return made

        yield call


def hung_up(call: Call) -> bool:
    """Whether the server has; what it has said before may still be there to be read."""
    poll = select.poll()
    poll.register(call.sock, 0)
    return bool(poll.poll(0))


needs_users = pytest.mark.skipif(os.getuid() != 0, reason="needs other users")
ALICE, BOB, ROOT = 61001, 61002, 0


@needs_users
def test_silent_callers_lock_nobody_out(calls: Callable[..., Call], server: Daemon) -> None:
    silent = [calls(ALICE) for _ in range(64)]
    for uid in (ROOT, BOB, ALICE):
        calls(uid)
    assert all(call.ended() for call in silent[:3])  # the longest silent
    assert "parameters" in silent[3].ask("GetStatus")
    server.wait_for_log(f"all 64 places for callers of the API are taken; uid {ALICE} loses one")
    assert len(re.findall("places for callers", server.log)) == 1  # once a minute


@needs_users
def test_watchers_lock_themselves_out(calls: Callable[..., Call]) -> None:
    watchers = [calls(ALICE, "Watch", more=True) for _ in range(64)]
    with pytest.raises((EOFError, ConnectionResetError, BrokenPipeError)):
        calls(ALICE)
    for uid in (ROOT, BOB):
        calls(uid)
    wait_for(lambda: sum(map(hung_up, watchers)) == 2, "two of them to lose their places")


@needs_users
def test_root_gets_in_whoever_is_there(calls: Callable[..., Call]) -> None:
    everybody = [calls(ALICE + number, "Watch", more=True) for number in range(64)]
    steering = calls(ROOT)
    assert steering.ask("Reload") == {"parameters": {}}
    wait_for(lambda: sum(map(hung_up, everybody)) == 1, "one of them to lose its place")
    with pytest.raises((EOFError, ConnectionResetError, BrokenPipeError)):
        calls(BOB + 64)


def test_a_caller_that_says_nothing_and_one_that_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlink, "_PATIENCE", 0.2)

    class Long:
        def GetStatus(self) -> dict[str, Any]:  # noqa: N802 - the interface's name
            return {
                "version": "x" * 2**22, "status": "", "robots": 0, "streams": 0, "protected": 0,
                "revoked": 0, "terms": [],
            }  # fmt: skip

    def talk() -> bool:
        with Call(tmp_path / "api") as silent, Call(tmp_path / "api") as greedy:
            greedy.say("GetStatus")
            wait_for(lambda: hung_up(greedy), "the one who takes nothing to be hung up on")
            return silent.ended()

    assert answered(tmp_path / "api", Long(), talk)


def test_a_turn_at_a_time(tmp_path: Path) -> None:
    """Between two replies, whoever they are for, the event loop comes around."""
    order = []

    async def scenario() -> None:
        made = Api(None, Overview())

        async def work(number: int) -> None:
            for _ in range(3):
                async with made.turn():
                    order.append(number)

        async def others() -> None:
            for _ in range(9):
                order.append(0)
                await asyncio.sleep(0)

        await asyncio.gather(others(), *(work(number) for number in (1, 2, 3)))

    asyncio.run(scenario())
    work = [number for number in order if number]
    assert sorted(work) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert work[:3] == [1, 2, 3]
    # As long as there are others, they come in between.
    assert not [pair for pair in itertools.islice(itertools.pairwise(order), 12) if all(pair)], order


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
        uid, groups = varlink._credentials(ours)
    assert uid == os.getuid()
    assert groups == {os.getgid(), *os.getgroups()}


@pytest.mark.parametrize(
    ("uid", "groups", "may"),
    [(0, set(), True), (990, {990}, True), (1000, {1000, 77}, True), (1000, {1000, 990}, False)],
)
def test_who_may_steer(monkeypatch: pytest.MonkeyPatch, uid: int, groups: set[int], may: object) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 990)  # the daemon's own user
    monkeypatch.setattr(grp, "getgrnam", {"shadow-tunnel-admin": SimpleNamespace(gr_gid=77)}.__getitem__)
    assert varlink.may_steer(uid, groups) is may


def test_who_may_steer_without_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 990)
    monkeypatch.setattr(grp, "getgrnam", {}.__getitem__)
    assert not varlink.may_steer(1000, {1000})
    assert varlink.may_steer(0, set())


def answered(path: Path, handler: object, talk: Callable[[], T]) -> T:
    """Run ``talk``, which blocks, with somebody who answers at ``path``."""

    async def scenario() -> T:
        made = Api(make_service(handler), Overview())
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen()
        listening.setblocking(False)
        made.listen(listening, PLENTY)
        try:
            return await asyncio.to_thread(talk)
        finally:
            await made.close()

    return asyncio.run(scenario())


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

    events.LOGGER.propagate, before = True, events.LOGGER.propagate
    try:
        with caplog.at_level(logging.ERROR, "shadow"):
            assert answered(tmp_path / "api", Broken(), talk)
    finally:
        events.LOGGER.propagate = before
    assert "unexpected error: a call of the API failed (please report)" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_the_catalogue_of_methods_is_complete() -> None:
    """Every method of the interface has its operation."""
    from shadow.admin.methods import Methods  # noqa: PLC0415

    methods = re.findall(r"^method (\w+)\(", INTERFACE_FILE.read_text(), re.MULTILINE)
    assert sorted(methods) == sorted(name for name in vars(Methods) if name[0].isupper())


def test_a_method_whose_reply_takes_time_delays_nobody(tmp_path: Path) -> None:
    path, asked = tmp_path / "api", threading.Event()

    class Patient:
        def __init__(self) -> None:
            self.released = asyncio.Event()

        def Reload(self) -> None:  # noqa: N802 - the interface's name
            raise Later(self._wait)

        async def _wait(self) -> dict[str, Any]:
            asked.set()
            await self.released.wait()
            return {"parameters": {}}

        def Servers(self) -> dict[str, Any]:  # noqa: N802 - the same
            self.released.set()
            return {"servers": []}

    def talk() -> None:
        with Call(path) as waiting, Call(path) as unheard, Call(path) as other:
            waiting.say("Reload")
            unheard.say("Reload", oneway=True)
            assert asked.wait(DEADLINE)
            assert other.get("Servers") == {"servers": []}
            assert waiting.hear() == {"parameters": {}}
            assert unheard.get("Servers") == {"servers": []}, "the first reply is to this"

    answered(path, Patient(), talk)


def test_what_a_reply_comes_to_may_be_an_error(tmp_path: Path) -> None:
    path, message = tmp_path / "api", {"error": f"{INTERFACE}.NoSuchStream", "parameters": {"id": "1f"}}

    class Sorry:
        def Reload(self) -> None:  # noqa: N802 - the interface's name
            async def wait() -> dict[str, Any]:
                await asyncio.sleep(0)
                return message

            raise Later(wait)

    def talk() -> None:
        with Call(path) as call:
            assert call.ask("Reload") == message
            assert call.ask("Reload") == message, "the connection is good for more"

    answered(path, Sorry(), talk)
