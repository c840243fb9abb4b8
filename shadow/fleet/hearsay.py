"""What another server says of its robots and streams: whether it is what it should be. No I/O.

Callers of the API rely on the interface, whoever has said what they hear.
"""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from ..server import questions
from ..server.questions import Question
from ..wire.frames import Fact

_TEXT, _NUMBER, _FLAG, _TEXTS, _SECONDS = (str,), (int,), (bool,), (tuple,), (int, float)
_Kinds = Mapping[str, tuple[type, ...]]

ROBOT: _Kinds = {
    "name": _TEXT, "connected": _FLAG, "services": _TEXTS, "standbys": _NUMBER, "waiting": _NUMBER,
    "streams": _NUMBER,
}  # fmt: skip
"""The fields of a robot that is not connected, by the types that the codec gives them."""
CONNECTED: _Kinds = {
    "server": _TEXT, "peer": _TEXT, "software": _TEXT, "seconds": _SECONDS, "suite": _TEXT,
    "kernelTls": _FLAG, "serial": _TEXT, "certificateEnds": _TEXT,
}  # fmt: skip
"""What comes to that if it is."""
STREAM: _Kinds = {
    "id": _TEXT, "at": _TEXT, "robot": _TEXT, "service": _TEXT, "uid": _NUMBER, "pid": _NUMBER,
    "user": _TEXT, "server": _TEXT, "seconds": _SECONDS, "bytesToRobot": _NUMBER, "bytesFromRobot": _NUMBER,
    "suite": _TEXT, "kernelTls": _FLAG, "protected": _FLAG,
}  # fmt: skip
"""The fields of a stream."""
FROM_AFAR: _Kinds = {"idThere": _TEXT}
"""What comes to that if its visitor is at yet another server."""
_ENDED: _Kinds = {"ended": _NUMBER}
_ROBOTS: _Kinds = {"robots": _NUMBER}
_PLACE: _Kinds = {"number": _TEXT, "since": _NUMBER}
_PIECE: _Kinds = {"piece": _TEXT}

_ALONE: Mapping[str, _Kinds] = {
    questions.DISCONNECT: _ENDED, questions.CUT: _ENDED, questions.DRAIN: _ROBOTS, questions.UNDRAIN: _ROBOTS,
    questions.NEWEST_LIST: _PLACE,
}  # fmt: skip
"""The fields of an answer that is one fact, by what was asked."""


def checked(
    server: str, question: Question, facts: Sequence[Fact], index: int
) -> list[dict[str, Any]] | None:
    """A part of an answer, without what nobody here knows.

    Args:
        server: which server says so.
        question: what was asked.
        facts: the part.
        index: how many facts there were before these.

    Returns:
        The facts; None if one lacks something, or is of another kind, or about another server or robot.
    """
    found = [_one(server, question, fact, number) for number, fact in enumerate(facts, index)]
    known = [one for one in found if one is not None]
    needed = question.what != questions.STREAMS and not index  # there always is a first one
    return None if len(known) < len(found) or (needed and not known) else known


def _one(server: str, question: Question, fact: Fact, number: int) -> dict[str, Any] | None:
    if question.what in _ALONE:
        return _of_kind(fact, _ALONE[question.what]) if not number else None
    if question.what == questions.LIST:
        return _of_kind(fact, _PIECE)
    if question.what == questions.STREAMS or number:
        return _stream(server, question.name, fact)
    robot = _of_kind(fact, {**ROBOT, **CONNECTED} if fact.get("connected") else ROBOT)
    if robot is None or robot["name"] != question.name or robot.get("server", server) != server:
        return None
    return robot if _has_a_time(robot) else None


def _stream(server: str, robot: str, fact: Fact) -> dict[str, Any] | None:
    stream = _of_kind(fact, {**STREAM, **FROM_AFAR} if "idThere" in fact else STREAM)
    is_meant = stream is not None and stream["at"] == server and robot in {"", stream["robot"]}
    return stream if is_meant else None


def _of_kind(fact: Fact, kinds: _Kinds) -> dict[str, Any] | None:
    """These fields of it; None if it lacks one."""
    good = all(type(fact.get(name)) in types for name, types in kinds.items())
    return {name: fact[name] for name in kinds} if good else None


def _has_a_time(robot: Mapping[str, Any]) -> bool:
    try:
        ends = dt.datetime.fromisoformat(robot.get("certificateEnds", "1970-01-01T00:00:00+00:00"))
    except ValueError:
        return False
    return ends.tzinfo is not None
