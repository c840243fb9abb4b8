"""A visitor: somebody who has opened a robot's socket and waits to be connected."""

import asyncio
import contextlib
import select
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..net.unix import peer_credentials

_STREAMS_END = 2**63  # more streams than a daemon will ever number


@dataclass(eq=False, slots=True)
class Visitor:
    """One accepted connection on a robot's socket, until its stream starts."""

    sock: socket.socket
    service: str
    stream: str
    uid: int
    pid: int
    since: float
    tries: int = 0
    timer: asyncio.TimerHandle | None = None
    waited: bool = False  # no channel was standing by when it came
    on_settled: Callable[[], object] | None = None  # has its stream, or never will

    def __repr__(self) -> str:
        who, age = f"uid {self.uid}, pid {self.pid}", time.monotonic() - self.since
        return (
            f"<Visitor {self.stream} of {self.service or 'default'}, {who}, {age:.1f} s, tries: {self.tries}>"
        )

    @property
    def offered(self) -> str:
        """The service's name where it must have one."""
        return self.service or "default"

    @property
    def record(self) -> dict[str, Any]:
        """What ``remembered`` needs, fit for JSON; ``since`` is by CLOCK_MONOTONIC, the same everywhere."""
        names = ("service", "stream", "uid", "pid", "since", "tries")
        return {name: getattr(self, name) for name in names}

    def settle(self) -> None:
        """Release whatever was reserved for it."""
        if self.on_settled is not None:
            self.on_settled()
            self.on_settled = None

    def close(self) -> None:
        """Turn the visitor away."""
        self.settle()
        if self.timer is not None:
            self.timer.cancel()
        self.sock.close()


def make_visitor(sock: socket.socket, service: str, stream: str, now: float) -> Visitor:
    """The visitor behind an accepted connection; the kernel says who it is."""
    pid, uid, _gid = peer_credentials(sock)
    return Visitor(sock, service, stream, uid, pid, now)


def remembered(sock: socket.socket, record: Mapping[str, Any]) -> Visitor:
    """The visitor that another process has recorded.

    Raises:
        KeyError, TypeError, ValueError: the record is not one of a visitor.
    """
    number = int(record["stream"], 16)
    if not 0 < number < _STREAMS_END:
        raise ValueError("the stream's number is none of ours")
    who = int(record["uid"]), int(record["pid"])
    when = float(record["since"]), int(record["tries"])
    return Visitor(sock, str(record["service"]), f"{number:x}", *who, *when)


def has_left(sock: socket.socket) -> bool:
    """True if the visitor has closed its end and left nothing to deliver."""
    poll = select.poll()
    poll.register(sock, 0)  # POLLHUP is always reported: both directions are shut
    if not poll.poll(0):
        return False
    with contextlib.suppress(OSError):
        return not sock.recv(1, socket.MSG_PEEK)
    return True
