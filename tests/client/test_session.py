"""What a robot's client leaves when it is restarted as planned, and how the next one takes it up.

How a session begins, lives and ends is in test_client.py, with a real server. Here a plain TCP socket plays
the link that the kernel encrypts, and the server's end is a bare socket that speaks frames.
"""

import asyncio
import contextlib
import random
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from shadow.client.approach import Approach
from shadow.client.client import Client
from shadow.client.session import Session
from shadow.daemon.config import ClientConfig
from shadow.errors import ConfigError, IdentityError
from shadow.events import Event
from shadow.net.address import Endpoint, Target
from shadow.net.lines import Lines
from shadow.pki.certificates import Purpose, load_certificates
from shadow.relay.durable import DurableStreams
from shadow.relay.pool import Relay
from shadow.systemd.bundle import Letter
from shadow.systemd.mailbox import Mailbox, collect
from shadow.transport.channel import Channel
from shadow.transport.link import KernelLink, Link
from shadow.wire.conversation import CONTROL, DATA, Party
from shadow.wire.frames import Hello, Ping, Pong, Start, Welcome
from tests.support import Authority, tcp_pair
from tests.support.frame_end import FrameEnd
from tests.support.store import Store

SUITE = "ECDHE-ECDSA-AES128-GCM-SHA256"
CONFIG = ClientConfig(
    rhost="tunnel.example",
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
        self.control: FrameEnd
        self.standby: FrameEnd
        self._certificate = certificate
        self._sessions: list[Session] = []
        self._things: list[socket.socket] = []

    def session(self, config: ClientConfig = CONFIG) -> Session:
        settings: Any = SimpleNamespace(fingerprint=self.fingerprint)
        approach = Approach(config.server, config.connect_timeout)
        made = Session(config, settings, self.services, self.lines, approach)  # type: ignore[arg-type]
        self._sessions.append(made)
        return made

    def _channel(self, role: str) -> tuple[Channel, FrameEnd]:
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

    def begin(self) -> Session:
        """A session that has been welcomed, with one channel standing by."""
        session = self.session()
        target = Target(socket.AF_INET, ("198.51.100.1", 4242))
        control, self.control = self._channel(CONTROL)
        session._welcomed(target, control, Welcome(1, "an id", 20.0))
        standby, self.standby = self._channel(DATA)
        session._stand_by(target, standby, Welcome(1, "an id", 20.0))
        return session

    def leave(self, session: Session) -> bool:
        with contextlib.closing(Mailbox(self.store)) as mailbox:  # type: ignore[arg-type]
            left = session.park(mailbox)
        session.close()
        return left

    def take_up(
        self, config: ClientConfig = CONFIG, check: Callable[[Link], None] = lambda _link: None
    ) -> Session:
        self.store.start_again()
        session = self.session(config)
        session.resume(collect(self.store), check)  # type: ignore[arg-type]
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


def test_the_server_notices_nothing(authority: Authority, said: list[tuple[Event, str]]) -> None:
    async def body(scene: Scene) -> None:
        before = scene.begin()
        said.clear()
        assert scene.leave(before)
        assert scene.store.kept
        assert scene.control.is_silent
        after = scene.take_up()
        assert after.connected
        assert isinstance(await scene.control.hear(), Ping), "the last one is nobody knows how old"
        assert scene.control.is_silent
        assert scene.standby.is_silent
        assert (after.since, str(after.target)) == (before.since, "198.51.100.1:4242")
        assert said == [(Event.SESSIONS_RESUMED, "robot 011 remains connected to 198.51.100.1:4242")]
        assert not scene.store.kept
        # And everything works: a visitor, a keepalive.
        await scene.standby.say(Start("", "a1"))
        async with asyncio.timeout(10):
            while not scene.services.started:
                await asyncio.sleep(0.005)
        after._keep_alive()
        assert isinstance(await scene.control.hear(), Ping)

    play(authority, body)


def test_what_the_session_hears_its_streams_know(authority: Authority) -> None:
    async def body(scene: Scene) -> None:
        began = asyncio.get_running_loop().time()
        session = scene.begin()
        assert session._control is not None
        line = scene.lines.of(session._control.link.sock)
        assert line is not None
        assert line.times[1] >= began, "WELCOME"
        _since, before = line.times
        await scene.control.say(Pong(1.0))
        async with asyncio.timeout(10):
            while line.times[1] == before:
                await asyncio.sleep(0.005)

    play(authority, body)


def test_a_silent_server_is_given_up_in_time(authority: Authority) -> None:
    """Not only when the next PING would be due: the streams may wait to hear that the line is back."""

    async def body(scene: Scene) -> None:
        session = scene.begin()
        heard = session._keepalive.deadline - 60.0
        times: list[float] = []
        now = heard
        clock = SimpleNamespace(time=lambda: now, call_at=lambda when, _look: times.append(when))
        session._loop = clock  # type: ignore[assignment]
        for passed in (20.0, 39.9, 59.9):
            now = heard + passed
            session._keep_alive()
        assert [round(when - heard, 1) for when in times] == [40.0, 59.9, 60.0]
        now = heard + 60.0
        session._keep_alive()
        assert session.lost.done()

    play(authority, body)


def test_a_start_in_the_gap_is_heard(authority: Authority) -> None:
    async def body(scene: Scene) -> None:
        scene.leave(scene.begin())
        await scene.standby.say(Start("", "a1"))
        scene.take_up()
        async with asyncio.timeout(10):
            while not scene.services.started:
                await asyncio.sleep(0.005)
        assert scene.services.started[0][1].stream == "a1"

    play(authority, body)


def test_a_server_that_left_in_the_gap_is_noticed(authority: Authority) -> None:
    async def body(scene: Scene) -> None:
        scene.leave(scene.begin())
        scene.control.sock.close()
        session = scene.take_up()
        async with asyncio.timeout(10):
            await session.lost

    play(authority, body)


@pytest.mark.parametrize(
    "change",
    [
        {"service": [("web", Endpoint("127.0.0.1", 80))]},
        {"rhost": "other.example"},
        {"robot": "012"},
    ],
)
def test_other_settings_want_another_session(
    authority: Authority, said: list[tuple[Event, str]], change: dict[str, Any]
) -> None:
    async def body(scene: Scene) -> None:
        scene.leave(scene.begin())
        said.clear()
        session = scene.take_up(replace(CONFIG, **change))
        assert not session.connected
        await scene.control.hears_the_end()
        await scene.standby.hears_the_end()
        text = f"robot {change.get('robot', '011')} connects again: the settings have changed"
        assert said == [(Event.SESSION_GIVEN_UP, text)]

    play(authority, body)


def test_a_new_certificate_wants_another_session(authority: Authority) -> None:
    """The server is to see it, and not to go by the old one."""

    async def body(scene: Scene) -> None:
        scene.leave(scene.begin())
        scene.fingerprint = "decaf"
        assert not scene.take_up().connected
        await scene.control.hears_the_end()

    play(authority, body)


def test_a_server_that_is_not_trusted_today(authority: Authority, said: list[tuple[Event, str]]) -> None:
    def check(_link: Link) -> None:
        raise IdentityError("not good any more")

    async def body(scene: Scene) -> None:
        scene.leave(scene.begin())
        said.clear()
        assert not scene.take_up(check=check).connected
        await scene.control.hears_the_end()
        assert said[0][0] is Event.SESSION_GIVEN_UP
        assert said[0][1].endswith("not good any more")

    play(authority, body)


def test_what_is_lost_already_is_not_left(authority: Authority) -> None:
    async def body(scene: Scene) -> None:
        session = scene.begin()
        scene.control.sock.close()
        async with asyncio.timeout(10):
            await session.lost
        assert not scene.leave(session)
        assert not scene.store.kept

    play(authority, body)


def test_a_part_that_this_version_does_not_know_is_no_standby(
    authority: Authority, said: list[tuple[Event, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(scene: Scene) -> None:
        put = Session._put
        kinds = {"session": "session", "standby": "horse"}
        other = staticmethod(lambda mailbox, kind, *rest: put(mailbox, kinds[kind], *rest))
        monkeypatch.setattr(Session, "_put", other)
        scene.leave(scene.begin())
        assert scene.take_up().connected
        await scene.standby.hears_the_end()
        assert "this version does not know what it is" in "".join(text for _event, text in said)

    play(authority, body)


@pytest.mark.parametrize("descriptors", [0, 1, 2])
def test_letters_that_make_no_sense(
    authority: Authority, said: list[tuple[Event, str]], descriptors: int
) -> None:
    async def body(scene: Scene) -> None:
        ours, theirs = socket.socketpair()
        with contextlib.closing(Mailbox(scene.store)) as mailbox, ours:  # type: ignore[arg-type]
            mailbox.put(Letter({"kind": "session"}, [ours.fileno()] * descriptors))
        assert not scene.take_up().connected
        assert [event for event, _text in said] == [Event.SESSION_GIVEN_UP]
        theirs.settimeout(10)
        assert theirs.recv(1) == b""
        theirs.close()

    play(authority, body)


def test_a_robot_that_had_to_queue_lets_others_in_first(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return 1.0

    async def check(scene: Scene) -> None:
        session = scene.session()
        begun: list[float] = []
        monkeypatch.setattr(session._standbys, "begin", lambda _interval, delay: begun.append(delay))
        session._begin_in_turn(0.2)
        assert (begun, asked) == ([0.0], [])
        session._begin_in_turn(3.0)
        assert (begun, asked) == ([0.0, 1.0], [(0, 12.0)])

    monkeypatch.setattr(random, "uniform", uniform)
    play(authority, check)


@pytest.mark.parametrize("left", [True, False])
def test_a_robot_whose_certificate_expired_lately_keeps_its_session(
    authority: Authority, *, left: bool
) -> None:
    """Over it, and over no other, it can have its certificate renewed; without it, it says what is wrong."""
    pair = authority.issue("late", "011", Purpose.ROBOT, days=(-4, -0.5))
    config = replace(CONFIG, server_name="localhost", ca=authority.ca, crt=pair[0], key=pair[1])

    async def body(scene: Scene) -> None:
        scene.fingerprint = load_certificates(pair[0], "robot")[0].fingerprint(hashes.SHA256()).hex()
        if left:
            assert scene.leave(scene.begin())
            scene.store.start_again()
        relay = Relay()
        scene.store.limit = 0  # for streams
        try:
            client = Client(config, DurableStreams(relay, scene.store))  # type: ignore[arg-type]
            client._resume_session()
            assert client._session is not None
            assert isinstance(await scene.control.hear(), Ping)
            client._session.close()
        finally:
            relay.stop()

    with contextlib.nullcontext() if left else pytest.raises(ConfigError, match="expired"):
        play(authority, body)
