"""A robot's session with its server, as the robot sees it: a control channel, and channels standing by."""

import asyncio
import logging
import math
import random
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import __version__, events
from ..daemon.config import ClientConfig
from ..errors import LocalError, PeerError, Refused
from ..events import Event
from ..net.address import Target, remembered_target
from ..net.lines import Line, Lines
from ..net.liveness import watch_for_death
from ..net.tcp import KEEPALIVE_MAX
from ..systemd.bundle import Letter
from ..systemd.mailbox import Mailbox, deal
from ..transport import channel as channels
from ..transport import context
from ..transport import link as links
from ..transport.channel import KEEPALIVE_MIN, Channel, remembered_interval
from ..wire.conversation import CONTROL, DATA, Party, State
from ..wire.frames import PROTOCOL_VERSION, Dial, Frame, Hello, Ping, Refusal, Sign, Signed, Unsigned, Welcome
from ..wire.timing import Keepalive
from .approach import Approach, Call
from .services import Services
from .standbys import Standbys
from .streams import Check

SOFTWARE = f"shadow-client {__version__}"

_PROMPT = 1.0  # seconds for a session to be welcomed; a server that takes longer has a fleet at its door
_SIGN_TIMEOUT = 30.0  # seconds; the server itself waits for 20
_SPREAD = 4  # times as long as that we may then wait before we ask for more


