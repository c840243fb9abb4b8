"""Facts about robots and streams, in the words of ``io.shadowtunnel.Server.varlink``.

Servers of a fleet tell them each other, too.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ..pki.certificates import serial_of
from ..relay.flow import Pump
from ..transport.link import Link
from .overview import Companion, Remote
from .robot import Robot
from .visitor import Visitor

Facts = dict[str, Any]
"""Fit for JSON."""


def robot_facts(robot: Robot, now: float, server: str = "") -> Facts:
    """A ``Robot`` of the interface.

    Args:
        robot: the robot.
        now: by CLOCK_MONOTONIC.
        server: the name of our server in its fleet; empty if it is not in one.
    """
    session = robot.session
    facts: Facts = {
        "name": robot.name,
        "connected": session is not None,
        "services": [],
        "standbys": 0,
        "waiting": 0,
        "streams": len(robot.streams),
    }
    if session is None:
        return facts
    if server:
        facts["server"] = server
    certificate = session.channel.link.certificate
    return facts | {
        "peer": session.peer,
        "software": session.software,
        "seconds": round(now - session.since, 3),
        "services": list(session.services),
        **_link_facts(session.channel.link),
        "serial": serial_of(certificate),
        "certificateEnds": session.until.isoformat(),
        "standbys": len(session.board.standbys),
        "waiting": len(session.board.visitors) + len(robot.visitors.starting),
    }


def remote_facts(name: str, remote: Remote, robot: Robot | None, now: float) -> Facts:
    """A ``Robot`` of the interface that is at another server.

    Args:
        name: its name.
        remote: what is known of it.
        robot: what we have of it: visitors who reach it through here, or wait for it.
        now: by CLOCK_REALTIME.
    """
    return {
        "name": name,
        "connected": remote.live,
        "server": remote.server,
        "peer": remote.peer,
        "seconds": round(max(0.0, now - remote.since), 3),
        "services": list(remote.services),
        "serial": remote.serial,
        "standbys": 0,
        "waiting": 0 if robot is None else len(robot.visitors.elsewhere),
        "streams": 0 if robot is None else len(robot.streams),
    }


def server_facts(companion: Companion) -> Facts:
    """A ``Server`` of the interface."""
    return {name: value for name, value in companion._asdict().items() if value is not None}


def stream_facts(robot: str, pump: Pump, visitor: Visitor, now: float, server: str = "") -> Facts:
    """A ``Stream`` of the interface; ``server`` is as for a robot."""
    there = {"user": visitor.user, "server": visitor.host, "idThere": visitor.there}
    return {
        "id": visitor.stream,
        **({"at": server} if server else {}),
        "robot": robot,
        "service": visitor.service,
        "uid": visitor.uid,
        "pid": visitor.pid,
        **(there if visitor.there else {}),
        "seconds": round(now - visitor.since, 3),
        "bytesToRobot": pump.up.moved,
        "bytesFromRobot": pump.down.moved,
        **_link_facts(pump.link),
        "protected": pump.kept,
    }


def _link_facts(link: Link) -> Facts:
    return {"suite": link.suite, "kernelTls": link.in_kernel}


def streams_of(robot: Robot, now: float, server: str = "") -> Iterator[Facts]:
    """All streams of a robot, oldest first."""
    for pump, visitor in list(robot.streams.items()):
        yield stream_facts(robot.name, pump, visitor, now, server)


def find_stream(robots: Mapping[str, Robot], number: str) -> Robot | None:
    """The robot that has the stream with this number."""
    return next(
        (
            robot
            for robot in robots.values()
            if any(visitor.stream == number for _pump, visitor in robot.streams.items())
        ),
        None,
    )
