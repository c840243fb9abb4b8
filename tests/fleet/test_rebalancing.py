"""A server that has too many robots: some go to others, nobody notices, and it ends."""

import asyncio
import contextlib
import logging
import re
import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shadow.fleet.balance import Balance, Terms
from shadow.fleet.keys import Keys, Live
from shadow.fleet.rebalancing import Rebalancing
from shadow.fleet.view import View
from shadow.wire.frames import Frame, Move
from tests.support import echo, exchange, serving, virtual_time
from tests.support.fleet import Told, entry
from tests.support.peer import WELCOME, Peer, connect
from tests.support.sites import Fleet, Site

MOVE = 17
TERMS = Terms(least=1, share=0.5, calm=2.0, rest=100.0, settled=60.0, again=300.0)


class World:
    """Our server a, with robots as the test wants them, and another one, b."""

    def __init__(self) -> None:
        self.view = View(cast("Any", None), Keys("f"), Told())
        self.view.up = True
        self.robots: dict[str, Any] = {}
        self.told: list[str] = []
        self.revision = 0
        self.live("a")
        self.live("b")
        self.loop = asyncio.get_running_loop()
        self.rebalancing = Rebalancing(cast("Any", self.robots), "a", self.view, Balance(TERMS))

    def live(self, name: str, *, draining: bool = False) -> None:
        self.revision += 1
        self.view._put(self.view._keys.server(name), Live("1", draining=draining).encode(), self.revision)

    def entry(self, robot: str, server: str) -> None:
        self.revision += 1
        self.view._put(self.view._keys.robot(robot), entry(server).encode(), self.revision)

    def robot(self, name: str, *, age: float = 100.0, moves: bool = True) -> Any:
        def send(frame: Frame) -> None:
            assert frame == Move()
            self.told.append(name)

        session = SimpleNamespace(
            since=self.loop.time() - age, moves=moves, channel=SimpleNamespace(send=send),
            board=SimpleNamespace(visitors=[]),
        )  # fmt: skip
        self.robots[name] = robot = SimpleNamespace(
            name=name, session=session, streams={}, visitors=SimpleNamespace(starting={})
        )
        self.entry(name, "a")
        return robot

    def leave(self, name: str) -> None:
        del self.robots[name]
        self.entry(name, "b")

    async def tick(self, seconds: int = 1, *, drained: bool = False) -> list[str]:
        """Let some time pass; who was told to go meanwhile?"""
        self.told.clear()
        for _ in range(seconds):
            await asyncio.sleep(1.0)
            self.rebalancing.tick(drained=drained)
        return self.told.copy()


def test_only_those_go_of_whom_nobody_notices(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def body() -> None:
        world = World()
        world.entry("elsewhere", "b")
        world.robot("visited").streams["pump"] = "visitor"
        world.robot("starting").visitors.starting["visitor"] = "channel"
        world.robot("waited-for").session.board.visitors.append("visitor")
        world.robot("new", age=10.0)
        world.robot("old", moves=False)
        world.robot("left").session = None
        world.robot("one")
        world.robot("two")
        world.robot("three")
        assert await world.tick(2) == []
        assert await world.tick() == ["one", "two", "three"], "9 here, 1 there: 3 of 4 too many can go"
        assert [world.rebalancing.surplus] == [3]
        for name in ("one", "two"):
            world.leave(name)
        assert await world.tick(10) == []
        world.leave("three")
        assert await world.tick() == []
        assert world.rebalancing.surplus is None
        assert world.rebalancing.moves.count == {"gone": 3, "stayed": 0}

    virtual_time.run(body())
    over = "3 robots gone to other servers, 0 stayed; 6 robots here, and 5 on average"
    assert [record.getMessage() for record in caplog.records] == [
        "rebalancing: 9 robots here, and 5 on average: 3 to go to other servers",
        f"rebalancing is over after 11 s: {over}",
    ]


def test_a_robot_that_has_stayed_is_left_alone_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def body() -> None:
        world = World()
        for name in ("one", "two", "three"):
            world.robot(name)
        assert await world.tick(3) == ["one"]
        world.robot("one")  # a balancer has sent it here
        assert await world.tick() == ["two"]
        assert await world.tick(59) == [], "it may take a moment"
        assert await world.tick() == ["three"], "and two has stayed, too"
        assert await world.tick(60) == []
        assert world.rebalancing.surplus is None
        assert await world.tick(175) == [], "nobody is left who could go"
        assert await world.tick(70) == ["one"]

    virtual_time.run(body())
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "rebalancing", "rebalancing is over after 121 s", "rebalancing",
    ]  # fmt: skip


