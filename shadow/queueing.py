"""Who of many is served next, and how many at once, so that nobody keeps all others waiting.

No I/O and no clock.
"""

import math
from collections import OrderedDict, deque
from dataclasses import dataclass
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


class Pace:
    """So many a second, and no more than ``burst`` at once."""

    def __init__(self, rate: float, burst: float | None = None) -> None:
        """Start with all that may go at once; without ``burst`` that is a second's worth."""
        self._rate = rate
        self._burst = self._tokens = rate if burst is None else burst
        self._last: float | None = None

    def delay(self, now: float) -> float:
        """Seconds until the next one may go; 0 takes it as gone."""
        if self._last is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
        self._last = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate

    def give_back(self) -> None:
        """One that has gone does not count after all."""
        self._tokens = min(self._burst, self._tokens + 1)


class Window:
    """How many may be under way at once: more while that costs no time, fewer when it does.

    What takes its time on the line takes no longer if many are under way; what takes a CPU does, and if all
    of many begin at once, all end late at once, too late perhaps. So the time that one takes is compared with
    the best time there was, as TCP Vegas does. The best time doubles each minute, for lines change.
    """

    _LEAST, _FIRST, _MOST = 2.0, 6.0, 64.0
    _MEMORY = 60.0  # seconds

    def __init__(self) -> None:
        self._size = self._FIRST
        self._best = math.inf
        self._last = 0.0

    @property
    def size(self) -> int:
        """So many."""
        return int(self._size)

    def took(self, seconds: float, now: float) -> None:
        """One has ended well, so many seconds after it began."""
        aged = self._best * 2 ** min((now - self._last) / self._MEMORY, 64)
        self._best, self._last = min(aged, seconds), now
        if seconds <= 2 * self._best:
            self._size = min(self._size + 1, self._MOST)
        elif seconds > 4 * self._best:
            self._size = max(self._size - 1, self._LEAST)

    def failed(self) -> None:
        """One has failed."""
        self._size = max(self._size / 2, self._LEAST)


@dataclass(eq=False, slots=True)
class Guest:
    """Somebody with a seat.

    Attributes:
        source: whose it is, e.g. a user or an address.
        first: comes before all others, who cannot make it leave either.
        busy: is being answered; otherwise it is its turn to say something.
    """

    source: str
    first: bool = False
    busy: bool = False


class Seats:
    """So many at once; who comes when all seats are taken gets one from the source that has most.

    So silent guests keep nobody out, and a source that takes many seats loses them to the others.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._guests: dict[Guest, None] = {}  # who has been silent the longest is the first

    def came(self, guest: Guest) -> Guest | None:
        """Somebody came; who has to leave: nobody, somebody else, or the one who came."""
        self._guests[guest] = None
        if len(self._guests) <= self._number:
            return None
        leaver = self._who_leaves(guest)
        del self._guests[leaver]
        return leaver

    def stirred(self, guest: Guest, *, busy: bool) -> None:
        """A guest has said or taken something."""
        guest.busy = busy
        if guest in self._guests:
            del self._guests[guest]
            self._guests[guest] = None

    def left(self, guest: Guest) -> None:
        """A guest has left."""
        self._guests.pop(guest, None)

    def _who_leaves(self, newcomer: Guest) -> Guest:
        parties: dict[str, list[Guest]] = {}
        for guest in self._guests:
            parties.setdefault(guest.source, []).append(guest)
        own = parties.pop(newcomer.source)
        others = [party for party in parties.values() if not party[0].first]
        crowd = max(others, key=len, default=[])
        if len(crowd) > (0 if newcomer.first else len(own)):
            return _least_missed(crowd)
        if newcomer.first and len(own) > 1:
            return _least_missed(own[:-1])
        return _least_missed(own)


def _least_missed(party: list[Guest]) -> Guest:
    """Who is not being answered, and of those who has been silent the longest."""
    return min(party, key=lambda guest: guest.busy)
