"""A robot's session, as the server sees it."""

import asyncio
import datetime as dt
import enum
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import journal
from .certificates import validity
from .channel import Channel, remembered_interval
from .errors import ConfigError, Refused
from .frames import Hello, Refusal
from .journal import Event
from .names import DEFAULT_SERVICE, check_service_name, clean_software
from .protocol import Keepalive
from .switchboard import Switchboard
from .visitor import Visitor


class Cause(enum.StrEnum):
    """Why a session ended, in a word that can be counted."""

    HUNG_UP = "hung-up"
    LOST = "lost"
    SILENT = "silent"
    SUPERSEDED = "superseded"
    REVOKED = "revoked"
    OPERATOR = "operator"
    SOCKET = "socket"
    STOPPING = "stopping"


@dataclass(eq=False, slots=True)
class Session:
    """A robot's control channel and what belongs to it.

    Attributes:
        channel: the control channel.
        id: what data channels name; nobody else knows it.
        services: what the robot offers.
        keepalive: when it counts as dead.
        peer: its address, for humans.
        since: when it began, by CLOCK_MONOTONIC.
        software: the robot's program and version, as it says.
        until: when the robot's certificate expires, aware.
        board: its standby channels and waiting visitors.
        timer: looks whether it is dead.
        trimmer: looks for standbys that nobody needs; None while there are too few for that.
        served: when a channel came last, by CLOCK_MONOTONIC.
    """

    channel: Channel
    id: str
    services: tuple[str, ...]
    keepalive: Keepalive
    peer: str
    since: float
    software: str = ""
    board: Switchboard[Visitor, Channel] = field(default_factory=Switchboard)
    timer: asyncio.TimerHandle | None = None
    trimmer: asyncio.TimerHandle | None = None
    served: float = -math.inf
    until: dt.datetime = field(init=False)

    def __post_init__(self) -> None:
        self.until = validity(self.channel.link.certificate)[1]

    def rest(self) -> None:
        """Look after nothing any more."""
        for timer in (self.timer, self.trimmer):
            if timer is not None:
                timer.cancel()

    def stood_by(self) -> None:
        """A channel stands by from now on; if that is one too many, see whether anybody needs it."""
        if self.trimmer is None and len(self.board.standbys) > self.board.wanted:
            self.board.surplus()  # from now on
            self._look_later()

    def _look_later(self) -> None:
        # Two looks in an interval: what nobody needs is gone within one.
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
        }

    def log_beginning(self, robot: str) -> None:
        """Log that a robot's session has begun."""
        link = self.channel.link
        encryption = "kernel TLS" if link.in_kernel else "userspace TLS"
        what = f", {self.software}" if self.software else ""
        journal.log(
            Event.ROBOT_CONNECTED,
            logging.INFO,
            f"robot {robot} connected from {self.peer} ({encryption}, {link.suite}{what})",
            robot=robot,
            peer=self.peer,
            suite=link.suite,
            software=self.software or "unknown",
            session=self.id[:8],
        )

    def log_takeover(self, robot: str, peer: str, *, fight: bool) -> None:
        """Log that another one, from ``peer``, takes its place; ``fight``: suspiciously often."""
        level, text = logging.INFO, f"robot {robot} came back from {peer}; its session from {self.peer} ends"
        if fight:
            level = logging.WARNING
            text = f"robot {robot}: two devices seem to fight over this name, at {self.peer} and {peer}"
        journal.log(Event.ROBOT_TAKEN_OVER, level, text, robot=robot, peer=peer)

    def log_end(self, robot: str, why: str, cause: Cause, duration: float) -> None:
        """Log that it has ended, after so many seconds."""
        journal.log(
            Event.ROBOT_DISCONNECTED,
            logging.INFO,
            f"robot {robot} disconnected: {why}",
            robot=robot,
            peer=self.peer,
            session=self.id[:8],
            duration=round(duration, 3),
            cause=cause.value,
        )


def remembered(channel: Channel, record: Mapping[str, Any], now: float) -> Session:
    """The session that another process has noted down; the robot has as long as if it had just been heard.

    Raises:
        ConfigError: a service's name cannot be a file's.
        KeyError, TypeError, ValueError: the record is not one of a session.
    """
    services = tuple(
        name if name == DEFAULT_SERVICE else check_service_name(name) for name in map(str, record["services"])
    )
    keepalive = Keepalive(remembered_interval(record), now)
    return Session(
        channel,
        str(record["session"]),
        services,
        keepalive,
        str(record["peer"]),
        float(record["since"]),
        clean_software(str(record.get("software", ""))),  # a version before this one did not note it down
    )


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
