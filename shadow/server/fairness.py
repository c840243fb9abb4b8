"""Who is served next, and how many at once, so that nobody keeps all others waiting.

No I/O and no clock.
"""

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """Sources take turns: one item of each, then the next of each.

    Attributes:
        running: items that were taken and are not done.
        waiting: items that came and were not taken yet.
    """

    def __init__(self, at_once: int, share: int, waiting_max: int) -> None:
        """At most ``at_once`` items run, at most ``share`` of one source; at most ``waiting_max`` wait."""
        self._at_once = at_once
        self._share = share
        self._waiting_max = waiting_max
        self.running = 0
        self.waiting = 0
        self._queues: dict[str, deque[Item]] = {}
        self._running: dict[str, int] = {}
        self._ready: OrderedDict[str, None] = OrderedDict()  # sources with an item that may run, in turn

    def came(self, source: str, item: Item) -> Item | None:
        """An item of ``source`` came; return the item to drop: none, itself, or one of another source.

        If too many wait, that is the newest item of the source with the most waiting: a source that crowds
        out others is crowded out first.
        """
        self._queues.setdefault(source, deque()).append(item)
        self.waiting += 1
        self._look_at(source)
        if self.waiting <= self._waiting_max:
            return None
        crowd = max(self._queues, key=lambda one: len(self._queues[one]))
        loser = self._queues[crowd].pop()
        self.waiting -= 1
        self._look_at(crowd)
        return loser

    @property
    def may_take(self) -> bool:
        """Whether it is anybody's turn now."""
        return self.running < self._at_once and bool(self._ready)

    def take(self) -> tuple[str, Item]:
        """The item whose turn it is, with its source; call it only if ``may_take``."""
        source, _ = self._ready.popitem(last=False)
        item = self._queues[source].popleft()
        self.waiting -= 1
        self.running += 1
        self._running[source] = self._running.get(source, 0) + 1
        self._look_at(source)
        return source, item

    def done(self, source: str) -> None:
        """An item of ``source`` that was taken has ended."""
        self.running -= 1
        self._running[source] -= 1
        self._look_at(source)

    def leave(self) -> list[Item]:
        """Remove all waiting items, and return them."""
        everybody = [item for queue in self._queues.values() for item in queue]
        self._queues.clear()
        self._ready.clear()
        self.waiting = 0
        return everybody

    def _look_at(self, source: str) -> None:
        """Update the records of a source; it joins the end of the line when it becomes ready."""
        queue, running = self._queues.get(source), self._running.get(source, 0)
        if not queue:
            self._queues.pop(source, None)
        if not running:
            self._running.pop(source, None)
        if not queue or running >= self._share:
            self._ready.pop(source, None)
        else:
            self._ready.setdefault(source)


class Places(Generic[Item]):
    """So many places for items that should leave soon; who comes gets one.

    When all are taken, the source with the most gives one up: the one it has held longest. So even a source
    whose items never leave keeps nobody out, not even those of its own that leave soon.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._taken = 0
        self._items: dict[str, dict[Item, None]] = {}

    def __len__(self) -> int:
        """How many are taken."""
        return self._taken

    def came(self, source: str, item: Item) -> Item | None:
        """An item of ``source`` came; return the one that has to leave, if one has to."""
        self._items.setdefault(source, {})[item] = None
        self._taken += 1
        if self._taken <= self._number:
            return None
        crowd = max(self._items, key=lambda one: len(self._items[one]))
        loser = next(iter(self._items[crowd]))
        self.left(crowd, loser)
        return loser

    def left(self, source: str, item: Item) -> None:
        """An item of ``source`` left; harmless if it had to."""
        items = self._items.get(source, {})
        if item in items:
            del items[item]
            self._taken -= 1
            if not items:
                del self._items[source]
