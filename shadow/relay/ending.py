"""The last word about a stream: how it ended, what it moved, how long it took."""

import logging
from dataclasses import dataclass

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
class Ending:
    """What to say besides what the pump knows.

    Attributes:
        robot: its name.
        service: the service's name, ``default`` for the one without a name.
        stream: the stream's number, as the server chose it.
        to_robot: bytes to the robot's service.
        from_robot: bytes from it.
        duration: seconds.
        visitor_uid: who the visitor was, where that is known.
        visitor_pid: its process.
    """

    robot: str
    service: str
    stream: str
    to_robot: int
    from_robot: int
    duration: float
    visitor_uid: int | None = None
    visitor_pid: int | None = None


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
        visitor_uid=ending.visitor_uid,
        visitor_pid=ending.visitor_pid,
    )
    text = (
        f"robot {ending.robot}: stream {printable(ending.stream)} {how}: {ending.to_robot} bytes to the "
        f"{words.target}, {ending.from_robot} bytes from it, {ending.duration:.1f} s"
    )
    events.log(event, logging.INFO, text)
