"""A robot's session with its server, as the robot sees it: the control channel, for as long as it lives."""

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import events
from ..errors import ConfigError, PeerError, Refused
from ..net.address import Endpoint, Target, parse_advertised, remembered_target
from ..net.lines import Lines
from ..net.liveness import watch_for_death
from ..net.tcp import KEEPALIVE_MAX
from ..transport.channel import KEEPALIVE_MIN, Channel, remembered_interval
from ..transport.context import Settings
from ..wire.frames import Dial, Frame, Move, Ping, Refusal, Sign, Signed, Unsigned, Welcome
from ..wire.timing import MISSED_MAX, Keepalive
from .approach import Door
from .standbys import Standbys

_PROMPT = 1.0  # seconds until WELCOME; a server that takes longer has a whole fleet connecting
_SIGN_TIMEOUT = 30.0  # seconds; the server itself waits for 20
_SPREAD = 4  # we may then wait up to this many times as long before we ask for more


@dataclass(frozen=True, slots=True)
class Agreed:
    """What robot and server have agreed on at WELCOME.

    Attributes:
        id: the session's id, which data channels name.
        interval: of the keepalive, in seconds.
        since: when they agreed, for humans.
        renews: the server has a signer, so certificates can be renewed.
        target: the server's address.
        dial: where the data channels go; None: to the same address.
    """

    id: str
    interval: float
    since: str
    renews: bool
    target: Target
    dial: Endpoint | None = None

    @classmethod
    def at_welcome(cls, welcome: Welcome, target: Target, robot: str) -> "Agreed":
        """What the server at ``target`` has just said to ``robot``."""
        interval = min(max(welcome.keepalive, KEEPALIVE_MIN), KEEPALIVE_MAX)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(
            welcome.session, interval, since, welcome.renews, target, _advertised(welcome, target, robot)
        )

    def to_json(self) -> dict[str, Any]:
        """All of it, for ``from_json`` of another process."""
        facts = {
            "session": self.id,
            "interval": self.interval,
            "since": self.since,
            "renews": self.renews,
            "target": (int(self.target.family), self.target.sockaddr),
        }
        if self.target.name:
            facts["name"] = self.target.name
        if self.dial is not None:
            facts["dial"] = str(self.dial)
        return facts

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Agreed":
        """What another process has recorded.

        Raises:
            ConfigError, KeyError, TypeError, ValueError: it is not that.
        """
        target = remembered_target(facts["target"], str(facts.get("name", "")))
        interval = remembered_interval(facts)
        dial = parse_advertised(str(facts["dial"])) if "dial" in facts else None
        return cls(str(facts["session"]), interval, str(facts["since"]), bool(facts["renews"]), target, dial)


def _advertised(welcome: Welcome, target: Target, robot: str) -> Endpoint | None:
    """Where the server says that data channels go; None if it says nothing, or nonsense."""
    if not welcome.dial:
        return None
    try:
        return parse_advertised(welcome.dial)
    except ConfigError as error:
        text = f"the server advertises nonsense ({error}); data channels go where the control channel went"
        events.log(events.AddressFailed(robot=robot, peer=str(target)), logging.WARNING, text)
        return None


