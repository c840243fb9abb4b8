"""The server's view of one robot's streams: who visits, since when, and how each ends."""

import asyncio
import logging
from collections.abc import Callable, ItemsView, Iterator, Mapping
from typing import Any

from .. import events
from ..errors import LocalError
from ..relay.durable import DurableStreams
from ..relay.ending import Ending, Whose, Words, log_end
from ..relay.flow import Pump
from ..relay.roster import Roster
from ..transport.link import Link
from .visitor import Visitor, remembered

_WORDS = Words(near="visitor", link="robot", target="robot")
_WORDS_FROM_AFAR = Words(near="visitor", link="robot's server", target="robot")


class Streams:
    """The streams of one robot, all of its services together.

    Attributes:
        lines: the lines over which the robot is connected.
    """

    def __init__(self, robot: str, durable: DurableStreams, on_end: Callable[[], None]) -> None:
        """Begin without any; ``on_end`` is called after the end of each."""
        self._robot = robot
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._roster: Roster[Visitor] = Roster(durable, self._ended)
        self.lines = self._roster.lines

    def __len__(self) -> int:
        """How many are running."""
        return len(self._roster)

    def __iter__(self) -> Iterator[Pump]:
        """Their pumps."""
        return iter(self._roster)

    @property
    def direct(self) -> int:
        """How many of them lead to the robot itself, not to another server that has it."""
        return sum(visitor.is_direct for _pump, visitor in self._roster.items())

    def items(self) -> ItemsView[Pump, Visitor]:
        """The streams and their visitors."""
        return self._roster.items()

    def begin(self, visitor: Visitor, link: Link) -> None:
        """Hand the relay a visitor whose service is connected.

        Args:
            visitor: the visitor.
            link: what leads to the robot, or to its server.

        Raises:
            PeerError: the visitor does not take what we send; the link is closed.
            LocalError: no descriptors left; the link is closed, the visitor is the caller's.
        """
        if visitor.door is None:
            raise LocalError("the visitor has a stream already")
        try:
            near = visitor.door.enter()
        except BaseException:
            link.abort()
            raise
        # A link to another server does not say whose stream it is.
        self._roster.begin(near, link, visitor, {**visitor.record, "robot": self._robot})
        visitor.door = None
        event = events.StreamStarted(
            robot=self._robot,
            service=visitor.offered,
            stream=visitor.stream,
            ktls="yes" if link.in_kernel else "no",
            standby="no" if visitor.waited else "yes",
            wait=round(self._loop.time() - visitor.since, 4),
            server=visitor.server or None,
            visitor_uid=visitor.uid,
            visitor_pid=visitor.pid,
            visitor_user=visitor.user or None,
            visitor_host=visitor.host or None,
            visitor_stream=visitor.there or None,
        )
        text = f"robot {self._robot}: stream {visitor.stream} started for uid {visitor.uid}{visitor.known_as}"
        text += f", by way of server {visitor.server}" if visitor.server else ""
        events.log(event, logging.INFO, text)

    def resume(self, pump: Pump, facts: Mapping[str, Any]) -> Visitor:
        """Continue a stream that the previous daemon has left; return its visitor. See ``durable.TakeIn``."""
        visitor = remembered(facts, None)
        self._roster.go_on(pump, visitor)
        return visitor

    def cut(self, wanted: Callable[[Pump, Visitor], bool], why: str) -> int:
        """Cut off all streams that are ``wanted``, from our side; return how many.

        Their ends are reported like all others, when the relay's threads get to it.
        """
        doomed = [pump for pump, visitor in self._roster.items() if wanted(pump, visitor)]
        for pump in doomed:
            self._roster.durable.relay.cut(pump, why)
        return len(doomed)

    def cut_off_revoked(self, revocation: Callable[[Link], str | None]) -> int:
        """Cut off streams over links with revoked certificates; return how many."""
        count = 0
        for pump, visitor in list(self._roster.items()):
            *nearer, link = pump.links
            whose = ""
            if revocation(link):
                whose = "robot's server's" if visitor.server else "robot's"
            elif any(map(revocation, nearer)):
                whose = "visitor's server's"
            if whose:
                self._roster.durable.relay.cut(pump, f"the {whose} certificate was revoked")
                count += 1
        return count

    def _ended(self, pump: Pump, visitor: Visitor) -> None:
        duration = self._loop.time() - visitor.since
        moved = pump.up.moved, pump.down.moved
        whose = Whose(visitor.uid, visitor.pid, visitor.user, visitor.host, visitor.there)
        ending = Ending(self._robot, visitor.offered, visitor.stream, *moved, duration, whose)
        log_end(pump, ending, _WORDS_FROM_AFAR if visitor.server else _WORDS)
        self._on_end()
