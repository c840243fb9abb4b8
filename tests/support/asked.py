"""A server of a fleet with a robot made by hand, as the other servers reach it: over real TLS."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography import x509

from shadow.daemon.config import ServerConfig
from shadow.fleet.answering import Answering
from shadow.fleet.peer_way import Manner, Way
from shadow.fleet.visits import Visits
from shadow.fleet.whereabouts import Whereabouts, ask
from shadow.net.address import Endpoint
from shadow.relay.ends import End
from shadow.server.robot import Robot
from shadow.server.robots import Robots
from shadow.server.session import Cause, Session
from shadow.transport.channel import Channel
from shadow.transport.link import KernelLink, Link
from shadow.wire.conversation import CONTROL, DATA, PEER, Party
from shadow.wire.frames import Frame, Hello, Moved, Visit, Welcome
from tests.support import DEADLINE, Authority, tcp_pair
from tests.support.answering import peer_trust
from tests.support.directory import Directory
from tests.support.frame_end import FrameEnd

NAME = "011"


class Stream:
    """What a relay makes of a visitor."""

    def __init__(self, near: End, link: Link) -> None:
        self.near, self.link = near, link
        self.links = [link]


class Durable:
    """Takes streams and does nothing with them; its own relay."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []

    @property
    def relay(self) -> "Durable":
        return self

    def make(self, near: End, link: Link) -> Stream:
        self.streams.append(Stream(near, link))
        return self.streams[-1]

    def keep(self, _pump: Stream, _facts: object) -> None:
        pass

    def adopt(self, pump: Stream, _on_end: object) -> None:
        pass


def make_robots(config: ServerConfig) -> tuple[Robots, Durable]:
    """Those of one server, without any files."""
    durable = Durable()
    trust: Any = SimpleNamespace(no_ktls=None, revocation=lambda _link: None)
    relay: Any = durable
    return Robots(config, relay, trust), durable


class Asked:
    """Server b, which server a asks.

    Attributes:
        directory: what b knows of it.
        revoked: the servers whose certificates are not good any more.
    """

    robot: Robot

    def __init__(self, authority: Authority, folder: Path, **settings: Any) -> None:
        anything = Path("none")
        self.config = ServerConfig(ldir=folder, ca=anything, crt=anything, key=anything, **settings)
        self.robots, self.durable = make_robots(self.config)
        self.directory = Directory("b")
        self.revoked: set[str] = set()
        self.trust = trust = peer_trust(authority, "b")

        def revocation(link: Link) -> str | None:
            server = trust.server_of(link)
            return f"{server} was revoked" if server in self.revoked else None

        trust.revocation = revocation
        server: Any = SimpleNamespace(robots=self.robots, trust=SimpleNamespace(lists=()))
        registrar: Any = self.directory
        self.answering = Answering(server, self.config, "robots", self.trust, registrar)
        nobody: Any = SimpleNamespace(names=[])
        foreign: Any = SimpleNamespace(take_over=lambda _name: None)
        self.visits = Visits(Whereabouts(registrar, nobody), nobody, foreign, 10.0)
        self.robots.elsewhere = self.visits
        self._authority = authority
        self._certificate = x509.load_pem_x509_certificate(authority.robot(NAME)[0].read_bytes())
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.endpoint = Endpoint(*self._listener.getsockname()[:2])
        self.answering.open([self._listener])
        self._things: list[socket.socket] = []
        self._channels: list[Channel] = []

    async def close(self) -> None:
        for channel in self._channels:
            channel.close()
        await self.answering.close()
        await self.visits.close()
        for robot in list(self.robots.values()):
            robot.end_session("the test is over", Cause.LOST)
            for visitor, channel in list(robot.visitors.starting.items()):
                channel.abort()
                visitor.close()
            robot.dismiss("the test is over")
        for stream in self.durable.streams:
            stream.near.abort()
            stream.link.abort()
        for sock in self._things:
            sock.close()
        self._listener.close()

    # Server a

    async def dial(self, server: str = "a", hello: Hello | None = None) -> Channel:
        """A channel that stands by, from a server that says this."""
        hello = hello or Hello(1, PEER, server, fleet="robots")
        manner = Manner(hello, peer_trust(self._authority, server), 30.0, DEADLINE)
        channel = await Way("b", self.endpoint, manner).open()
        self._channels.append(channel)
        return channel

    def ask(self, channel: Channel, frame: Frame) -> "asyncio.Task[Frame]":
        return asyncio.create_task(ask(channel, frame, DEADLINE))

    async def answer(self, frame: Frame) -> Frame:
        return await self.ask(await self.dial(), frame)

    # The robot

    @property
    def session(self) -> Session:
        session = self.robot.session
        assert session is not None
        return session

    async def connect(self, hello: Hello) -> FrameEnd:
        near, far = tcp_pair()
        near.setblocking(False)
        far.setblocking(False)
        self._things.append(far)
        end = FrameEnd(far)
        robot = self.robot = self.robots.provide(NAME)

        def greet(frame: Frame) -> None:
            assert isinstance(frame, Hello)
            if frame.role == CONTROL:
                robot.begin_session(robot.meet(channel, frame, "198.51.100.7:1234"))
            else:
                robot.add_standby(channel, frame)

        channel = Channel(KernelLink(near, "suite", [self._certificate]), Party.SERVER, greet, lambda _: None)
        await end.say(hello)
        assert isinstance(await end.hear(), Welcome)
        return end

    async def begin(self, *services: str) -> FrameEnd:
        return await self.connect(Hello(1, CONTROL, NAME, services or ("",), boot="b007" * 4, attempt=3))

    async def stand_by(self) -> FrameEnd:
        return await self.connect(Hello(1, DATA, NAME, session=self.session.id))


def a_visit(sid: str, revision: int = 0, service: str = "") -> Visit:
    """Of a visitor at server a."""
    return Visit(NAME, service, "2a", sid, revision, 1000, "alice", 4711)


NOWHERE = Moved()


def play(
    authority: Authority, folder: Path, body: Callable[[Asked], Awaitable[None]], **settings: Any
) -> None:
    """Ask a server; ``settings`` are its own."""

    async def run() -> None:
        asked = Asked(authority, folder, **settings)
        try:
            async with asyncio.timeout(DEADLINE):
                await body(asked)
        finally:
            await asked.close()

    asyncio.run(run())
