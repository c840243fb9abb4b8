"""The server's view of one robot's streams: who visits, since when, and how each ends.

Everything runs in the event loop's thread; the relay's threads report ends through ``call_soon_threadsafe``.
"""

import asyncio
import logging
from collections.abc import Callable, ItemsView, Iterator, Mapping
from typing import Any

from .. import events
from ..events import Event
from ..net.lines import Lines
from ..relay.durable import DurableStreams
from ..relay.ending import Ending, Words, log_end
from ..relay.flow import Pump
from ..transport.link import Link
from .visitor import Visitor, remembered

_WORDS = Words(plain="visitor", link="robot", target="robot")


class Streams:
    """The streams of one robot, all of its services together.

    Attributes:
        lines: over which the robot is connected.
    """

    def __init__(self, robot: str, durable: DurableStreams, on_end: Callable[[], None]) -> None:
        """Without any; ``on_end`` is called after the end of each."""
        self.lines = Lines()
        self._robot = robot
        self._durable = durable
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._visitors: dict[Pump, Visitor] = {}

    def __len__(self) -> int:
        """How many run."""
        return len(self._visitors)

    def __iter__(self) -> Iterator[Pump]:
        """Their pumps."""
        return iter(self._visitors)

    def items(self) -> ItemsView[Pump, Visitor]:
        """The streams and their visitors."""
        return self._visitors.items()

    def begin(self, visitor: Visitor, link: Link) -> None:
        """Let the relay have a visitor whom the robot has connected.

        Raises:
            LocalError: no descriptors left; the link is closed, the visitor is the caller's.
        """
        try:
            pump = self._durable.relay.make(visitor.sock, link)
            self._durable.keep(pump, visitor.record)
        except BaseException:
            link.abort()
            raise
        self._durable.relay.adopt(pump, self._report_end)
        pump.line = self.lines.of(link.sock)
        self._visitors[pump] = visitor
        events.log(
            Event.STREAM_STARTED,
            logging.INFO,
            f"robot {self._robot}: stream {visitor.stream} started for uid {visitor.uid}",
            robot=self._robot,
            ktls="yes" if link.in_kernel else "no",
            wait=round(self._loop.time() - visitor.since, 4),
            standby="no" if visitor.waited else "yes",
            **visitor.facts,
        )

    def resume(self, pump: Pump, facts: Mapping[str, Any]) -> Visitor:
        """Go on with a stream that the daemon before us has left, and whose it is; see ``durable.TakeIn``."""
        pump.line = self.lines.of(pump.link.sock)
        visitor = self._visitors[pump] = remembered(pump.plain, facts)
        self._durable.relay.adopt(pump, self._report_end)
        return visitor

    def cut(self, wanted: Callable[[Pump, Visitor], bool], why: str) -> int:
        """Cut off all streams that are ``wanted``, from our side; how many that are.

        Their ends are reported as every end is, when the relay's threads have come to it.
        """
        doomed = [pump for pump, visitor in self._visitors.items() if wanted(pump, visitor)]
        for pump in doomed:
            self._durable.relay.cut(pump, why)
        return len(doomed)

    def _report_end(self, pump: Pump) -> None:
        self._loop.call_soon_threadsafe(self._ended, pump)

    def _ended(self, pump: Pump) -> None:
        self._durable.ended(pump)
        visitor = self._visitors.pop(pump)
        duration = self._loop.time() - visitor.since
        service, moved = visitor.service or "default", (pump.up.moved, pump.down.moved)
        ending = Ending(self._robot, service, visitor.stream, *moved, duration)
        log_end(pump, ending, _WORDS, visitor_uid=visitor.uid, visitor_pid=visitor.pid)
        self._on_end()
