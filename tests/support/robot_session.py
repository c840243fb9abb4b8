"""A robot's session, left by one client and taken up by the next.

A plain TCP socket plays the link that the kernel encrypts, and the server's end is a bare socket that speaks
frames.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography import x509

from shadow.client import handover
from shadow.client.attempts import Boot
from shadow.client.opening import Opener
from shadow.client.session import Agreed, Session
from shadow.client.streams import Streams
from shadow.client.trust import Trust
from shadow.daemon.config import ClientConfig
from shadow.net.address import Target
from shadow.net.lines import Lines
from shadow.transport.channel import Channel
from shadow.transport.link import KernelLink, Link
from shadow.wire.conversation import CONTROL, DATA, Party
from shadow.wire.frames import Hello, Start, Welcome
from tests.support import Authority, tcp_pair
from tests.support.frame_end import FrameEnd
from tests.support.store import Store

SUITE = "ECDHE-ECDSA-AES128-GCM-SHA256"
CONFIG = ClientConfig(
    rhost=("tunnel.example",),
    rport=4242,
    robot="011",
    ca=Path("ca"),
    crt=Path("crt"),
    key=Path("key"),
    lhost="127.0.0.1",
    lport=22,
    standby=1,
    connect_timeout=10.0,
)


class Services:
    """Takes visitors and connects none."""

    def __init__(self) -> None:
        self.started: list[tuple[Channel, Start]] = []

    def connect(self, channel: Channel, start: Start, _outcome: Callable[[bool], None]) -> None:
        self.started.append((channel, start))


class Scene:
    """A client that is connected, and the next client."""

    def __init__(self, certificate: x509.Certificate) -> None:
        self.store = Store()
        self.services = Services()
        self.lines = Lines()
        self.fingerprint = "c0ffee"
        self.boot = Boot("b007", 3)
        self.control: FrameEnd
        self.standby: FrameEnd
        self._certificate = certificate
        self._sessions: list[Session] = []
        self._things: list[socket.socket] = []

    def opener(self, config: ClientConfig = CONFIG) -> Opener:
        """What makes the sessions of a client with these settings."""
        durable: Any = None
        streams = Streams(config.robot, durable)
        opener = Opener(config, streams)
        opener._lines = self.lines
        opener._services = self.services  # type: ignore[assignment]
        return opener

    def channel(self, role: str) -> tuple[Channel, FrameEnd]:
        near, far = tcp_pair()
        near.setblocking(False)
        far.setblocking(False)
        self._things.append(far)
        link = KernelLink(near, SUITE, [self._certificate])
        channel = Channel(link, Party.ROBOT, lambda _frame: None, lambda _error: None)
        hello, welcome = Hello(1, role, "011"), Welcome(1, "an id", 20.0)
        channel.conversation.sent(hello)
        channel.conversation.received(welcome)
        return channel, FrameEnd(far)

    def begin(
        self, welcome: Welcome | None = None, *, name: str = "", config: ClientConfig = CONFIG
    ) -> Session:
        """A session that has just been welcomed, with one channel standing by."""
        target = Target(socket.AF_INET, ("198.51.100.1", 4242), name)
        control, self.control = self.channel(CONTROL)
        agreed = Agreed.at_welcome(welcome or Welcome(1, "an id", 20.0), target, "011")
        session = self.opener(config).session(control, agreed, self._settings)
        session.begin()
        standby, self.standby = self.channel(DATA)
        session.standbys.add(standby)
        self._sessions.append(session)
        return session

    @property
    def _settings(self) -> Any:
        return SimpleNamespace(fingerprint=self.fingerprint)

    def leave(self, session: Session, config: ClientConfig = CONFIG) -> bool:
        """The client that has it ends."""
        offer = self._trust(config).offer(session.certificate)
        left = handover.park(session, self.boot.to_json(), offer, self.store)  # type: ignore[arg-type]
        session.close()
        return left

    def take_up(
        self, config: ClientConfig = CONFIG, check: Callable[[Link], None] = lambda _link: None
    ) -> Session | None:
        """What the next client makes of that."""
        self.store.start_again()
        trust = self._trust(config)
        trust.check = check  # type: ignore[method-assign, assignment]
        opener = self.opener(config)
        session = handover.resume(self.store, opener, trust)  # type: ignore[arg-type]
        self.boot = opener.boot
        if session is not None:
            self._sessions.append(session)
        return session

    def _trust(self, config: ClientConfig) -> Trust:
        """Without any files."""
        trust = Trust.__new__(Trust)
        trust._config, trust.settings = config, self._settings
        return trust

    def take_up_all(self) -> Session:
        """The session, which must go on."""
        session = self.take_up()
        assert session is not None
        return session

    async def close(self) -> None:
        for session in self._sessions:
            session.close()
        for channel, _start in self.services.started:
            channel.abort()
        for sock in self._things:
            sock.close()
        self.store.close()
        await asyncio.sleep(0)


def play(authority: Authority, body: Callable[[Scene], Awaitable[None]]) -> None:
    crt, _key = authority.server()
    certificate = x509.load_pem_x509_certificate(crt.read_bytes())

    async def run() -> None:
        scene = Scene(certificate)
        try:
            await body(scene)
        finally:
            await scene.close()

    asyncio.run(run())
