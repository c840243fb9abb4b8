"""The last word about a stream: how it ended, what it moved, how long it took."""

import logging
from dataclasses import dataclass, field

from .. import events
from ..errors import reason_of
from ..text import printable
from .ends import Side
from .flow import Pump


@dataclass(frozen=True, slots=True)
class Words:
    """What the two ends of a stream are called where this daemon runs."""

    near: str
    link: str
    target: str  # where the bytes went whose count comes first


@dataclass(frozen=True, slots=True)
class Whose:
    """Who the visitor was.

    Attributes:
        uid: its user.
        pid: its process.
        user: the user's name.
        host: the server of the fleet that it was at, where there is a fleet.
        stream: the number of the stream there, if that was another server.
    """

    uid: int | None = None
    pid: int | None = None
    user: str = ""
    host: str = ""
    stream: str = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """What to say besides what the pump knows.

    Attributes:
        robot: its name.
        service: the service's name, ``default`` for the one without a name.
        stream: the stream's number, as the server chose it.
        to_robot: bytes to the robot's service.
        from_robot: bytes from it.
        duration: seconds.
        whose: who the visitor was, where that is known.
    """

    robot: str
    service: str
    stream: str
    to_robot: int
    from_robot: int
    duration: float
    whose: Whose = field(default_factory=Whose)


def log_end(pump: Pump, ending: Ending, words: Words) -> None:
    """Log the end of a stream."""
    kind: type[events.StreamEnded] | type[events.StreamAborted] = events.StreamEnded
    how = "ended"
    if pump.cut is not None:
        who = {Side.NEAR: f" by the {words.near}", Side.LINK: f" by the {words.link}", None: ""}
        kind, how = events.StreamAborted, f"cut off{who[pump.cut.side]} ({reason_of(pump.cut.error)})"
    event = kind(
        robot=ending.robot,
        service=ending.service,
        stream=ending.stream,
        bytes_to_robot=ending.to_robot,
        bytes_from_robot=ending.from_robot,
        duration=round(ending.duration, 3),
        visitor_uid=ending.whose.uid,
        visitor_pid=ending.whose.pid,
        visitor_user=ending.whose.user or None,
        visitor_host=ending.whose.host or None,
        visitor_stream=ending.whose.stream or None,
    )
    text = (
        f"robot {ending.robot}: stream {printable(ending.stream)} {how}: {ending.to_robot} bytes to the "
        f"{words.target}, {ending.from_robot} bytes from it, {ending.duration:.1f} s"
    )
    events.log(event, logging.INFO, text)
