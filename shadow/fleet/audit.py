"""Compares the view with the engine, a part at a time: a change that never came is found all the same.

Some versions of etcd lose events of watches, Debian 12's among them (etcd's issues 17529, 18089, 19179). So
every ten seconds one sixty-fourth of the robots is read as of the view's own revision, from whichever member
answers, and must be the same.
"""

import asyncio
import math

from ..errors import EngineRefused, Unavailable
from .etcd import PAGE, Engine, KeyValue, after
from .keys import Keys, Stranger, parse_entry
from .view import View

PAUSE = 10.0  # seconds
_PARTS = 64
_LEAST = 16  # robots of a part
_TURN = 10_000  # names
_MOMENT = 0.02  # seconds
_LAST = "\xff"  # after all names


class Audit:
    """Goes round and round."""

    def __init__(self, engine: Engine, keys: Keys, view: View) -> None:
        """Begin with the first robot; ``run`` it."""
        self._engine = engine
        self._keys = keys
        self._view = view
        self._next = keys.robots

    async def run(self) -> None:
        """Compare for ever."""
        while True:
            await asyncio.sleep(PAUSE)
            for _ in range(math.ceil(self._share / PAGE)):
                await self.step()

    @property
    def _share(self) -> int:
        return max(_LEAST, math.ceil(len(self._view.entries) / _PARTS))

    async def step(self) -> None:
        """Compare one part, if the view is in a state to be compared."""
        while self._view.busy:  # noqa: ASYNC110 - nobody else wants to know when it ends
            await asyncio.sleep(_MOMENT)
        if self._view.up:
            touched = self._view.touched = set[str]()
            try:
                await self._look(touched)
            except (Unavailable, EngineRefused):
                pass  # the view notices by itself that the engine is away; or the member lags behind
            finally:
                self._view.touched = None

    async def _look(self, touched: set[str]) -> None:
        """Compare one part, but for the robots that change meanwhile."""
        view, start, end = self._view, self._next, after(self._keys.robots)
        resets = view.resets
        limit = min(PAGE, self._share)
        page = await self._engine.page(start, end, view.revision, limit, serializable=True)
        more = page.more and bool(page.found)
        self._next = max(start, page.found[-1].key) + b"\0" if more else self._keys.robots
        ours = await self._ours(start, self._next if more else end)
        theirs = {found.key: found for found in page.found}
        if view.resets == resets:
            for name in ours | {self._name(key) for key in theirs}:
                if name not in touched and not self._agree(name, theirs.get(self._keys.robot(name))):
                    view.doubt(f"about robot {name}, among others")
                    return

    async def _ours(self, start: bytes, end: bytes) -> set[str]:
        """The robots in a range that the view has."""
        first, last = self._name(start), self._name(end)
        names = list(self._view.entries)
        found: set[str] = set()
        for begin in range(0, len(names), _TURN):
            found.update(name for name in names[begin : begin + _TURN] if first <= name < last)
            await asyncio.sleep(0)
        return found

    def _name(self, key: bytes) -> str:
        """A robot's name, or what stands where one should; in the order of the keys, since it is Latin 1."""
        return key[len(self._keys.robots) :].decode("latin-1") if key < after(self._keys.robots) else _LAST

    def _agree(self, name: str, found: KeyValue | None) -> bool:
        """Whether the view has what was found at the engine."""
        ours = self._view.entries.kept(name)
        if found is None:
            return ours is None
        if ours is not None:
            return ours == (found.revision, found.value)
        try:
            self._keys.parse(found.key)
            parse_entry(found.value, found.revision)
        except Stranger:
            return True
        return False
