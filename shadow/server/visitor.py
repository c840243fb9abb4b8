"""A visitor: somebody who has opened a robot's socket and waits to be connected.

Mostly that was here. In a fleet it may have been at another server, which then passes the visitor on.
"""

import asyncio
import contextlib
import select
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..errors import LocalError
from ..net.unix import peer_credentials
from ..relay.ends import End, Plain
from ..text import printable

_STREAMS_END = 2**63  # more streams than a daemon will ever number


class Door(Protocol):
    """Where a visitor has come in, and stands until its stream starts."""

    @property
    def left(self) -> bool:
        """Whether it has left without anything to deliver."""

    def enter(self) -> End:
        """The end of its stream, which begins now: its service is connected.

        Raises:
            PeerError: it does not take what we send.
        """

    def refuse(self, why: str) -> None:
        """Turn it away; ``close`` follows."""

    def close(self) -> None:
        """Be done with it, unless its stream has begun."""


class OwnDoor:
    """An accepted connection on one of the robot's sockets.

    Attributes:
        sock: the connection.
    """

    __slots__ = ("sock",)

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @property
    def left(self) -> bool:
        """See ``Door.left``."""
        return has_left(self.sock)

    def enter(self) -> End:
        """See ``Door.enter``."""
        return Plain(self.sock)

    def refuse(self, why: str) -> None:
        """See ``Door.refuse``: all that a plain connection can be told is its end."""

    def close(self) -> None:
        """See ``Door.close``."""
        self.sock.close()


@dataclass(eq=False, slots=True)
class Visitor:
    """Somebody who visits a robot, until its stream starts; then what is known of it.

    Attributes:
        door: where it waits; None once its stream runs.
        service: which of the robot's services it wants.
        stream: the number that its stream has here.
        uid: the user that it runs as.
        pid: its process.
        since: when it came, by CLOCK_MONOTONIC, the same in all processes.
        user: the name of that user, where it is known.
        host: the server that it is at, where there is a fleet; uid, pid and user are those there.
        there: the number of the stream at that server, if that is not this one.
        server: the server of the fleet that the robot is at, if that is not this one.
        tries: how many channels were tried.
        timer: runs out when it has waited long enough.
        waited: no channel was standing by when it came.
        on_settled: called when it has its stream, or never will.
    """

    door: Door | None
    service: str
    stream: str
    uid: int
    pid: int
    since: float
    user: str = ""
    host: str = ""
    there: str = ""
    server: str = ""
    tries: int = 0
    timer: asyncio.TimerHandle | None = None
    waited: bool = False
    on_settled: Callable[[], object] | None = None

    def __repr__(self) -> str:
        who, age = f"uid {self.uid}, pid {self.pid}", time.monotonic() - self.since
        at = f" at {self.host}" if self.there else ""
        return (
            f"<Visitor {self.stream} of {self.service or 'default'}, {who}{at}, {age:.1f} s, "
            f"tries: {self.tries}>"
        )

    @property
    def is_direct(self) -> bool:
        """The robot is at this server, or its stream began when it was."""
        return not self.server

    @property
    def offered(self) -> str:
        """The service's name where it must have one."""
        return self.service or "default"

    @property
    def known_as(self) -> str:
        """What else is known of it than its uid, for humans, in brackets behind that; mostly nothing."""
        at = f"at server {self.host}" if self.there else ""
        who = " ".join(filter(None, (self.user, at)))
        return f" ({printable(who)})" if who else ""

    @property
    def record(self) -> dict[str, Any]:
        """What ``remembered`` needs, fit for JSON; earlier versions look for no more than the first line."""
        names = ("service", "stream", "uid", "pid", "since", "tries")
        more = ("user", "host", "there", "server")
        return {name: getattr(self, name) for name in names} | {
            name: getattr(self, name) for name in more if getattr(self, name)
        }

    @property
    def left(self) -> bool:
        """Whether it has left and has nothing to deliver."""
        return self.door is not None and self.door.left

    @property
    def comes_again(self) -> bool:
        """Whether nothing need be left to the next daemon: the server that it is at sends it again."""
        return not isinstance(self.door, OwnDoor)

    @property
    def sock(self) -> socket.socket:
        """The connection on a socket of ours.

        Raises:
            LocalError: it has come in otherwise, or its stream has begun.
        """
        if not isinstance(self.door, OwnDoor):
            raise LocalError("the visitor is not at one of the robot's sockets")
        return self.door.sock

    def settle(self) -> None:
        """Release whatever was reserved for it."""
        if self.on_settled is not None:
            self.on_settled()
            self.on_settled = None

    def rest(self) -> None:
        """Stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def refuse(self, why: str) -> None:
        """Turn it away, and say why where that can be said."""
        if self.door is not None:
            self.door.refuse(why)
        self.close()

    def close(self) -> None:
        """Be done with it."""
        self.settle()
        self.rest()
        if self.door is not None:
            self.door.close()


def make_visitor(sock: socket.socket, service: str, stream: str, now: float) -> Visitor:
    """The visitor behind an accepted connection; the kernel says who it is."""
    pid, uid, _gid = peer_credentials(sock)
    return Visitor(OwnDoor(sock), service, stream, uid, pid, now)


def remembered(record: Mapping[str, Any], door: Door | None) -> Visitor:
    """The visitor that another process has recorded.

    Raises:
        KeyError, TypeError, ValueError: the record is not one of a visitor.
    """
    number = int(record["stream"], 16)
    if not 0 < number < _STREAMS_END:
        raise ValueError("the stream's number is none of ours")
    who = int(record["uid"]), int(record["pid"])
    found = Visitor(door, str(record["service"]), f"{number:x}", *who, float(record["since"]))
    found.tries = int(record["tries"])
    found.user, found.host = str(record.get("user", "")), str(record.get("host", ""))
    found.there, found.server = str(record.get("there", "")), str(record.get("server", ""))
    return found


def has_left(sock: socket.socket) -> bool:
    """True if the visitor has closed its end and left nothing to deliver."""
    poll = select.poll()
    poll.register(sock, 0)  # POLLHUP is always reported: both directions are shut
    if not poll.poll(0):
        return False
    with contextlib.suppress(OSError):
        return not sock.recv(1, socket.MSG_PEEK)
    return True