def test_not_while_it_is_drained_nor_without_the_engine_nor_to_servers_that_are_drained() -> None:
    async def body() -> None:
        world = World()
        for number in range(10):
            world.robot(f"{number}")
        assert await world.tick(20, drained=True) == []
        assert await world.tick(2) == []
        assert await world.tick() != []
        assert len(world.rebalancing.moves) > 0
        assert await world.tick(drained=True) == []
        assert len(world.rebalancing.moves) == 0, "it is up to whoever drains"
        assert await world.tick(3) != []
        world.view.up = False
        assert await world.tick(20) == []
        world.view.up = True
        assert await world.tick(2) == []
        assert await world.tick(60) != []
        world.live("b", draining=True)
        assert await world.tick(100) == []

    virtual_time.run(body())


# With real servers


def start_hasty(site: Site, *more: str) -> None:
    words = site.tunnel.server_arguments(*site.fleet.options(site.name, site.peer), *more)
    site.daemon = site.tunnel.daemon(["tests.support.hasty", *words[1:]])
    site.daemon.wait_for_log("accepting robots")


def robot(stack: contextlib.ExitStack, site: Site, name: str, *, moves: bool, attempt: int = 1) -> Peer:
    """One made by hand."""
    peer = stack.enter_context(connect(site.tunnel, name))
    kind, _body = peer.hello(name, boot=f"b{name}", attempt=attempt, moves=moves)
    assert kind == WELCOME
    return peer


def test_a_robot_goes_to_the_other_server_and_can_be_visited_all_the_time(fleet: Fleet) -> None:
    one, two = fleet.sites
    two.tunnel.port = one.tunnel.port  # of another family
    start_hasty(one, "-4")
    one.follow()
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(serving(echo))
        words = f"--lport={service.port}", "--lhost=127.0.0.1"
        client = one.tunnel.start_client(*words, rhost="127.0.0.1,::1")
        for name in ("012", "013", "014"):
            robot(stack, one, name, moves=False)
        two.start("-6", f"--peer=[::1]:{two.peer}")
        fleet.wait_for_home(("s2", 2))
        one.daemon.wait_for_log("rebalancing: 4 robots here, and 2 on average: 1 to go to other servers")
        text = "1 robot gone to other servers, 0 stayed; 3 robots here, and 2 on average"
        one.daemon.wait_for_log(f"rebalancing is over after [0-9]+ s: {text}")
        for site in fleet.sites:
            with site.tunnel.visit() as visitor:
                assert exchange(visitor, b"x") == b"x"
        assert "no session with" not in client.log


def test_a_robot_that_comes_back_is_welcome_and_told_no_more(fleet: Fleet) -> None:
    """As it is behind a balancer, or if it knows no other server."""
    one, two = fleet.sites
    start_hasty(one)
    two.start()
    for site in fleet.sites:
        site.follow()
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(serving(echo))
        client = one.tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        robot(stack, one, "013", moves=False)
        robot(stack, one, "014", moves=False)
        one.daemon.wait_for_log("robot 011 came back from")
        one.daemon.wait_for_log("rebalancing is over after [0-9]+ s: 0 robots gone .* 1 stayed")
        fleet.wait_for_home(("s1", 2))
        for site in fleet.sites:
            with site.tunnel.visit() as visitor:
                assert exchange(visitor, b"x") == b"x"
        later = robot(stack, one, "015", moves=True)
        assert later.receive() == (MOVE, {}), "somebody has to go, and the other one would come first"
        assert fleet.home() == ("s1", 2)
        one.daemon.process.send_signal(signal.SIGUSR1)
        one.daemon.wait_for_log("rebalancing: [0-9]+ here, .* 1 stayed, 1 not to be asked again")
        assert not re.search("no session with|none takes us", client.log)


def test_where_that_is_not_wanted(fleet: Fleet) -> None:
    """Not even the page for debugging has a word about it, as it has in the test before."""
    one, _two = fleet.sites
    start_hasty(one, "--rebalance=no")
    one.follow()
    one.daemon.process.send_signal(signal.SIGUSR1)
    one.daemon.wait_for_log("sockets of 0 robots that are elsewhere")  # what comes after it
    assert "rebalancing" not in one.daemon.log
