"""Carries out what the claims order at the engine: many in one transaction, and two transactions at a time.

One claim is one compare-and-swap. A server to which thousands of robots return gathers theirs for a moment,
because the engine makes some five hundred transactions a second, of one swap or of sixty-four.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from ..errors import EngineRefused, Unavailable
from .claims import Delete, Put
from .etcd import SWAPS_MAX, Engine, KeyValue, Swap, Swapped
from .keys import Entry, Keys, Stranger, parse_entry

_GATHER = 0.005  # seconds
_AT_ONCE = 2  # transactions

Command = Put | Delete


class Client(Protocol):
    """Who gives orders, and wants to hear what became of them."""

    def entry_of(self, put: Put) -> Entry | None:
        """What to write; None: the session has ended, and there is nothing to write any more."""

    def answered(self, order: Command, entry: Entry | None, revision: int, *, done: bool) -> None:
        """See ``Claims.answered``."""

    def unanswered(self, order: Command) -> None:
        """See ``Claims.unanswered``."""


class Writer:
    """Writes the entries of one server.

    Attributes:
        done: how many swaps succeeded.
        lost: how many met another entry than they expected.
        failed: how many got no answer.
    """

    def __init__(self, engine: Engine, keys: Keys, client: Client) -> None:
        self.done = self.lost = self.failed = 0
        self._engine = engine
        self._keys = keys
        self._client = client
        self._waiting: deque[Command] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def give(self, order: Command) -> None:
        """Carry this out soon; of one robot only one at a time."""
        self._waiting.append(order)
        if self._timer is None and len(self._tasks) < _AT_ONCE:
            self._timer = self._loop.call_later(_GATHER, self._go)

    async def close(self) -> None:
        """Forget what has not been sent, and do not wait for answers."""
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _go(self) -> None:
        self._timer = None
        while self._waiting and len(self._tasks) < _AT_ONCE:
            orders = [self._waiting.popleft() for _ in range(min(SWAPS_MAX, len(self._waiting)))]
            task = self._loop.create_task(self._carry_out(orders))
            self._tasks.add(task)
            task.add_done_callback(self._carried_out)

    def _carried_out(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()  # a bug is to be heard of
            self._go()

    async def _carry_out(self, orders: Sequence[Command]) -> None:
        swaps = list(filter(None, map(self._swap, orders)))
        asked = {swap.key: swap for swap in swaps}
        answers: dict[bytes, Swapped] = {}
        try:
            answers = dict(zip(asked, await self._engine.swap(swaps), strict=True))
        except (Unavailable, EngineRefused):
            self.failed += len(orders)
        for order in orders:
            key = self._keys.robot(order.robot)
            try:
                if key in answers:
                    self._report(order, asked[key], answers[key])
                else:
                    self._client.unanswered(order)
            except Exception:  # the others want to hear of theirs
                text = "unexpected error: robot %s may remain unclaimed (please report)"
                logging.getLogger("shadow").exception(text, order.robot)

    def _swap(self, order: Command) -> Swap | None:
        """What to ask for; None: nothing, for the session has ended meanwhile."""
        key = self._keys.robot(order.robot)
        if isinstance(order, Delete):
            return Swap(key, order.expected, None)
        entry = self._client.entry_of(order)
        return None if entry is None else Swap(key, order.expected, entry.encode())

    def _report(self, order: Command, swap: Swap, answer: Swapped) -> None:
        if answer.ok:
            self.done += 1
            written = None if swap.value is None else _read(KeyValue(swap.key, swap.value, answer.revision))
            self._client.answered(order, written, answer.revision, done=True)
        else:
            self.lost += 1
            self._client.answered(order, _read(answer.current), answer.revision, done=False)


def _read(found: KeyValue | None) -> Entry | None:
    """The entry that a key has; nobody's, if others have written something else there: it is overwritten."""
    if found is None:
        return None
    try:
        return parse_entry(found.value, found.revision)
    except Stranger:
        return Entry("", "", "", "", 0, revision=found.revision)
