"""Names to addresses: what hangs harms nobody but itself."""

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shadow.errors import Unreachable
from shadow.net import resolving
from shadow.net.address import Endpoint, Target
from shadow.net.resolving import resolve
from tests.support import CHECKOUT, DEADLINE, Tunnel, echo, exchange, serving, wait_for

FAR = ("192.0.2.7", 0)


class Resolver:
    """Stands for getaddrinfo(3): answers what it knows, and hangs until it is let go."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.let_go = threading.Event()
        self.hanging = {"far.example"}
        self._real: Callable[..., Any] = socket.getaddrinfo

    def __call__(self, host: str, port: object, **options: Any) -> Any:
        if options["flags"] & socket.AI_NUMERICHOST:
            return self._real(host, port, **options)
        self.asked.append(host)
        if host in self.hanging:
            assert self.let_go.wait(DEADLINE)
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", FAR)]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Resolver]:
    made = Resolver()
    monkeypatch.setattr(socket, "getaddrinfo", made)
    yield made
    made.let_go.set()
    wait_for(lambda: not lookups(), "the lookups to end")


def lookups() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dns-")]


def test_a_name_that_does_not_exist() -> None:
    for name in ("no-such-host.invalid", "x" * 70 + ".example"):
        with pytest.raises(Unreachable, match="cannot resolve"):
            asyncio.run(resolve(Endpoint(name, 1), DEADLINE))


def test_the_port_is_the_callers(resolver: Resolver) -> None:
    assert asyncio.run(resolve(Endpoint("near.example", 9), DEADLINE)) == [
        Target(socket.AF_INET, ("192.0.2.7", 9))
    ]
    assert resolver.asked == ["near.example"]


@pytest.mark.parametrize("name", ["localhost", "LocalHost.", "robot.localhost"])
def test_nobody_is_asked_for_localhost(resolver: Resolver, name: str) -> None:
    found = asyncio.run(resolve(Endpoint(name, 9), DEADLINE))
    assert sorted(map(str, found)) == ["127.0.0.1:9", "[::1]:9"]
    assert resolver.asked == []


def test_the_loopback_address_that_this_machine_lacks_is_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def without_six(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_INET6:
            raise OSError(99, "Cannot assign requested address")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", without_six)
    first, _second = asyncio.run(resolve(Endpoint("localhost", 9), DEADLINE))
    assert str(first) == "127.0.0.1:9"


def test_a_name_that_hangs_holds_up_no_other(resolver: Resolver) -> None:
    """Asked for more often than asyncio's executor has threads."""

    async def body() -> None:
        hanging = [asyncio.create_task(resolve(Endpoint("far.example", 554), DEADLINE)) for _ in range(200)]
        while not resolver.asked:
            await asyncio.sleep(0)
        for name in ("127.0.0.1", "::1", "localhost", "near.example"):
            assert await resolve(Endpoint(name, 22), DEADLINE)
        with pytest.raises(Unreachable, match=r"cannot resolve not-there\.invalid: Name or service"):
            await resolve(Endpoint("not-there.invalid", 22), DEADLINE)
        assert not any(task.done() for task in hanging)
        # A thread that has given its answer may need a moment to end.
        wait_for(lambda: lookups() == ["dns-far.example"], "the other lookups' threads to end")
        resolver.let_go.set()
        assert {str(one) for found in await asyncio.gather(*hanging) for one in found} == {"192.0.2.7:554"}
        assert resolver.asked.count("far.example") == 1, "all wait for the same lookup"

    asyncio.run(body())


def test_a_peer_cannot_have_many_names_looked_up_at_once(resolver: Resolver) -> None:
    """Else a server that tells another name each time would fill the robot with threads."""

    async def ask(name: str, *, told: bool = True) -> str:
        with pytest.raises(Unreachable) as caught:
            await resolve(Endpoint(name, 1), 0.01, told=told)
        return str(caught.value).rpartition(": ")[2]

    async def body() -> None:
        names = [f"{number}.example" for number in range(6)]
        resolver.hanging.update(names)
        for name in names[:4]:
            assert await ask(name) == await ask(name) == "no answer within 0.01 s"
        assert await ask(names[4]) == "too many names are being looked up"
        assert await ask(names[5], told=False) == "no answer within 0.01 s", "those of our settings go on"
        wait_for(lambda: len(resolver.asked) == 5, "the lookups to begin")
        assert names[4] not in resolver.asked
        resolver.let_go.set()
        async with asyncio.timeout(DEADLINE):
            while resolving._under_way.keys() & set(names):
                await asyncio.sleep(0.001)
        assert await resolve(Endpoint(names[4], 1), DEADLINE, told=True)

    asyncio.run(body())


