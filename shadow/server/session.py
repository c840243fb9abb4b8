"""A robot's session, as the server sees it."""

import asyncio
import datetime as dt
import enum
import hashlib
import logging
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import events
from ..errors import ConfigError, Refused
from ..names import DEFAULT_SERVICE, check_service_name, clean_software, is_id
from ..net.lines import Line, Lines
from ..pki import expiry
from ..pki.certificates import moment, validity
from ..pki.grace import renewable_until
from ..transport.channel import Channel, remembered_interval
from ..wire.frames import Dial, Hello, Refusal
from ..wire.timing import Keepalive
from .switchboard import Switchboard
from .visitor import Visitor


class Cause(enum.StrEnum):
    """Why a session ended, in a word that can be counted."""

    HUNG_UP = "hung-up"
    LOST = "lost"
    SILENT = "silent"
    SUPERSEDED = "superseded"
    REVOKED = "revoked"
    EXPIRED = "expired"
    OPERATOR = "operator"
    DRAINING = "draining"
    SOCKET = "socket"
    STOPPING = "stopping"


@dataclass(eq=False, slots=True)
class Session:
    """A robot's control channel and what belongs to it.

    Attributes:
        channel: the control channel.
        id: the secret that data channels name.
        services: what the robot offers.
        keepalive: when it counts as dead.
        line: the line of the control channel; None before ``tell``.
        peer: its address, for humans.
        since: when it began, by CLOCK_MONOTONIC.
        software: the program and version that the robot claims.
        told: we have logged that its certificate has expired.
        boot: of the robot's program: all its sessions until that starts anew have the same.
        attempt: the number of its HELLO in that boot.
        moves: the robot understands MOVE.
        until: when the robot's certificate expires, aware.
        warned_from: when to begin to warn of that.
        board: its standby channels and waiting visitors.
        timer: checks whether it is dead.
        trimmer: looks for standbys that nobody needs; None while there are too few for that.
        served: when a visitor last got a new channel, by CLOCK_MONOTONIC.
    """

    channel: Channel
    id: str
    services: tuple[str, ...]
    keepalive: Keepalive
    peer: str
    since: float
    software: str = ""
    boot: str = field(default_factory=lambda: secrets.token_hex(8))
    attempt: int = 0
    moves: bool = False
    board: Switchboard[Visitor, Channel] = field(default_factory=Switchboard)
    timer: asyncio.TimerHandle | None = None
    trimmer: asyncio.TimerHandle | None = None
    served: float = -math.inf
    line: Line | None = None
    told: bool = False
    until: dt.datetime = field(init=False)
    warned_from: dt.datetime = field(init=False)

    def __post_init__(self) -> None:
        since, self.until = validity(self.channel.link.certificate)
        self.warned_from = expiry.warned_from(since, self.until)

    def __repr__(self) -> str:
        now = time.monotonic()
        left, age = self.keepalive.deadline - now, now - self.since
        counts = f"{len(self.board.standbys)} standing by, {len(self.board.visitors)} waiting"
        times = f"{age:.1f} s, given up in {left:.1f} s if unheard"
        return f"<Session {self.id[:8]!r} with {self.peer}, {times}, {counts}>"

    @property
    def sid(self) -> str:
        """Names the session where its secret must not be known."""
        return hashlib.sha256(self.id.encode()).hexdigest()[:16]

    def is_later_than(self, other: "Session") -> bool:
        """Whether its HELLO was sent after the other's, or is the same; unknown of those of two boots."""
        return self.boot == other.boot and self.attempt >= other.attempt

    @property
    def expired(self) -> bool:
        """True if the robot's certificate has: it opens no more channels, because their handshakes fail."""
        return dt.datetime.now(dt.UTC) >= self.until

    @property
    def unreachable(self) -> str:
        """Why no visitor can get through, if that is certain."""
        certain = self.expired and not self.board.standbys
        return f"the robot's certificate expired on {moment(self.until)}" if certain else ""

    def outlived(self, robot: str, *, renews: bool) -> str:
        """Why the session must end because its certificate has expired; empty if it may go on.

        Where robots can renew their certificates it may go on for a while; we log once that this is needed.
        """
        if not self.expired:
            return ""
        why = f"its certificate expired on {moment(self.until)}"
        last = renewable_until(self.channel.link.certificate)
        if not renews or dt.datetime.now(dt.UTC) >= last:
            return why
        if not self.told:
            self.told = True
            text = f"robot {robot} is connected, but {why}: it opens no channels for visitors any more; "
            text += f"it may have it renewed until {moment(last)}, then its session ends"
            expires = self.until.isoformat()
            events.log(events.RobotExpired(robot=robot, expires=expires), logging.ERROR, text)
        return ""

    def tell(self, lines: Lines, now: float) -> None:
        """From now on, tell the robot's streams whenever it is heard; it was just heard."""
        self.line = lines.of(self.channel.link.sock)
        self.heard(now)

    def heard(self, now: float) -> None:
        """The robot said something."""
        self.keepalive.heard(now)
        if self.line is not None:
            self.line.heard(now, self.keepalive.interval)

    def rest(self) -> None:
        """Stop the timers."""
        for timer in (self.timer, self.trimmer):
            if timer is not None:
                timer.cancel()

    # Who is served on which channel

    def seat(self, visitor: Visitor, *, again: bool) -> Channel | None:
        """The channel to start a visitor on, ``again`` or for the first time; None: it must wait for one."""
        board = self.board
        channel, dials = board.visitor_back(visitor) if again else board.visitor_came(visitor)
        self._dial(dials)
        return channel

    def pair(self, channel: Channel, now: float) -> Visitor | None:
        """The visitor to start on a channel that has arrived; None: the channel stands by."""
        waiting = self.board.visitors
        # First drop those who have left, perhaps hundreds, or we would ask for channels for them.
        while waiting and waiting[0].left:
            waiting.popleft().close()
        visitor, dials = self.board.channel_came(channel)
        self._dial(dials)
        if visitor is None:
            self._trim_if_needed()
        else:
            self.served = now
        return visitor

    def lose_patience(self, visitor: Visitor) -> None:
        """A visitor has waited too long: remove it, and ask again for channels for those behind it."""
        self.board.visitor_left(visitor)
        self._dial(self.board.dials_lost())

    def _dial(self, count: int) -> None:
        if count:
            self.channel.send(Dial(count))

    def _trim_if_needed(self) -> None:
        """If there is a standby too many, check later whether anybody needs it."""
        if self.trimmer is None and len(self.board.standbys) > self.board.wanted:
            self.board.surplus()  # from now on
            self._look_later()

    def _look_later(self) -> None:
        # Twice an interval, so that what nobody needs is gone within one.
        self.trimmer = asyncio.get_running_loop().call_later(self.keepalive.interval / 2, self._trim)

    def _trim(self) -> None:
        self.trimmer = None
        for standby in self.board.surplus():
            standby.send(Refusal("surplus", "nobody needs it any more"))
            standby.close()
        if len(self.board.standbys) > self.board.wanted:
            self._look_later()

    @property
    def record(self) -> dict[str, Any]:
        """What ``remembered`` needs besides the channel, fit for JSON."""
        return {
            "session": self.id,
            "services": self.services,
            "interval": self.keepalive.interval,  # what the robot was told, whatever the next daemon says
            "peer": self.peer,
            "since": self.since,
            "software": self.software,
            "boot": self.boot,
            "attempt": self.attempt,
            "moves": self.moves,
        }

    def log_beginning(self, robot: str) -> None:
        """Log that a robot's session has begun."""
        link = self.channel.link
        encryption = "kernel TLS" if link.in_kernel else "userspace TLS"
        what = f", {self.software}" if self.software else ""
        event = events.RobotConnected(
            robot=robot,
            peer=self.peer,
            suite=link.suite,
            software=self.software or "unknown",
            session=self.id[:8],
        )
        text = f"robot {robot} connected from {self.peer} ({encryption}, {link.suite}{what})"
        events.log(event, logging.INFO, text)

    def log_takeover(self, robot: str, peer: str, *, fight: bool) -> None:
        """Log that another session, from ``peer``, takes its place; ``fight``: suspiciously often."""
        level, text = logging.INFO, f"robot {robot} came back from {peer}; its session from {self.peer} ends"
        if fight:
            level = logging.WARNING
            text = f"robot {robot}: two devices seem to fight over this name, at {self.peer} and {peer}"
        events.log(events.RobotTakenOver(robot=robot, peer=peer), level, text)

    def log_end(self, robot: str, why: str, cause: Cause, duration: float) -> None:
        """Log that it has ended, after ``duration`` seconds."""
        event = events.RobotDisconnected(
            robot=robot, peer=self.peer, session=self.id[:8], duration=round(duration, 3), cause=cause.value
        )
        text = f"robot {robot} disconnected: {why}"
        events.log(event, logging.INFO, text)


