"""Robots that are to go to other servers: all of them (``draining``), or some (``rebalancing``)."""

import asyncio
import dataclasses
from collections.abc import Iterator, Mapping

from ..server.questions import By
from ..server.robots import Robots
from .balance import Balance
from .draining import Draining
from .keys import Progress
from .live import Announcement
from .rebalancing import Rebalancing
from .view import View

_TICK = 1.0  # seconds


class Leaving:
    """See ``directory.Drainer``; ``run`` it."""

    def __init__(
        self, robots: Robots, name: str, view: View, announcement: Announcement, *, rebalances: bool
    ) -> None:
        """Send nobody away yet.

        Args:
            robots: of our server.
            name: our name in the fleet.
            view: knows the other servers.
            announcement: tells them.
            rebalances: whether to send robots away when there are too many.
        """
        self._announcement = announcement
        self._draining = Draining(robots, name, view, announcement)
        self._rebalancing = Rebalancing(robots, name, view, Balance()) if rebalances else None

    def start(self, by: By, timeout: float | None = None) -> None:
        """See ``Drainer``.

        Raises:
            LocalError: no other server of the fleet would take them.
        """
        self._draining.start(by, timeout)

    def stop(self, by: By) -> None:
        """See ``Drainer``."""
        self._draining.stop(by)

    def close(self) -> None:
        """The server is about to stop; the next daemon does not drain."""
        self._draining.close()

    @property
    def moves(self) -> Mapping[tuple[str, str], int]:
        """See ``Drainer``."""
        counts = {"draining": self._draining.moves.count}
        if self._rebalancing is not None:
            counts["rebalancing"] = self._rebalancing.moves.count
        return {(cause, result): count for cause, one in counts.items() for result, count in one.items()}

    @property
    def remark(self) -> str:
        """What the status line should say; usually nothing."""
        rebalances = self._rebalancing is not None and self._rebalancing.surplus is not None
        return self._draining.remark or (", rebalancing" if rebalances else "")

    def describe(self) -> Iterator[str]:
        """Lines for debugging."""
        if self._draining.on:
            yield f"draining: {self._draining.moves}; {self._draining.progress}"
        if self._rebalancing is not None:
            yield from self._rebalancing.describe()

    async def run(self) -> None:
        """Send robots away as long as that is needed, for ever."""
        while True:
            await asyncio.sleep(_TICK)
            self._draining.tick()
            if self._rebalancing is not None:
                self._rebalancing.tick(drained=self._draining.on)
            self._announcement.add(dataclasses.replace(self._announcement.live, progress=self._progress))

    @property
    def _progress(self) -> Progress:
        if self._draining.on:
            return self._draining.progress
        return Progress(surplus=None if self._rebalancing is None else self._rebalancing.surplus)
