"""Few descriptors: who is served all the same, what is given up, and that nothing is for ever."""

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shadow import events
from shadow.daemon.config import parse_server
from shadow.relay.durable import DurableStreams
from shadow.relay.pool import Relay
from shadow.server import descriptors, handover
from shadow.server.descriptors import Descriptors
from shadow.server.server import Server
from shadow.systemd.fdstore import Store
from tests.support import Service, Tunnel, echo, open_descriptors, serving, wait_for
from tests.support.call import INTERFACE, Call
from tests.support.log import Said
from tests.support.peer import (
    DIAL,
    REFUSED,
    START,
    STARTED,
    WELCOME,
    Peer,
    connect,
    frame,
    stand_by,
)


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(echo) as made:
        yield made


def facts(tunnel: Tunnel, name: str = "011") -> dict[str, Any]:
    with Call(tunnel.ldir / INTERFACE) as call:
        found: dict[str, Any] = call.get("Describe", {"name": name})["robot"]
    return found


def visit(tunnel: Tunnel, name: str) -> None:
    with tunnel.visit(name) as visitor:
        visitor.sendall(b"x")
        assert visitor.recv(1) == b"x", f"{name}: turned away"


@pytest.mark.long
@pytest.mark.parametrize(("limit", "robots"), [(40, 1), (60, 6)])
def test_a_crowd_that_has_left_leaves_nothing_behind(
    tunnel: Tunnel, service: Service, limit: int, robots: int
) -> None:
    server = tunnel.start_server_with_api("--keepalive=2", "--start-timeout=2", limit=limit)
    names = [f"r{number}" for number in range(robots)]
    for name in names:
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1", robot=name)
    wait_for(lambda: all(facts(tunnel, name)["standbys"] == 2 for name in names), "standbys")
    before = open_descriptors(server.process.pid)
    with contextlib.ExitStack() as crowd:
        visitors = [crowd.enter_context(tunnel.visit(names[n % robots])) for n in range(40)]
        server.wait_for_log("accepting pauses: .* of .* descriptors are left")
        # Meanwhile: it answers, some are served, and there is something left.
        end, served = time.monotonic() + 3, 0
        while time.monotonic() < end:
            served = max(served, sum(facts(tunnel, name)["streams"] for name in names))
            time.sleep(0.05)
        assert served >= 3
        assert open_descriptors(server.process.pid) <= limit - limit // 5 // 2
        assert len(visitors) == 40
    for name in names:
        visit(tunnel, name)
    server.wait_for_log("accepting goes on: for .* s there were too few descriptors")
    assert server.log.count("accepting pauses") == 1
    wait_for(lambda: all(facts(tunnel, name)["standbys"] <= 2 for name in names), "no more than is wanted")
    wait_for(lambda: open_descriptors(server.process.pid) <= before, "descriptors to be closed")
    assert "Traceback" not in server.log


def test_standbys_are_given_up_before_visitors_wait(tunnel: Tunnel) -> None:
    server = tunnel.start_server_with_api(limit=60)
    with contextlib.ExitStack() as stack:
        rich = stack.enter_context(connect(tunnel, "rich"))
        poor = stack.enter_context(connect(tunnel, "poor"))
        session = rich.hello("rich")[1]["session"]
        poors = poor.hello("poor")[1]["session"]
        standbys: list[Peer] = []
        while len(standbys) < 60:  # more than there is room for
            data = stack.enter_context(connect(tunnel, "rich"))
            kind, answer = data.hello("rich", role="data", session=session)
            if kind == REFUSED:
                assert (answer["code"], answer["text"][:28]) == ("limit", "the server has no descriptor")
                break
            standbys.append(data)
        assert 10 < len(standbys) < 60
        for _ in range(8):
            visitor = stack.enter_context(tunnel.visit("poor"))
            assert poor.receive() == (DIAL, {"count": 1})
            channel = stack.enter_context(stand_by(tunnel, poors, "poor"))
            assert channel.receive()[0] == START
            channel.sock.sendall(frame(STARTED) + b"served")
            assert visitor.recv(10) == b"served"
        assert 0 < facts(tunnel, "rich")["standbys"] < len(standbys)
        assert standbys[0].closed(), "the oldest first"
        assert "accepting pauses" not in server.log


