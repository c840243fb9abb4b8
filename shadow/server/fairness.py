"""Who of many is served next, and how many at once, so that nobody keeps all others waiting.

No I/O and no clock.
"""

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Turns(Generic[Item]):
    """Sources take turns: one item of each, then the next of each.

    Attributes:
        running: items taken and not done.
        waiting: items that came and have not been taken.
    """

    def __init__(self, at_once: int, share: int, waiting_max: int) -> None:
        """At most ``at_once`` items run, ``share`` of one source; ``waiting_max`` wait."""
        self._at_once = at_once
        self._share = share
        self._waiting_max = waiting_max
        self.running = 0
        self.waiting = 0
        self._queues: dict[str, deque[Item]] = {}
        self._running: dict[str, int] = {}
        self._ready: OrderedDict[str, None] = OrderedDict()  # sources with somebody who may run, in turn

    def came(self, source: str, item: Item) -> Item | None:
        """An item of ``source`` came; who has to leave for it: nobody, itself, or one of another source.

        When too many wait, that is the last one of the source that most of them are of: whoever crowds
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
        """Whose turn it is, with its source; somebody's it must be."""
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
        """Everybody who waits, to be sent away."""
        everybody = [item for queue in self._queues.values() for item in queue]
        self._queues.clear()
        self._ready.clear()
        self.waiting = 0
        return everybody

    def _look_at(self, source: str) -> None:
        """Keep the books of a source; it joins the end of the line when it becomes ready."""
        queue, running = self._queues.get(source), self._running.get(source, 0)
        if not queue:
            self._queues.pop(source, None)
        if not running:
            self._running.pop(source, None)
        if not queue or running >= self._share:
            self._ready.pop(source, None)
        else:
            self._ready.setdefault(source)
