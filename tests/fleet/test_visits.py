"""Visitors whose robots are at another server: the way there, and what happens when a robot moves."""

import asyncio
import contextlib
import os
import pwd
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.daemon.config import ServerConfig
from shadow.errors import Unreachable
from shadow.fleet.visits import Visits
from shadow.fleet.whereabouts import Whereabouts
from shadow.server.visitor import Visitor, make_visitor
from shadow.transport.channel import Channel
from shadow.transport.link import KernelLink
from shadow.wire.conversation import PEER, Conversation, Party, State
from shadow.wire.frames import Started as Connected
from shadow.wire.frames import Visit
from tests.support import DEADLINE, echo, exchange, serving, tcp_pair, wait_for
from tests.support.asked import make_robots
from tests.support.directory import Directory
from tests.support.fleet import until
from tests.support.frame_end import FrameEnd
from tests.support.log import Said
from tests.support.peer import START, STARTED, connect
from tests.support.sites import NAME, Fleet, Site


@pytest.fixture
def robot(both: Fleet) -> Iterator[None]:
    """A real one at the first server, with a service that echoes."""
    with serving(echo) as service:
        both.sites[0].tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        wait_for(both.sites[1].tunnel.socket_path().exists, "the robot's socket at the other server")
        yield


def visit(site: Site, words: bytes = b"hello") -> None:
    with site.tunnel.visit() as visitor:
        assert exchange(visitor, words) == words


def test_a_visitor_at_any_server_reaches_the_robot(both: Fleet, robot: None) -> None:
    one, two = both.sites
    visit(two, b"x" * 100_000)
    visit(one)
    here, user = os.getuid(), pwd.getpwuid(os.getuid()).pw_name
    started = two.daemon.wait_for_log(
        rf"robot 011: stream (\w+) started for uid {here} \({user}\), by way of server s1"
    )
    there = one.daemon.wait_for_log(
        rf"robot 011: stream (\w+) started for uid {here} \({user} at server s2\)"
    )
    for site, stream in ((two, started[1]), (one, there[1])):
        site.daemon.wait_for_log(
            rf"robot 011: stream {stream} ended: 100000 bytes to the robot, 100000 bytes from it"
        )
    one.daemon.wait_for_log(rf"robot 011: stream \w+ started for uid {here}\n")


def test_the_end_of_one_side_leaves_the_other_open(both: Fleet, robot: None) -> None:
    with both.sites[1].tunnel.visit() as visitor:
        visitor.sendall(b"last words")
        visitor.shutdown(socket.SHUT_WR)
        said = b""
        while part := visitor.recv(100):
            said += part
        assert said == b"last words"


def test_many_at_once_all_get_through(both: Fleet, robot: None) -> None:
    """More than stand by, and more than one service connection at a time."""
    with ThreadPoolExecutor(40) as pool:
        for done in [pool.submit(visit, both.sites[1], os.urandom(2000)) for _ in range(40)]:
            done.result()


def test_what_the_robot_cannot_connect_fails_at_the_visitors_server_with_the_reason(both: Fleet) -> None:
    one, two = both.sites
    one.tunnel.start_client("--lport=1", "--lhost=127.0.0.1")
    wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
    with two.tunnel.visit() as visitor:
        assert visitor.recv(1) == b""
    two.daemon.wait_for_log(r"turned away: server s1 says: the robot could not connect it \('refused': ")
    one.daemon.wait_for_log(
        r"visitor with uid \d+ \(\w+ at server s2\) turned away: the robot could not connect it"
    )


class Robot:
    """One made by hand, that is at a server for as long as it says."""

    def __init__(self, site: Site, boot: str, attempt: int) -> None:
        self._stack = contextlib.ExitStack()
        self.site = site
        self.control = self._stack.enter_context(site.robot(boot, attempt))
        self.session = site.answer[1]["session"]

    def serve(self, words: bytes) -> None:
        """Open a data channel, wait for a visitor, and say something to it."""
        peer = self._stack.enter_context(connect(self.site.tunnel, NAME))
        peer.hello(NAME, role="data", session=self.session)
        kind, _start = peer.receive()
        assert kind == START
        peer.send(STARTED)
        peer.sock.sendall(words)

    def leave(self) -> None:
        self._stack.close()


def hears(visitor: socket.socket, words: bytes) -> None:
    said = b""
    while len(said) < len(words):
        part = visitor.recv(100)
        assert part, f"hung up after {said!r}"
        said += part
    assert said == words


