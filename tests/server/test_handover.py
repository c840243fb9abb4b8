"""A planned restart: what the server leaves of its robots, and how the next one takes it up.

A plain TCP socket plays the link that the kernel encrypts, so the robot's end is a bare socket that speaks
frames. tests/machine/test_restart.py has the real ones.
"""

import asyncio
import contextlib
import dataclasses
import functools
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509

from shadow import events
from shadow.errors import IdentityError, LocalError, PeerError
from shadow.net.address import Endpoint
from shadow.net.lines import Line
from shadow.relay.ends import End, Plain
from shadow.server import handover
from shadow.server.directory import Alone
from shadow.server.robot import Robot
from shadow.server.robots import Robots
from shadow.server.session import Cause
from shadow.server.trust import Offer
from shadow.server.visitor import Visitor
from shadow.systemd.bundle import Letter
from shadow.systemd.mailbox import Mailbox
from shadow.transport.channel import Channel
from shadow.transport.link import KernelLink, Link
from shadow.wire.codec import encode
from shadow.wire.conversation import CONTROL, DATA, Party
from shadow.wire.frames import Dial, Frame, Hello, Ping, Pong, Start, Started, Welcome
from tests.support import DEADLINE, Authority, tcp_pair
from tests.support.frame_end import FrameEnd
from tests.support.log import Said
from tests.support.store import Store

SUITE = "ECDHE-ECDSA-AES128-GCM-SHA256"
NAME = "011"