def test_who_is_tired_of_waiting_leaves_alone(resolver: Resolver) -> None:
    async def body() -> None:
        for _ in range(3):
            with pytest.raises(Unreachable, match=r"cannot resolve far\.example: no answer within 0\.01 s"):
                await resolve(Endpoint("far.example", 1), 0.01)
        patient = asyncio.create_task(resolve(Endpoint("far.example", 1), DEADLINE))
        cancelled = asyncio.create_task(resolve(Endpoint("far.example", 1), DEADLINE))
        await asyncio.sleep(0)
        cancelled.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await cancelled
        resolver.let_go.set()
        assert await patient
        assert resolver.asked == ["far.example"]
        # The next one asks anew: an answer is nothing to be kept.
        assert await resolve(Endpoint("far.example", 1), DEADLINE)
        assert len(resolver.asked) == 2

    asyncio.run(body())


def test_the_end_waits_for_no_lookup(resolver: Resolver) -> None:
    async def body() -> None:
        with pytest.raises(Unreachable):
            await resolve(Endpoint("far.example", 1), 0.01)

    asyncio.run(body())  # with asyncio's executor this would not return before the resolver does
    assert not resolver.let_go.is_set()
    assert lookups()
    # And the next loop is not given what belongs to the last one.
    resolver.hanging.clear()
    assert asyncio.run(resolve(Endpoint("far.example", 1), DEADLINE))


def test_no_threads_left(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(Unreachable, match=r"cannot resolve far\.example: can.t start new thread"):
            asyncio.run(resolve(Endpoint("far.example", 1), DEADLINE))
    resolver.hanging.clear()
    assert asyncio.run(resolve(Endpoint("far.example", 1), DEADLINE))


HANGING = """
import socket, sys, time
from shadow.cli.client import main
real = socket.getaddrinfo
def hang(host, *arguments, **options):
    if host.endswith(".example"):
        sys.stderr.write(f"asked for {host}\\n")  # in one piece: the log goes there, too
        time.sleep(3600)
    return real(host, *arguments, **options)
socket.getaddrinfo = hang
sys.exit(main())
"""


def start_hanging(arguments: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        return subprocess.Popen([sys.executable, "-c", HANGING, *arguments[1:]], cwd=CHECKOUT, stderr=output)


def test_a_stop_waits_for_no_resolver(tunnel: Tunnel, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start_hanging(tunnel.client_arguments("--lport=9", rhost="tunnel.example"), log)
    try:
        wait_for(lambda: "asked for tunnel.example" in log.read_text(), "a lookup")
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0  # and not after an hour
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()
        sys.stderr.write(log.read_text())  # for whoever reads why it failed


@pytest.mark.long
def test_a_camera_whose_name_hangs_takes_ssh_from_nobody(tunnel: Tunnel, tmp_path: Path) -> None:
    tunnel.start_server()
    log = tmp_path / "log"
    with serving(echo) as service, contextlib.ExitStack() as stack:
        arguments = [f"--lport={service.port}", "--lhost=localhost", "--service=cam=cam.example:554"]
        process = start_hanging(tunnel.client_arguments(*arguments), log)
        try:
            wait_for(tunnel.socket_path("cam@011").exists, "cam@011.sock")
            cameras = [stack.enter_context(tunnel.visit("cam@011")) for _ in range(40)]
            wait_for(lambda: log.read_text().count("asked for cam.example"), "a lookup")
            for _ in range(3):
                with tunnel.visit() as visitor:
                    assert exchange(visitor, b"ssh") == b"ssh"
            for camera in cameras:
                assert camera.recv(1) == b"", "the camera's visitors are turned away, and told why in the log"
            # Not a line for each: how often it happens is not ours to decide.
            assert "visitor not connected: cannot resolve cam.example: no answer" in log.read_text()
            assert log.read_text().count("asked for cam.example") == 1
        finally:
            process.kill()
            process.wait()
            sys.stderr.write(log.read_text())


def test_nothing_uses_asyncios_executor() -> None:
    """It is joined at the end, and full when some of its jobs hang."""
    uses = re.compile(r"run_in_executor|to_thread|loop\(?\)?\.getaddrinfo")
    found = [path.name for path in (CHECKOUT / "shadow").rglob("*.py") if uses.search(path.read_text())]
    assert found == []