def test_a_visitor_waits_for_a_robot_that_moves(both: Fleet) -> None:
    """It opens a socket while nobody has the robot, and is served where that turns up."""
    one, two = both.sites
    robot = Robot(one, "b007", 1)
    wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
    robot.leave()
    both.wait_for_home(None)
    with two.tunnel.visit() as first, one.tunnel.visit() as second:
        robot = Robot(two, "b007", 2)
        for _ in range(2):
            robot.serve(b"here I am")
        hears(first, b"here I am")
        hears(second, b"here I am")
        robot.leave()


def test_a_visitor_goes_where_the_robot_has_gone(both: Fleet) -> None:
    """The first server still has a session, for it has not heard that the robot left: START has no answer."""
    one, two = both.sites
    before = Robot(one, "b007", 1)
    wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
    with one.tunnel.visit() as visitor:
        after = Robot(two, "b007", 2)
        both.wait_for_home(("s2", 2))
        after.serve(b"moved")
        hears(visitor, b"moved")
        after.leave()
    before.leave()


def test_nobody_waits_for_ever(both: Fleet) -> None:
    one, two = both.sites
    two.daemon.stop()
    two.start("--start-timeout=1")
    robot = Robot(one, "b007", 1)
    wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
    robot.leave()
    both.wait_for_home(None)
    with two.tunnel.visit() as visitor:
        assert visitor.recv(1) == b""
    two.daemon.wait_for_log("turned away: no server of the fleet has had the robot for 1 s")


def test_a_server_that_died_is_left_for_the_one_that_the_robot_is_at(both: Fleet) -> None:
    one, two = both.sites
    before = Robot(one, "b007", 1)
    wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
    one.crash()
    with two.tunnel.visit() as visitor:
        two.daemon.wait_for_log("server s1 .*is out of reach")
        after = Robot(two, "b007", 2)
        after.serve(b"alive")
        hears(visitor, b"alive")
        after.leave()
    before.leave()


def test_while_the_engine_is_away_the_others_are_asked(both: Fleet) -> None:
    """What was known last still leads to the robot; and when it moves, nobody can write that down."""
    one, two = both.sites
    before = Robot(one, "b007", 1)
    wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
    with contextlib.ExitStack() as away:
        for member in both.members.members:
            away.enter_context(member.stopped())
        for site in both.sites:
            site.daemon.wait_for_log("the fleet's engine does not answer")
        with two.tunnel.visit() as visitor:
            before.serve(b"still here")
            hears(visitor, b"still here")
        before.leave()
        after = Robot(two, "b007", 2)
        with one.tunnel.visit() as visitor:
            after.serve(b"over there")
            hears(visitor, b"over there")
        after.leave()


# One visitor's way, in this process: the server that is asked is a bare socket.


class Peers:
    """Channels to server s2, of which the test has the other ends.

    Attributes:
        ends: one for each that was lent.
        lent: how many are lent now.
        revoked: why its certificate is not good any more.
        all_lent: others have all channels.
    """

    def __init__(self) -> None:
        self.names = ["s2"]
        self.ends: list[FrameEnd] = []
        self.lent = 0
        self.revoked = ""
        self.all_lent = False

    @contextlib.asynccontextmanager
    async def lend(self, server: str, within: float) -> AsyncIterator[Channel]:
        if self.all_lent:
            await asyncio.sleep(within)
            raise Unreachable(f"no channel to server {server} within {within:g} s")
        near, far = tcp_pair()
        near.setblocking(False)
        far.setblocking(False)
        conversation = Conversation(Party.ASKING, PEER, State.STANDBY)
        ignore: Any = lambda _what: None  # noqa: E731
        channel = Channel(KernelLink(near, "suite", []), Party.ASKING, ignore, ignore, conversation)
        self.ends.append(FrameEnd(far))
        self.lent += 1
        try:
            yield channel
        finally:
            self.lent -= 1
            channel.close()

    def revocation(self, _channel: Channel) -> str | None:
        return self.revoked or None


class Here:
    """Server s1, which takes its robot to be at s2."""

    def __init__(self, folder: Path, patience: float) -> None:
        anything = Path("none")
        config = ServerConfig(ldir=folder, ca=anything, crt=anything, key=anything, start_timeout=patience)
        self.robots, self.durable = make_robots(config)
        self.directory = Directory("s1")
        self.directory.say(NAME, "s2", "5e55", 7)
        self.peers = Peers()
        registrar: Any = self.directory
        peers: Any = self.peers
        foreign: Any = SimpleNamespace(take_over=lambda _name: None)
        self.visits = Visits(Whereabouts(registrar, peers), peers, foreign, config.start_timeout)
        self.robots.elsewhere = self.visits
        self.robot = self.robots.provide(NAME)
        self.far: list[socket.socket] = []

    def comes(self) -> Visitor:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.far.append(theirs)
        now = asyncio.get_running_loop().time()
        visitor = make_visitor(ours, "", self.robot.visitors.next_number(), now)
        self.robot.visitors.take(visitor)
        return visitor

    async def asks(self, number: int = 0) -> FrameEnd:
        """The other end of a channel, once VISIT was said on it."""
        await until(lambda: len(self.peers.ends) > number, "a channel")
        assert isinstance(await self.peers.ends[number].hear(), Visit)
        return self.peers.ends[number]

    async def nobody_waits(self) -> None:
        await until(lambda: not list(self.visits.describe()), "the end of the visit")
        assert not self.robot.visitors.elsewhere
        assert self.robots.descriptors._promised == 0
        assert self.peers.lent == 0