def test_channels_that_came_for_visitors_who_have_left_are_closed(tunnel: Tunnel) -> None:
    """Even if the robot has never heard that it should: within a keepalive interval."""
    tunnel.start_server_with_api("--keepalive=2")
    with connect(tunnel, "011") as control, contextlib.ExitStack() as stack:
        session = control.hello()[1]["session"]
        wanted = [stack.enter_context(stand_by(tunnel, session)) for _ in range(2)]
        visitors = [tunnel.visit() for _ in range(7)]
        for channel in wanted:
            assert channel.receive()[0] == START
        for _ in range(5):
            assert control.receive() == (DIAL, {"count": 1})
        for visitor in visitors:
            visitor.close()
        channels = [stack.enter_context(stand_by(tunnel, session)) for _ in range(7)]
        closed = []
        for channel in channels[:5]:
            kind, answer = channel.receive()
            closed.append((kind, answer["code"]))
            assert channel.closed()
        assert closed == [(REFUSED, "surplus")] * 5
        assert facts(tunnel)["standbys"] == 2
        assert facts(tunnel)["connected"]


@pytest.mark.long
def test_a_burst_of_visitors_leaves_no_standbys_behind(tunnel: Tunnel, service: Service) -> None:
    server = tunnel.start_server_with_api("--keepalive=3")
    tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
    wait_for(lambda: facts(tunnel)["standbys"] == 2, "standbys")
    before = open_descriptors(server.process.pid)
    with contextlib.ExitStack() as crowd:
        for _ in range(300):
            crowd.enter_context(tunnel.visit())
        wait_for(lambda: facts(tunnel)["streams"] > 30, "some to be served")
    # Both at once: while some channels go, others may be on their way.
    wait_for(
        lambda: open_descriptors(server.process.pid) <= before and facts(tunnel)["standbys"] <= 2,
        "all to be as before",
    )


def test_the_log_hears_of_it_once_and_how_it_was(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "_CALM", 0.2)

    async def body() -> None:
        asked: list[int] = []

        def give_up(count: int) -> int:
            asked.append(count)
            return 3

        few = Descriptors(give_up, 5)
        monkeypatch.setattr(descriptors, "_MEMORY", 60.0)
        for _ in range(10):
            few.ran_out(OSError(errno.ENFILE, "x"))
        assert few.short
        assert len(asked) == 1, "once for all who come at the same time"
        monkeypatch.setattr(descriptors, "_REMINDER", 0.0)
        few.ran_out(OSError(errno.ENOMEM, "x"))
        few.refused_standby()
        while len(said) < 3:
            await asyncio.sleep(0.01)
        assert few.for_visitor()
        few.close()

    asyncio.run(body())
    assert [event for event, _text in said] == [
        events.AcceptPaused, events.AcceptPaused, events.AcceptResumed
    ]  # fmt: skip
    assert said[0][1].startswith("accepting pauses: Too many open files in system (LimitNOFILE=")
    assert said[1][1].startswith("accepting still pauses, for 0 s now: Cannot allocate memory")
    assert said[2][1].endswith("3 standby channels were given up, 1 refused")