def new_session(channel: Channel, hello: Hello, peer: str, interval: float, now: float) -> Session:
    """The session that a control channel's HELLO begins.

    Args:
        channel: the control channel.
        hello: what the robot has said.
        peer: its address, for humans.
        interval: of the keepalive, in seconds.
        now: by CLOCK_MONOTONIC.

    Raises:
        Refused: a service's name cannot be a file's.
    """
    services, software = checked_services(hello), clean_software(hello.software)
    session = Session(channel, secrets.token_hex(16), services, Keepalive(interval, now), peer, now, software)
    if is_id(hello.boot):  # earlier versions say nothing: each session is a boot of its own
        session.boot, session.attempt = hello.boot, hello.attempt
    session.moves = hello.moves
    return session


def remembered(channel: Channel, record: Mapping[str, Any], now: float) -> Session:
    """The session that another process has recorded; it counts as having just been heard.

    Raises:
        ConfigError: a service's name cannot be a file's.
        KeyError, TypeError, ValueError: the record is not one of a session.
    """
    services = tuple(
        name if name == DEFAULT_SERVICE else check_service_name(name) for name in map(str, record["services"])
    )
    keepalive = Keepalive(remembered_interval(record), now)
    session = Session(
        channel,
        str(record["session"]),
        services,
        keepalive,
        str(record["peer"]),
        float(record["since"]),
        clean_software(str(record.get("software", ""))),  # earlier versions did not record it
    )
    if is_id(str(record.get("boot", ""))):  # nor this
        session.boot, session.attempt = str(record["boot"]), int(record["attempt"])
    session.moves = record.get("moves") is True
    return session


def checked_services(hello: Hello) -> tuple[str, ...]:
    """The names of the services that a robot offers, each once.

    Raises:
        Refused: one of them cannot be a file's name.
    """
    try:
        named = [check_service_name(name) for name in hello.services if name != DEFAULT_SERVICE]
    except ConfigError as error:
        raise Refused("bad-service", str(error)) from error
    if DEFAULT_SERVICE in hello.services:
        named.append(DEFAULT_SERVICE)
    return tuple(sorted(set(named)))