class Stream:
    """What a relay makes of a visitor; its link has a line."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.links = [link]


class DurableStreams:
    """Takes streams and does nothing with them; its own relay."""

    def __init__(self) -> None:
        self.started: list[tuple[socket.socket, Link]] = []
        self.pumps: list[Stream] = []

    @property
    def relay(self) -> "DurableStreams":
        return self

    def make(self, near: Plain, link: Link) -> Stream:
        self.started.append((near.sock, link))
        return Stream(link)

    def keep(self, _pump: Stream, _facts: object) -> None:
        pass

    def adopt(self, pump: Stream, _on_end: object) -> None:
        self.pumps.append(pump)


class ServerSide:
    """The robots of one daemon.

    Attributes:
        robot: the one that was admitted last.
    """

    robot: Robot

    def __init__(self, ldir: Path) -> None:
        self.durable = DurableStreams()
        self.refuses: str = ""
        self.offer = Offer("c0ffee", 30.0)
        config: Any = SimpleNamespace(
            ldir=ldir, keepalive=30.0, start_timeout=10.0, max_streams=100, signer=None, advertise=None
        )
        self.config = config
        trust: Any = SimpleNamespace(no_ktls=None)
        self.robots = Robots(config, self.durable, trust)  # type: ignore[arg-type]

    def readmit(self, link: Link) -> Robot:
        if self.refuses:
            raise IdentityError(self.refuses)
        self.robot = self.robots.provide(NAME)
        return self.robot

    def elsewhere(self, name: str) -> Robot | None:
        return self.robots.provide(name) if self.robots.elsewhere.take_over(name) else None

    def leave(self, store: Store) -> bool:
        with contextlib.closing(Mailbox(store)) as mailbox:  # type: ignore[arg-type]
            return handover.park(self.robot, mailbox, self.offer)

    def take_up(self, store: Store) -> int:
        store.start_again()
        return handover.resume(store, self)  # type: ignore[arg-type]


class Scene:
    """A robot that is connected to a daemon, and the next daemon.

    Attributes:
        welcome: the last one.
    """

    welcome: Welcome

    def __init__(self, ldir: Path, certificate: x509.Certificate) -> None:
        self.ldir = ldir
        self.store = Store(limit=20)
        self.before, self.after = ServerSide(ldir), ServerSide(ldir)
        self.control: FrameEnd
        self._certificate = certificate
        self._things: list[socket.socket] = []

    async def connect(self, hello: Hello, server: ServerSide | None = None) -> FrameEnd:
        """A new connection that has been welcomed."""
        near, far = tcp_pair()
        near.setblocking(False)
        far.setblocking(False)
        self._things.append(far)
        end = FrameEnd(far)
        robot = (server or self.before).readmit(link := KernelLink(near, SUITE, [self._certificate]))

        def greet(frame: Frame) -> None:
            assert isinstance(frame, Hello)
            if frame.role == CONTROL:
                robot.begin_session(robot.meet(channel, frame, "198.51.100.7:1234"))
            else:
                robot.add_standby(channel, frame)

        channel = Channel(link, Party.SERVER, greet, lambda _error: None)
        await end.say(hello)
        welcome = await end.hear()
        assert isinstance(welcome, Welcome)
        self.welcome = welcome
        return end

    async def begin(self, *services: str) -> None:
        self.control = await self.connect(Hello(1, CONTROL, NAME, services or ("",)))

    async def stand_by(self, server: ServerSide | None = None) -> FrameEnd:
        session = (server or self.before).robot.session
        assert session is not None
        return await self.connect(Hello(1, DATA, NAME, session=session.id), server)

    def visit(self, name: str = NAME) -> socket.socket:
        visitor = socket.socket(socket.AF_UNIX)
        visitor.settimeout(DEADLINE)
        visitor.connect(str(self.ldir / f"{name}.sock"))
        self._things.append(visitor)
        return visitor

    def restart(self) -> int:
        assert self.before.leave(self.store)
        return self.after.take_up(self.store)

    def close(self) -> None:
        for server in (self.before, self.after):
            for robot in list(server.robots.values()):
                robot.end_session("the test is over", Cause.LOST)
                for visitor, channel in robot.visitors.starting.items():
                    channel.abort()
                    visitor.close()
                robot.dismiss("the test is over")
            for plain, link in server.durable.started:
                plain.close()
                link.sock.close()
        for sock in self._things:
            sock.close()
        self.store.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


def play(authority: Authority, folder: Path, body: Callable[[Scene], Awaitable[None]]) -> None:
    crt, _key = authority.robot(NAME)
    certificate = x509.load_pem_x509_certificate(crt.read_bytes())

    async def run() -> None:
        scene = Scene(folder, certificate)
        try:
            await body(scene)
        finally:
            scene.close()

    asyncio.run(run())


def test_the_robot_notices_nothing(authority: Authority, tmp_path: Path, said: Said) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin("", "web")
        before = scene.before.robot.session
        standby = await scene.stand_by()
        inodes = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
        assert set(inodes) == {"011.sock", "web@011.sock"}
        said.clear()
        assert scene.restart() == 1
        assert said == [(events.SessionsResumed, "resumed 1 session of the daemon before this one")]
        assert scene.control.is_silent
        assert standby.is_silent
        assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == inodes
        await scene.control.say(Ping(3.0))
        assert await scene.control.hear() == Pong(3.0)
        after = scene.after.robot.session
        assert before is not None
        assert after is not None
        assert (after.id, after.services, after.peer, after.since) == (
            before.id, before.services, before.peer, before.since,
        )  # fmt: skip
        assert after.keepalive.interval == 30.0
        assert scene.store.kept == {}
        # And everything works.
        scene.visit("web@011")
        start = await standby.hear()
        assert isinstance(start, Start)
        assert start.service == "web"
        await standby.say(Started())
        await until(lambda: scene.after.durable.started)

    play(authority, tmp_path, body)


def test_another_address_for_data_channels_is_for_new_sessions(authority: Authority, tmp_path: Path) -> None:
    """Robots keep what they were told: nothing has changed for them, and their session goes on."""

    async def body(scene: Scene) -> None:
        scene.before.config.advertise = Endpoint("192.0.2.7", 2222)
        await scene.begin()
        assert scene.welcome.dial == "192.0.2.7:2222"
        await scene.stand_by()
        assert scene.welcome.dial == "", "a data channel has arrived"
        scene.after.config.advertise = Endpoint("192.0.2.8", 2222)
        assert scene.restart() == 1
        assert scene.control.is_silent
        await scene.connect(Hello(1, CONTROL, NAME, ("",)), scene.after)
        assert scene.welcome.dial == "192.0.2.8:2222"

    play(authority, tmp_path, body)


def test_streams_know_when_their_robot_was_heard(authority: Authority, tmp_path: Path) -> None:
    """Before a restart and after it, those that run and those that begin."""

    async def heard(scene: Scene, line: Line | None) -> bool:
        assert line is not None
        _since, before = line.times
        await scene.control.say(Ping(3.0))
        assert await scene.control.hear() == Pong(3.0)
        return line.times[1] > before

    async def body(scene: Scene) -> None:
        began = asyncio.get_running_loop().time()
        await scene.begin()
        for server in (scene.before, scene.after):
            if server is scene.after:
                scene.restart()
            standby = await scene.stand_by(server)
            scene.visit()
            assert isinstance(await standby.hear(), Start)
            await standby.say(Started())
            await until(functools.partial(getattr, server.durable, "pumps"))
            line = server.durable.pumps[0].link.line
            assert line is not None
            assert line.times[1] >= began, "its WELCOME tells as well"
            assert await heard(scene, line)

    play(authority, tmp_path, body)


def test_who_connects_in_the_gap_waits(authority: Authority, tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        scene.before.leave(scene.store)
        visitor = scene.visit()
        visitor.send(b"hello")
        await asyncio.sleep(0)
        scene.after.take_up(scene.store)
        assert await scene.control.hear() == Dial(1)
        standby = await scene.stand_by(scene.after)
        assert isinstance(await standby.hear(), Start)
        await standby.say(Started())
        await until(lambda: scene.after.durable.started)
        assert scene.after.durable.started[0][0].recv(10) == b"hello"

    play(authority, tmp_path, body)


def test_a_visitor_that_waits_is_served_by_the_next(authority: Authority, tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        scene.visit().send(b"hello")
        assert await scene.control.hear() == Dial(1)
        scene.restart()
        assert await scene.control.hear() == Dial(1)
        standby = await scene.stand_by(scene.after)
        start = await standby.hear()
        assert isinstance(start, Start)
        await standby.say(Started())
        await until(lambda: scene.after.durable.started)
        assert scene.after.durable.started[0][0].recv(10) == b"hello"
        # Its number is nobody else's.
        scene.visit()
        other = await scene.stand_by(scene.after)
        later = await other.hear()
        assert isinstance(later, Start)
        assert int(later.stream, 16) > int(start.stream, 16)

    play(authority, tmp_path, body)


@pytest.mark.parametrize("answered", ["before the restart", "in the gap", "after"])
def test_a_start_under_way_is_not_lost(authority: Authority, tmp_path: Path, answered: str) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        channel = await scene.stand_by()
        visitor = scene.visit()
        assert isinstance(await channel.hear(), Start)
        if answered == "before the restart":
            await channel.say(Started())
        assert scene.before.leave(scene.store)
        if answered == "in the gap":
            await channel.say(Started())
        visitor.send(b"hello")
        scene.after.take_up(scene.store)
        if answered == "after":
            await channel.say(Started())
        await until(lambda: scene.after.durable.started)
        ((plain, link),) = scene.after.durable.started
        assert plain.recv(10) == b"hello"
        channel.sock.send(b"from the robot")
        assert await asyncio.get_running_loop().sock_recv(link.sock, 20) == b"from the robot"
        assert not scene.after.robot.visitors.starting

    play(authority, tmp_path, body)


def test_what_resumed_visitors_will_need_is_reserved(authority: Authority, tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        starting = await scene.stand_by()
        scene.visit()
        assert isinstance(await starting.hear(), Start)
        scene.visit()
        assert await scene.control.hear() == Dial(1)
        scene.restart()
        descriptors = scene.after.robots.descriptors
        assert descriptors._promised == 2 * descriptors._later
        await starting.say(Started())
        await until(lambda: descriptors._promised == descriptors._later)
        scene.after.robot.end_session("the test wants it", Cause.OPERATOR)
        assert descriptors._promised == 0

    play(authority, tmp_path, body)


def test_a_start_under_way_needs_no_session(authority: Authority, tmp_path: Path) -> None:
    """The control channel broke, and before the robot is back the server is restarted."""

    async def body(scene: Scene) -> None:
        await scene.begin()
        channel = await scene.stand_by()
        visitor = scene.visit()
        assert isinstance(await channel.hear(), Start)
        scene.control.sock.close()
        await until(lambda: scene.before.robot.session is None)
        assert not scene.before.leave(scene.store)
        visitor.send(b"hello")
        assert scene.after.take_up(scene.store) == 0
        await channel.say(Started())
        await until(lambda: scene.after.durable.started)
        assert scene.after.durable.started[0][0].recv(10) == b"hello"

    play(authority, tmp_path, body)


def test_a_start_that_cannot_be_left_is_ended_on_both_sides(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        channel = await scene.stand_by()
        visitor = scene.visit()
        assert isinstance(await channel.hear(), Start)

        def put(_mailbox: Mailbox, _letter: Letter) -> None:
            raise LocalError("full")

        monkeypatch.setattr(Mailbox, "put", put)
        assert not scene.before.leave(scene.store)
        assert not scene.before.robot.visitors.starting
        await channel.hears_the_end()
        assert visitor.recv(1) == b""

    play(authority, tmp_path, body)


@pytest.mark.parametrize(("what", "other"), [("certificate", "another"), ("keepalive", 20.0)])
def test_another_offer_wants_another_session(
    authority: Authority, tmp_path: Path, said: Said, what: str, other: Any
) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        standby = await scene.stand_by()
        scene.before.leave(scene.store)
        said.clear()
        scene.after.offer = dataclasses.replace(scene.after.offer, **{what: other})
        assert scene.after.take_up(scene.store) == 0
        await scene.control.hears_the_end()
        await standby.hears_the_end()
        assert not list(tmp_path.iterdir())
        text = "1 robot to connect again: the server has another certificate or --keepalive now"
        assert said == [(events.SessionGivenUp, text)]

    play(authority, tmp_path, body)


def test_a_socket_that_cannot_be_made_ends_the_session(
    authority: Authority, tmp_path: Path, said: Said
) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        scene.before.leave(scene.store)
        (tmp_path / "011.sock").unlink()
        (tmp_path / "011.sock").write_text("precious")
        said.clear()
        assert scene.after.take_up(scene.store) == 0
        assert [event for event, _text in said] == [events.SocketFailed, events.RobotDisconnected]
        await scene.control.hears_the_end()
        assert (tmp_path / "011.sock").read_text() == "precious"

    play(authority, tmp_path, body)


def test_a_robot_that_left_in_the_gap_is_noticed(authority: Authority, tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        scene.before.leave(scene.store)
        scene.control.sock.close()
        scene.after.take_up(scene.store)
        await until(lambda: scene.after.robot.session is None)
        assert not list(tmp_path.iterdir())

    play(authority, tmp_path, body)


def test_a_robot_that_would_not_be_let_in_today_is_not_kept(
    authority: Authority, tmp_path: Path, said: Said
) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        standby = await scene.stand_by()
        scene.before.leave(scene.store)
        visitor = scene.visit()
        scene.after.refuses = "its certificate is not good any more"
        said.clear()
        assert scene.after.take_up(scene.store) == 0
        await scene.control.hears_the_end()
        await standby.hears_the_end()
        with contextlib.suppress(ConnectionResetError):
            assert visitor.recv(1) == b""
        assert not list(tmp_path.iterdir())
        assert [event for event, _text in said] == [events.SessionGivenUp] * 2
        assert "a session of the daemon before this one cannot go on and ends: its certificate" in said[0][1]

    play(authority, tmp_path, body)


def test_a_standby_with_another_certificate_is_checked(authority: Authority, tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        crt, _key = authority.robot("012")
        scene._certificate = x509.load_pem_x509_certificate(crt.read_bytes())
        standby = await scene.stand_by()
        scene.before.leave(scene.store)
        admit, calls = scene.after.readmit, []

        def admit_one(link: Link) -> Robot:
            calls.append(link)
            if len(calls) == 2:
                raise IdentityError("no")
            return admit(link)

        scene.after.readmit = admit_one  # type: ignore[method-assign]
        assert scene.after.take_up(scene.store) == 1
        assert len(calls) == 2
        await standby.hears_the_end()

    play(authority, tmp_path, body)


def test_what_cannot_be_left_is_ended_in_order(authority: Authority, tmp_path: Path, said: Said) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        session = scene.before.robot.session
        assert session is not None
        await scene.control.say(Ping(1.0))
        await scene.control.hear()
        scene.control.sock.send(encode(Ping(1.0))[:3])  # half a frame
        await until(lambda: not session.channel._decoder.idle)
        said.clear()
        assert not scene.before.leave(scene.store)
        await scene.control.hears_the_end()
        assert not list(tmp_path.iterdir())
        assert said == [
            (
                events.RobotDisconnected,
                f"robot {NAME} disconnected: the server is stopping, in the middle of a frame",
            )
        ]

    play(authority, tmp_path, body)


def test_a_full_store_ends_what_does_not_fit(
    authority: Authority, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        standby = await scene.stand_by()
        puts: list[Letter] = []

        def put(_mailbox: Mailbox, letter: Letter) -> None:
            if len(puts) == 1:
                raise LocalError("full")
            puts.append(letter)

        monkeypatch.setattr(Mailbox, "put", put)
        said.clear()
        assert scene.before.leave(scene.store)
        assert not list(tmp_path.iterdir()), "the socket must not stay, with nobody behind it"
        await standby.hears_the_end()
        assert [event for event, _text in said] == [events.SessionGivenUp] * 2
        assert all(text.endswith("ends with this daemon: full") for _event, text in said)

    play(authority, tmp_path, body)


@pytest.mark.parametrize(
    "letter",
    [
        {"kind": "session"},
        {"kind": "horse", "robot": NAME},
        {"kind": "socket", "robot": NAME},
        {"kind": "standby", "robot": NAME, "chain": ["rubbish"]},
        {"kind": "start", "robot": NAME, "visitor": {}},
        {"kind": "visitor", "robot": NAME, "stream": "no number"},
        {"kind": "visitor", "robot": "unknown"},
        {"robot": ["x"]},
        {},
    ],
)
def test_letters_that_make_no_sense_end_what_they_are_about(
    authority: Authority, tmp_path: Path, said: Said, letter: dict[str, Any]
) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        ours, theirs = socket.socketpair()
        theirs.settimeout(DEADLINE)
        with contextlib.closing(Mailbox(scene.store)) as mailbox, ours:  # type: ignore[arg-type]
            assert handover.park(scene.before.robot, mailbox, scene.before.offer)
            mailbox.put(Letter(letter, [ours.fileno(), ours.fileno()]))
        said.clear()
        assert scene.after.take_up(scene.store) == 1
        assert [event for event, _text in said] == [events.SessionGivenUp, events.SessionsResumed]
        assert theirs.recv(1) == b""
        theirs.close()
        await scene.control.say(Ping(1.0))
        assert await scene.control.hear() == Pong(1.0)

    play(authority, tmp_path, body)


def test_a_letter_with_what_is_no_socket(authority: Authority, tmp_path: Path, said: Said) -> None:
    async def body(scene: Scene) -> None:
        nothing = os.open(os.devnull, os.O_RDONLY)
        with contextlib.closing(Mailbox(scene.store)) as mailbox:  # type: ignore[arg-type]
            mailbox.put(Letter({"kind": "visitor", "robot": NAME}, [nothing]))
            mailbox.put(Letter({"kind": "visitor", "robot": NAME}, []))
        os.close(nothing)
        assert scene.after.take_up(scene.store) == 0
        assert [event for event, _text in said] == [events.SessionGivenUp] * 2

    play(authority, tmp_path, body)


def test_a_socket_whose_file_is_gone_is_made_anew(authority: Authority, tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        scene.before.leave(scene.store)
        (tmp_path / "011.sock").unlink()
        scene.after.take_up(scene.store)
        scene.visit()
        assert await scene.control.hear() == Dial(1)

    play(authority, tmp_path, body)


def test_another_folder_for_sockets(authority: Authority, tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        (tmp_path / "old").mkdir()
        (tmp_path / "new").mkdir()
        scene.before = ServerSide(tmp_path / "old")
        scene.after = ServerSide(tmp_path / "new")
        await scene.begin()
        assert scene.restart() == 1
        assert not list((tmp_path / "old").iterdir())
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["011.sock"]

    play(authority, tmp_path, body)


def test_a_robot_without_a_session_leaves_nothing(authority: Authority, tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        scene.before.robot.end_session("gone", Cause.LOST)
        assert not scene.before.leave(scene.store)
        assert not scene.store.kept

    play(authority, tmp_path, body)


class Others(Alone):
    """Other servers, at which a robot may be."""

    def __init__(self) -> None:
        self.taken_over: list[str] = []
        self.visitors: list[Visitor] = []
        self.back: list[str] = []

    def take_over(self, name: str) -> bool:
        self.taken_over.append(name)
        return True

    def pass_on(self, robot: Robot, visitor: Visitor) -> bool:
        robot.visitors.elsewhere.add(visitor)
        self.visitors.append(visitor)
        return True

    def came_back(self, robot: Robot) -> None:
        self.back.append(robot.name)
        for visitor in list(robot.visitors.elsewhere):
            robot.visitors.seat(visitor)


def test_a_robot_that_may_be_elsewhere_is_visited_there_and_keeps_its_sockets(
    authority: Authority, tmp_path: Path
) -> None:
    async def body(scene: Scene) -> None:
        others = scene.before.robots.elsewhere = Others()
        await scene.begin("", "web")
        early = scene.visit()
        robot = scene.before.robot
        await until(lambda: robot.session is not None and robot.session.board.visitors)
        robot.end_session("it has moved", Cause.SUPERSEDED)
        assert others.taken_over == [NAME]
        assert {path.name for path in tmp_path.iterdir()} == {"011.sock", "web@011.sock"}
        late = scene.visit("web@011")
        await until(lambda: len(others.visitors) == 2)
        assert [visitor.service for visitor in others.visitors] == ["", "web"]
        assert [visitor.timer for visitor in others.visitors] == [None, None], (
            "their time is the others' concern"
        )
        assert scene.before.robots[NAME] is robot
        assert not robot.is_here
        # It comes back: they are served here.
        await scene.begin("", "web")
        assert others.back == [NAME]
        assert not robot.visitors.elsewhere
        for _ in range(2):
            assert isinstance(await (await scene.stand_by()).hear(), Start)
        early.close()
        late.close()

    play(authority, tmp_path, body)


def test_visitors_and_sockets_of_robots_elsewhere_are_left_to_the_next_daemon(
    authority: Authority, tmp_path: Path
) -> None:
    async def body(scene: Scene) -> None:
        scene.before.robots.elsewhere = Others()
        await scene.begin("", "web")
        scene.before.robot.end_session("it has moved", Cause.SUPERSEDED)
        visitor = scene.visit()
        await until(lambda: scene.before.robot.visitors.elsewhere)
        (before,) = scene.before.robot.visitors.elsewhere
        before.user, before.host = "alice", "s2"
        inodes = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
        scene.before.leave(scene.store)
        others = scene.after.robots.elsewhere = Others()
        assert scene.after.take_up(scene.store) == 0
        assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()} == inodes
        (after,) = others.visitors
        assert (after.stream, after.user, after.host) == (before.stream, "alice", "s2")
        assert others.taken_over.count(NAME) >= 1
        scene.visit("web@011")
        await until(lambda: len(others.visitors) == 2)
        scene.after.robots[NAME].dismiss("nobody has it")
        assert visitor.recv(1) == b""
        assert list(tmp_path.iterdir()) == []
        assert NAME not in scene.after.robots

    play(authority, tmp_path, body)


def test_a_visitor_of_a_robot_without_sockets_is_left_to_the_next_daemon(
    authority: Authority, tmp_path: Path
) -> None:
    """As one is who has named a robot at the gate, which nobody has at the moment."""

    async def body(scene: Scene) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            scene.before.robots.elsewhere = Others()
            robot = scene.before.robot = scene.before.robots.provide(NAME)
            robot.visitors.came("web", theirs)
            scene.before.leave(scene.store)
            others = scene.after.robots.elsewhere = Others()
            assert scene.after.take_up(scene.store) == 0
            (visitor,) = others.visitors
            assert visitor.service == "web"
            ours.sendall(b"still there")
            assert visitor.sock.recv(100) == b"still there"
            scene.after.robots[NAME].dismiss("nobody has it")
            assert ours.recv(1) == b""
            assert not scene.after.robots

    play(authority, tmp_path, body)


def test_without_a_fleet_nobody_waits_for_robots_elsewhere(authority: Authority, tmp_path: Path) -> None:
    """The next daemon has other settings: what was left is cleared away."""

    async def body(scene: Scene) -> None:
        scene.before.robots.elsewhere = Others()
        await scene.begin()
        scene.before.robot.end_session("it has moved", Cause.SUPERSEDED)
        visitor = scene.visit()
        await until(lambda: scene.before.robot.visitors.elsewhere)
        scene.before.leave(scene.store)
        assert scene.after.take_up(scene.store) == 0
        assert visitor.recv(1) == b""
        assert list(tmp_path.iterdir()) == []
        assert not scene.after.robots

    play(authority, tmp_path, body)


class Afar:
    """A visitor's door at another server."""

    def __init__(self) -> None:
        self.left = False
        self.said: list[str] = []

    def enter(self) -> End:
        raise PeerError("gone")

    def refuse(self, why: str) -> None:
        self.said.append(why)

    def close(self) -> None:
        self.said.append("closed")


def test_who_comes_from_another_server_comes_again(authority: Authority, tmp_path: Path, said: Said) -> None:
    """Neither one that waits nor one that is being started is left; that is no reason for a warning."""

    async def body(scene: Scene) -> None:
        await scene.begin()
        robot, doors = scene.before.robot, [Afar(), Afar()]
        standby = await scene.stand_by()
        for door in doors:
            robot.visitors.take(Visitor(door, "", robot.visitors.next_number(), 1000, 7, 1.0))
        assert isinstance(await standby.hear(), Start)
        said.clear()
        assert scene.restart() == 1
        assert [door.said for door in doors] == [["closed"], ["closed"]]
        await standby.hears_the_end()
        assert [event for event, _text in said] == [events.SessionsResumed]

    play(authority, tmp_path, body)
