"""The robot's view of its streams: which service each is for, since when, and how it ends."""

import asyncio
import functools
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .. import events
from ..relay.durable import DurableStreams
from ..relay.ending import Ending, Words, log_end
from ..relay.ends import Plain
from ..relay.flow import Pump
from ..relay.roster import Roster
from ..text import many, printable
from ..transport.link import Link
from ..wire.frames import Start
from .sparing import Sparing

# Lines of the log: the server decides how often visitors come, but not how much we write to our disk.
_STARTS_AT_ONCE, _STARTS_A_MINUTE = 500, 600.0

_WORDS = Words(near="service", link="server", target="service")

Check = Callable[[Link], None]
"""Raises ShadowError if we would not trust the server behind the link today."""


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """What is known about a running stream."""

    id: str
    service: str
    since: float


class Streams:
    """The streams of one robot, all of its services together.

    Attributes:
        lines: the lines over which the robot is connected to the server.
    """

    def __init__(self, robot: str, durable: DurableStreams) -> None:
        self._robot = robot
        self._loop = asyncio.get_running_loop()
        self._roster: Roster[Stream] = Roster(durable, self._ended)
        self.lines = self._roster.lines
        self._unlogged: set[Stream] = set()  # those whose start was not logged; their end is not, either
        self._log = Sparing(self._loop.time, _STARTS_AT_ONCE, _STARTS_A_MINUTE)

    def __repr__(self) -> str:
        return f"<Streams of {self._robot}: {len(self)}, {len(self._unlogged)} of them not in the log>"

    def describe(self) -> Iterator[str]:
        """For debugging: a line about all of them, and one about each."""
        yield repr(self)
        for pump, stream in list(self._roster.items()):
            age = self._loop.time() - stream.since
            yield f"<Stream {stream.id!r} to {stream.service!r} for {age:.1f} s, {pump!r}>"

    def __len__(self) -> int:
        """How many are running."""
        return len(self._roster)

    @property
    def remark(self) -> str:
        """How many there are, for a status line."""
        return f"{many(len(self), 'stream')}{self._roster.durable.remark}"

    def begin(self, sock: socket.socket, link: Link, start: Start) -> None:
        """Hand the relay a visitor and the connection to the service.

        Raises:
            LocalError: no descriptors left; the link is closed, the socket is the caller's.
        """
        stream = Stream(start.stream[:64], start.service or "default", self._loop.time())
        self._roster.begin(Plain(sock), link, stream, asdict(stream))
        event = events.StreamStarted(
            robot=self._robot,
            service=stream.service,
            stream=stream.id,
            ktls="yes" if link.in_kernel else "no",
        )
        text = f"robot {self._robot}: stream {printable(stream.id)} to service {stream.service} started"
        logged = self._log.log(event, logging.INFO, text)
        if not logged:
            self._unlogged.add(stream)

    def resume(self, check: Check) -> None:
        """Continue what the previous client has left; ``check`` says whether its link is still trusted."""
        self._roster.durable.resume(functools.partial(self._take_in, check))

    def _take_in(self, check: Check, pump: Pump, facts: Mapping[str, Any]) -> None:
        check(pump.link)
        stream = Stream(str(facts["id"])[:64], str(facts["service"]), float(facts["since"]))
        self._roster.go_on(pump, stream)

    def _ended(self, pump: Pump, stream: Stream) -> None:
        if stream in self._unlogged:
            self._unlogged.remove(stream)
            return
        duration = self._loop.time() - stream.since
        moved = (pump.down.moved, pump.up.moved)
        log_end(pump, Ending(self._robot, stream.service, stream.id, *moved, duration), _WORDS)