class Session:
    """One control channel and the data channels that belong to it.

    Attributes:
        settings: how new connections do their handshake; a reload replaces it.
        certificate: the fingerprint of ours that the server has seen.
        since: when it was welcomed, for humans.
        target: the server's address in use; data channels go to the very same one, as long as it leads to
            the server, since only that server knows this session.
        lost: set to what ended the session.
        renews: the server has certificates renewed.
    """

    def __init__(
        self,
        config: ClientConfig,
        settings: context.Settings,
        services: Services,
        lines: Lines,
        approach: Approach,
    ) -> None:
        self.settings = settings
        self.since = ""
        self.renews = False
        self.target: Target | None = None
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[PeerError] = self._loop.create_future()
        self.certificate = settings.fingerprint
        self._config = config
        self._lines = lines
        self._approach = approach
        self._control: Channel | None = None
        self._id = ""
        self._line: Line | None = None
        self._door: Target | None = None  # to which the last data channel went
        self._keepalive = Keepalive(config.connect_timeout, self._loop.time())
        self._timer: asyncio.TimerHandle | None = None
        self._standbys = Standbys(config.robot, config.standby, self._open_channel, services.connect)
        self._signed: asyncio.Future[bytes] | None = None

    async def open(self, reach: float = math.inf) -> None:
        """Dial, shake hands, say HELLO and hear WELCOME.

        Args:
            reach: seconds for a TCP connection, if less than the settings say.

        Raises:
            ShadowError: it did not come about; the session is good for nothing but ``close``.
        """
        hello = Hello(
            PROTOCOL_VERSION, CONTROL, self._config.robot, tuple(self._config.services), software=SOFTWARE
        )
        settings = self.settings  # a reload may come while we dial
        self.certificate = settings.fingerprint
        call = Call(settings, hello, self._welcomed, self._keepalive.interval, reach)
        self._begin_in_turn(await self._approach.call(call))

    def _welcomed(self, target: Target, channel: Channel, welcome: Welcome) -> None:
        link = channel.link
        self.target = self._door = target
        self._id, self.renews = welcome.session, welcome.renews
        self.since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._attend(channel, min(max(welcome.keepalive, KEEPALIVE_MIN), KEEPALIVE_MAX))
        self._timer = self._loop.call_later(self._keepalive.interval, self._keep_alive)
        watch_for_death(link.sock, self._keepalive.interval)
        encryption = "kernel TLS" if link.in_kernel else "userspace TLS"
        events.log(
            Event.SESSION_STARTED,
            logging.INFO,
            f"robot {self._config.robot} connected to {self.target} ({encryption}, {link.suite})",
            robot=self._config.robot,
            peer=str(self.target),
            suite=link.suite,
            session=self._id[:8],
        )

    def _attend(self, control: Channel, interval: float) -> None:
        """Have a control channel, welcomed with this keepalive interval."""
        self._control = control
        self._keepalive = Keepalive(interval, self._loop.time())
        self._line = self._lines.of(control.link.sock)
        self._heard()
        control.on_frame = self._control_frame
        control.on_lost = self._control_lost

    @property
    def connected(self) -> bool:
        """True from WELCOME on."""
        return self._control is not None

    @property
    def interval(self) -> float:
        """Keepalive interval in seconds, the server's from WELCOME on."""
        return self._keepalive.interval

    def park(self, mailbox: Mailbox) -> bool:
        """Leave the session for the next client; False if that is not possible.

        Good for nothing but ``close`` afterwards.
        """
        control = self._control
        if control is None or self.lost.done():
            return False
        try:
            self._put(mailbox, "session", control, self._record())
        except LocalError:
            return False
        self._control = None
        for standby in self._standbys.take():
            try:
                self._put(mailbox, "standby", standby, {})
            except LocalError:
                standby.close()
        return True

    @staticmethod
    def _put(mailbox: Mailbox, kind: str, its_channel: Channel, record: Mapping[str, Any]) -> None:
        facts = {"kind": kind, **record, **its_channel.record}
        mailbox.put(Letter(facts, [its_channel.link.sock.fileno()]))
        its_channel.leave()

    def _record(self) -> dict[str, Any]:
        assert self.target is not None  # noqa: S101 - there is a control channel
        return {
            **self._offer,
            "session": self._id,
            "interval": self._keepalive.interval,
            "since": self.since,
            "renews": self.renews,
            "target": (int(self.target.family), self.target.sockaddr),
        }

    @property
    def _offer(self) -> dict[str, Any]:
        """What a session is made for; with other settings it has to be another one."""
        return {
            "robot": self._config.robot,
            "server": str(self._config.server),
            "services": list(self._config.services),
            "certificate": self.certificate,
        }

    def resume(self, letters: Iterable[Letter], check: Check) -> None:
        """Go on with what the client before us has left; see ``connected`` for whether that is a session.

        Whatever is wrong with a part of it ends that part.
        """
        changed = False

        def take(facts: Mapping[str, Any], socks: Sequence[socket.socket]) -> None:
            nonlocal changed
            changed = changed or (facts["kind"] == "session" and self._is_of_another_offer(facts))
            self._resume(facts, socks[0], check)

        def give_up(_facts: Mapping[str, Any], why: str) -> None:
            if not changed:  # else one word for all, below: nothing is wrong
                text = f"a connection of the client before this one cannot go on and ends: {why}"
                events.log(Event.SESSION_GIVEN_UP, logging.WARNING, text, robot=self._config.robot)

        deal(letters, take, give_up, 1)
        if changed:
            text = f"robot {self._config.robot} connects again: the settings have changed"
            events.log(Event.SESSION_GIVEN_UP, logging.INFO, text, robot=self._config.robot)
        if self.connected:
            text = f"robot {self._config.robot} remains connected to {self.target}"
            events.log(Event.SESSIONS_RESUMED, logging.INFO, text, robot=self._config.robot)
            # At once: the last PING was the other client's, and nobody knows how long ago.
            self._keep_alive()
            self._standbys.begin(self._keepalive.interval)

    def _resume(self, facts: Mapping[str, Any], sock: socket.socket, check: Check) -> None:
        link = links.remembered(sock, facts)
        check(link)
        if facts["kind"] == "session":
            if self._is_of_another_offer(facts):
                raise LocalError("the settings have changed")
            if self.connected:
                raise LocalError("there is a session already")
            target, interval = remembered_target(facts["target"]), remembered_interval(facts)
            self.target = self._door = target
            self._id, self.since = str(facts["session"]), str(facts["since"])
            self.renews = bool(facts["renews"])
            self._attend(channels.remembered(link, facts, Party.ROBOT, State.OPEN), interval)
        elif facts["kind"] == "standby" and self.connected:
            self._standbys.add(channels.remembered(link, facts, Party.ROBOT, State.STANDBY))
        else:
            raise LocalError("its session is over, or this version does not know what it is")

    def _is_of_another_offer(self, facts: Mapping[str, Any]) -> bool:
        return any(facts[name] != value for name, value in self._offer.items())

    def close(self) -> None:
        """End the session; its streams go on."""
        if self._timer is not None:
            self._timer.cancel()
        self._standbys.close()
        if self._control is not None:
            self._control.close()

    # Control channel

    def _heard(self) -> None:
        now = self._loop.time()
        self._keepalive.heard(now)
        if self._line is not None:
            self._line.heard(now, self._keepalive.interval)

    def _control_frame(self, frame: Frame) -> None:
        self._heard()
        if isinstance(frame, Dial):
            self._standbys.dial(frame.count)
        elif isinstance(frame, Refusal):
            self._end(Refused(frame.code, frame.text, frame.retry))
        elif isinstance(frame, Signed | Unsigned) and self._signed is not None and not self._signed.done():
            if isinstance(frame, Signed):
                self._signed.set_result(frame.certificate)
            else:
                self._signed.set_exception(Refused(frame.code, frame.text))

    def _control_lost(self, error: PeerError | None) -> None:
        self._end(error or PeerError("the server hung up"))

    def _keep_alive(self) -> None:
        now_ = self._loop.time()
        if self._keepalive.is_dead(now_):
            if self._control is not None:
                self._control.abort()
            self._end(PeerError(f"nothing heard for {3 * self._keepalive.interval:g} s"))
            return
        if self._control is not None:
            self._control.send(Ping(round(now_, 3)))
        # A server that says nothing is given up when it is time, and not an interval later: see Line.
        self._timer = self._loop.call_at(
            min(now_ + self._keepalive.interval, self._keepalive.deadline), self._keep_alive
        )

    def _end(self, error: PeerError) -> None:
        self._standbys.close()
        if not self.lost.done():
            self.lost.set_result(error)

    async def renew(self, request: Sign) -> bytes:
        """Have our certificate renewed; the new one, in DER.

        Raises:
            Refused: the server or the signer says no.
            PeerError: no answer.
        """
        if self._control is None or self.lost.done():
            raise PeerError("the session is over")
        self._signed = self._loop.create_future()
        self._control.send(request)
        try:
            either: list[asyncio.Future[Any]] = [self._signed, self.lost]
            await asyncio.wait(either, timeout=_SIGN_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            if not self._signed.done():
                raise PeerError("the session ended" if self.lost.done() else "no answer from the server")
            return self._signed.result()
        finally:
            self._signed = None

    # Data channels

    def _begin_in_turn(self, took: float) -> None:
        """Have channels stand by; later, if it took so long to be welcomed: first a session for every robot.

        A visitor who comes meanwhile has a channel dialled for.
        """
        delay = 0.0 if took < _PROMPT else random.uniform(0, _SPREAD * took)  # noqa: S311 - no secret
        self._standbys.begin(self._keepalive.interval, delay)

    async def _open_channel(self) -> None:
        hello = Hello(PROTOCOL_VERSION, DATA, self._config.robot, session=self._id)
        call = Call(self.settings, hello, self._stand_by, self._keepalive.interval)
        await self._approach.call(call, self._door)

    def _stand_by(self, target: Target, channel: Channel, _welcome: Welcome) -> None:
        self._door = target
        self._standbys.add(channel)