class Session:
    """A control channel that has been welcomed, and the data channels that belong to it.

    Attributes:
        channel: the control channel.
        agreed: what both sides agreed on.
        certificate: the fingerprint of the certificate that we showed the server.
        standbys: the data channels.
        lost: set to what ended the session.
        unwanted: set when the server asks us to go to another one.
    """

    def __init__(
        self, robot: str, channel: Channel, agreed: Agreed, door: Door, standbys: Standbys, lines: Lines
    ) -> None:
        """Attend to a control channel; ``begin`` or ``go_on`` comes next."""
        self.channel = channel
        self.agreed = agreed
        self.certificate = door.settings.fingerprint
        self.standbys = standbys
        self._robot = robot
        self._door = door
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[PeerError] = self._loop.create_future()
        self.unwanted: asyncio.Future[None] = self._loop.create_future()
        self._keepalive = Keepalive(agreed.interval, self._loop.time())
        self._line = lines.of(channel.link.sock)
        self._timer: asyncio.TimerHandle | None = None
        self._signed: asyncio.Future[bytes] | None = None
        self._heard()
        channel.hear(self._control_frame, self._control_lost)

    def __repr__(self) -> str:
        agreed, left = self.agreed, self._keepalive.deadline - self._loop.time()
        state = (
            f"lost: {self.lost.result()!r}" if self.lost.done() else f"given up in {left:.1f} s if unheard"
        )
        where = f"{agreed.target} since {agreed.since}"
        where += f", data channels at {agreed.dial}" if agreed.dial else ""
        return f"<Session {agreed.id[:8]!r} with {where}, {state}, {self.standbys}>"

    def begin(self) -> None:
        """The session has just been welcomed; ``stand_by`` comes next."""
        link, target = self.channel.link, str(self.agreed.target)
        self._timer = self._loop.call_later(self.agreed.interval, self._keep_alive)
        watch_for_death(link.sock, self.agreed.interval)
        encryption = "kernel TLS" if link.in_kernel else "userspace TLS"
        event = events.SessionStarted(
            robot=self._robot, peer=target, suite=link.suite, session=self.agreed.id[:8]
        )
        text = f"robot {self._robot} connected to {target} ({encryption}, {link.suite})"
        if self.agreed.dial is not None:
            text += f"; its data channels go to {self.agreed.dial}"
        events.log(event, logging.INFO, text)

    def stand_by(self, took: float) -> None:
        """Open standby channels; later if WELCOME took long, so that every robot gets its session first.

        For a visitor who comes meanwhile, the server asks for a channel.
        """
        delay = 0.0 if took < _PROMPT else random.uniform(0, _SPREAD * took)  # noqa: S311 - no secret
        self.standbys.begin(self.agreed.interval, delay)

    def go_on(self) -> None:
        """The session has been taken over from another process."""
        # At once: the other process sent the last PING, and nobody knows how long ago.
        self._keep_alive()
        self.standbys.begin(self.agreed.interval)

    def use(self, settings: Settings) -> None:
        """Use these settings for the handshakes of data channels from now on."""
        self._door.settings = settings

    def stay(self) -> None:
        """No other server has taken us: until we are asked again."""
        self.unwanted = self._loop.create_future()

    def close(self) -> None:
        """End the session; its streams go on."""
        self._rest()
        self.standbys.close()
        self.channel.close()

    # Frames

    def _heard(self) -> None:
        now = self._loop.time()
        self._keepalive.heard(now)
        if self._line is not None:
            self._line.heard(now, self.agreed.interval)

    def _control_frame(self, frame: Frame) -> None:
        self._heard()
        if isinstance(frame, Dial):
            self.standbys.dial(frame.count)
        elif isinstance(frame, Move):
            if not self.unwanted.done():
                self.unwanted.set_result(None)
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
        now = self._loop.time()
        if self._keepalive.is_dead(now):
            self.channel.abort()
            self._end(PeerError(f"nothing heard for {MISSED_MAX * self.agreed.interval:g} s"))
            return
        self.channel.send(Ping(round(now, 3)))
        # Give up on a silent server exactly at the deadline, not up to an interval later: see Line.
        self._timer = self._loop.call_at(
            min(now + self.agreed.interval, self._keepalive.deadline), self._keep_alive
        )

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end(self, error: PeerError) -> None:
        self._rest()
        self.standbys.close()
        if not self.lost.done():
            self.lost.set_result(error)

    async def renew(self, request: Sign) -> bytes:
        """Have our certificate renewed; return the new one, in DER.

        Raises:
            Refused: the server or the signer refuses.
            PeerError: no answer.
        """
        if self.lost.done():
            raise PeerError("the session is over")
        self._signed = self._loop.create_future()
        self.channel.send(request)
        try:
            either: list[asyncio.Future[Any]] = [self._signed, self.lost]
            await asyncio.wait(either, timeout=_SIGN_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
            if not self._signed.done():
                raise PeerError("the session ended" if self.lost.done() else "no answer from the server")
            return self._signed.result()
        finally:
            self._signed = None
