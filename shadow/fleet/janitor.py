"""Removes entries that lead nowhere: whose servers have been gone for long, or are in another life.

Every server watches for how long; the one with the smallest name removes. An entry goes only if it is still
the one that we saw, and its server still gone.
"""

import asyncio
import logging

from .. import events
from .. import text as texts
from ..errors import EngineRefused, Unavailable
from .entries import Holder
from .etcd import SWAPS_MAX, Engine, Swap
from .keys import Keys
from .view import View

PATIENCE = 600.0  # seconds
_PAUSE = 15.0  # seconds


class Janitor:
    """One server's."""

    def __init__(self, engine: Engine, keys: Keys, view: View, server: str) -> None:
        """Begin to watch; ``run`` it. ``server``: our name."""
        self._engine = engine
        self._keys = keys
        self._view = view
        self._server = server
        self._gone: dict[Holder, float] = {}  # since when, by the loop's clock

    async def run(self) -> None:
        """Watch for ever."""
        while True:
            await asyncio.sleep(_PAUSE)
            try:
                await self.step(asyncio.get_running_loop().time())
            except (Unavailable, EngineRefused):
                self._gone.clear()

    async def step(self, now: float) -> None:
        """Note who is gone, and remove the entries that lead to who has been gone for long enough.

        Raises:
            Unavailable, EngineRefused: the engine; what is left is for the next time.
        """
        if not self._view.up:  # then who is gone has perhaps just not been heard
            self._gone.clear()
            return
        gone = [holder for holder in self._view.entries.holders if not self._view.counts(holder)]
        self._gone = {holder: self._gone.get(holder, now) for holder in gone}
        if self._view.servers[:1] == [self._server]:
            for holder in [holder for holder, since in self._gone.items() if now - since >= PATIENCE]:
                await self._clear(holder)

    async def _clear(self, holder: Holder) -> None:
        """Remove the entries that lead to a server."""
        held = self._view.entries.held_by(holder)
        names = list(held)
        removed = 0
        for begin in range(0, len(names), SWAPS_MAX):
            # By now others may have claimed some of them.
            swaps = [self._swap(name, holder) for name in names[begin : begin + SWAPS_MAX] if name in held]
            removed += sum(swapped.ok for swapped in await self._engine.swap(swaps))
        if removed:
            text = f"removed {texts.many(removed, 'robot')} of server {holder.server}, which is gone"
            events.log(events.EntriesCleared(), logging.INFO, text)

    def _swap(self, name: str, holder: Holder) -> Swap:
        # A server that is back in another life writes new entries, which have other revisions.
        there = self._view.live(holder.server) is not None
        unless = b"" if there else self._keys.server(holder.server)
        return Swap(self._keys.robot(name), self._view.entries.revision(name), None, unless=unless)