def play(folder: Path, body: Callable[[Here], Awaitable[None]], patience: float = DEADLINE) -> None:
    async def run() -> None:
        here = Here(folder, patience)
        try:
            async with asyncio.timeout(DEADLINE):
                await body(here)
        finally:
            await here.visits.close()
            here.robot.dismiss("the test is over")
            for stream in here.durable.streams:
                stream.near.abort()
                stream.link.abort()
            for sock in [*here.far, *(end.sock for end in here.peers.ends)]:
                sock.close()

    asyncio.run(run())


def test_when_a_visitor_leaves_its_robots_server_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By the end of the channel, at once: others need it, and the robot need not serve anybody."""

    async def body(here: Here) -> None:
        here.comes()
        end = await here.asks()
        here.far[0].close()
        await end.hears_the_end()
        await here.nobody_waits()
        assert NAME not in here.robots
        assert not caplog.records

    play(tmp_path, body)


@pytest.mark.parametrize("asked", ["nobody", "a server"])
def test_one_that_is_turned_away_meanwhile_is_sought_no_more(
    tmp_path: Path, said: Said, caplog: pytest.LogCaptureFixture, asked: str
) -> None:
    """Its robot's sockets have been removed, for example; what its robot answers then comes too late."""

    async def body(here: Here) -> None:
        if asked == "nobody":
            here.peers.names = []
        here.comes()
        ends = [] if asked == "nobody" else [await here.asks()]
        here.robot.dismiss("nobody has it")
        for end in ends:
            await end.say(Connected())
            await end.hears_the_end()
        await here.nobody_waits()
        assert here.far[0].recv(1) == b""
        assert not here.durable.streams
        assert [text for _kind, text in said if "turned away" in text] == [said[0][1]]
        assert not caplog.records

    play(tmp_path, body)


def test_a_server_that_was_revoked_meanwhile_gets_nobody(tmp_path: Path) -> None:
    async def body(here: Here) -> None:
        here.comes()
        first = await here.asks()
        here.peers.revoked = "certificate 0c was revoked"
        await first.say(Connected())
        await first.hears_the_end()
        assert not here.durable.streams
        here.peers.revoked = ""
        second = await here.asks(1)
        await second.say(Connected())
        await until(lambda: here.durable.streams, "its stream")
        await here.nobody_waits()

    play(tmp_path, body)


def test_one_whose_robot_comes_and_goes_at_once_is_sought_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before anybody has noticed that the first search is over: there is one search, and it can be ended."""

    async def body(here: Here) -> None:
        visitor = here.comes()
        here.peers.names = []
        session: Any = SimpleNamespace(unreachable="", seat=lambda *_, **__: gone())

        def gone() -> None:
            """The robot has left before its visitor got a channel."""
            here.robot._session = None
            here.robot.visitors.seat(visitor)

        await until(lambda: here.robot.visitors.elsewhere, "the visitor")
        here.robot._session = session
        here.visits.came_back(here.robot)
        await until(lambda: here.robot._session is None, "the robot to come and go")
        await turns()
        assert list(here.visits.describe()) == ["1 visitor waiting for robots elsewhere"]
        assert here.robot.visitors.elsewhere == {visitor}
        await here.visits.close()
        await turns()
        assert list(here.visits.describe()) == []
        assert not caplog.records

    play(tmp_path, body)


def test_when_others_have_all_channels_nobody_waits_for_one_for_ever(tmp_path: Path, said: Said) -> None:
    async def body(here: Here) -> None:
        here.peers.all_lent = True
        here.comes()
        await here.nobody_waits()
        assert here.far[0].recv(1) == b""
        assert said[0][1].endswith("turned away: no channel to server s2 within 0.1 s")

    play(tmp_path, body, patience=0.1)


async def turns() -> None:
    """Let everybody do what there is to do now."""
    for _ in range(20):
        await asyncio.sleep(0)
