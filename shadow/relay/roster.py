"""The streams of one robot, and what is known about each: the same on both sides.

Everything runs in the event loop's thread; the relay's threads report ends through ``call_soon_threadsafe``.
"""

import asyncio
from collections.abc import Callable, ItemsView, Iterator, Mapping
from typing import Any, Generic, TypeVar

from ..net.lines import Lines
from ..transport.link import Link
from .durable import DurableStreams
from .ends import End
from .flow import Pump

Known = TypeVar("Known")


class Roster(Generic[Known]):
    """The running streams of one robot.

    Attributes:
        durable: keeps them.
        lines: the lines over which the robot is connected to its server.
    """

    def __init__(self, durable: DurableStreams, on_end: Callable[[Pump, Known], None]) -> None:
        """Begin without any; ``on_end`` is called after the end of each."""
        self.durable = durable
        self.lines = Lines()
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._known: dict[Pump, Known] = {}

    def __len__(self) -> int:
        """How many are running."""
        return len(self._known)

    def __iter__(self) -> Iterator[Pump]:
        """Their pumps."""
        return iter(self._known)

    def items(self) -> ItemsView[Pump, Known]:
        """Their pumps, and what is known about them."""
        return self._known.items()

    def begin(self, near: End, link: Link, known: Known, facts: Mapping[str, Any]) -> None:
        """Hand a stream to the relay.

        Args:
            near: its end on this side.
            link: the TLS connection that leads through the tunnel.
            known: what is known about it.
            facts: the part of that which the next process needs; fit for JSON.

        Raises:
            LocalError: no descriptors left; the link is closed, the near end is the caller's.
        """
        try:
            pump = self.durable.relay.make(near, link)
            self.durable.keep(pump, facts)
        except BaseException:
            link.abort()
            raise
        self.go_on(pump, known)

    def go_on(self, pump: Pump, known: Known) -> None:
        """Hand a stream to the relay that has been made already.

        Raises:
            LocalError: the relay has ended; the pump is still the caller's.
        """
        for link in pump.links:
            link.line = link.line or self.lines.of(link.sock)
        self.durable.relay.adopt(pump, self._report_end)
        self._known[pump] = known

    def _report_end(self, pump: Pump) -> None:
        self._loop.call_soon_threadsafe(self._ended, pump)

    def _ended(self, pump: Pump) -> None:
        self.durable.ended(pump)
        self._on_end(pump, self._known.pop(pump))