def test_who_may_have_the_last_ones(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred, of which twenty are the reserve: all but one or two of what a visitor needs is promised."""
    monkeypatch.setattr(Descriptors, "limit", 100)
    monkeypatch.setattr(descriptors, "_MEMORY", 0.0)
    used: list[None] = []

    class Folder:
        @staticmethod
        def stat() -> Any:
            return type("Status", (), {"st_size": len(used)})

        @staticmethod
        def iterdir() -> list[None]:
            return used

    monkeypatch.setattr(descriptors, "_OURS", Folder)

    async def body() -> None:
        few = Descriptors(lambda _count: 0, 5)
        promises = []
        while few.for_visitor():
            used.append(None)
            promises.append(few.promise())
        assert len(promises) == 13, "6 for each, and 20 in reserve"
        while few.for_robot():
            used.append(None)
        assert len(used) == 90, "half of the reserve is left"
        assert few.robots_wait
        for promise in promises:
            promise()
        del used[:]
        assert few.for_visitor()
        few.close()

    asyncio.run(body())
    assert said[0][0] is events.AcceptPaused


class Scarce:
    """A process with a hundred descriptors, and a clock.

    Attributes:
        descriptors: what is tested.
        in_use: how many of them are.
        now: what the clock says.
        counted: how often they were counted.
        asked: how often somebody was asked to give some up.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, in_use: int) -> None:
        self.in_use, self.now = in_use, 1000.0
        self.counted = self.asked = 0
        monkeypatch.setattr(Descriptors, "limit", 100)
        monkeypatch.setattr(descriptors, "_OURS", self)
        self.descriptors = Descriptors(self._give_up, 5)
        loop = SimpleNamespace(time=lambda: self.now, call_later=lambda *_: None)
        monkeypatch.setattr(self.descriptors, "_loop", loop)

    def stat(self) -> Any:
        """As the folder of our descriptors has it."""
        self.counted += 1
        return SimpleNamespace(st_size=self.in_use)

    def _give_up(self, _count: int) -> int:
        self.asked += 1
        return 0


def test_who_asks_whether_robots_wait_gives_nothing_up_and_hardly_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counting takes long when there are many: not for each who asks."""

    async def body() -> None:
        scarce = Scarce(monkeypatch, in_use=50)
        few = scarce.descriptors
        scarce.in_use = 90
        found = [few.robots_wait]  # nobody has come since
        while few.for_robot():
            pass
        found += [few.robots_wait for _ in range(99)]
        assert scarce.counted < 5
        scarce.in_use = 89
        found.append(few.robots_wait)  # not counted yet
        scarce.now += 1.0
        found.append(few.robots_wait)
        assert found == [False, *[True] * 100, False]
        assert scarce.asked == 1

    asyncio.run(body())


def test_a_no_holds_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shortage, ten thousand sockets of robots ask, and a look at everything takes long."""

    async def body() -> None:
        scarce = Scarce(monkeypatch, in_use=85)
        few = scarce.descriptors
        scarce.counted = 0
        assert [few.short for _ in range(100)] == [True] * 100, "half of the reserve is used"
        assert (scarce.counted, scarce.asked) == (1, 0)
        assert not any(few.for_visitor() for _ in range(100))
        assert (scarce.counted, scarce.asked) == (3, 1)
        assert few.for_robot(), "it needs fewer"
        for _ in range(100):
            few.ran_out(OSError(errno.ENFILE, "x"))
        assert scarce.asked == 2
        scarce.in_use = 10
        assert not few.for_visitor()
        scarce.now += descriptors._MEMORY
        assert few.for_visitor()

    asyncio.run(body())


def test_robots_sockets_are_counted(tunnel: Tunnel) -> None:
    """Else the last descriptors are gone before anybody counts again, and robots are refused."""
    server = tunnel.daemon(tunnel.server_arguments(), limit=60)
    server.wait_for_log("accepting robots")
    with contextlib.ExitStack() as stack:
        while open_descriptors(server.process.pid) < 60 - 60 // 5 // 2 - 1:
            name = f"r{len(list(tunnel.ldir.iterdir()))}"
            assert stack.enter_context(connect(tunnel, name)).hello(name)[0] == WELCOME
        for _ in range(4):
            stack.enter_context(socket.create_connection(("127.0.0.1", tunnel.port)))
        server.wait_for_log("accepting pauses: .* of 60 descriptors are left")


def test_what_is_resumed_is_counted(tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Descriptors, "limit", open_descriptors(os.getpid()) + 100)
    config = parse_server(tunnel.server_arguments()[1:], {})

    async def body(resumed: contextlib.ExitStack) -> None:
        def resume(*_: object) -> int:
            for _number in range(90):
                resumed.enter_context(socket.socket())
            return 0

        monkeypatch.setattr(handover, "resume", resume)
        relay = Relay()
        try:
            server = Server(config, DurableStreams(relay, Store()))
            assert server.robots.descriptors.for_robot()
            await server.start()
            assert not server.robots.descriptors.for_robot()
            await server.stop()
        finally:
            relay.stop()

    with contextlib.ExitStack() as stack:
        asyncio.run(body(stack))
