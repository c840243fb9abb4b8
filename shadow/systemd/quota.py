"""How often the same thing may be said: a burst, then at a fixed rate; the rest is counted.

No I/O and no clock.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")

PAUSE = 60.0  # seconds until we say how many were held back
_KEYS_MAX = 1024  # that we remember


@dataclass(frozen=True, slots=True)
class Rate:
    """``burst`` at once, then one every ``seconds``."""

    burst: float
    seconds: float


@dataclass(slots=True)
class Held(Generic[Item]):
    """What was held back: how many, since when, and the last of them."""

    count: int
    since: float
    last: Item


@dataclass(slots=True)
class _Bucket(Generic[Item]):
    tokens: float
    at: float
    held: Held[Item] | None = None


class Quota(Generic[Item]):
    """Counts by keys; a key that has not been used for long may start afresh."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[Hashable, _Bucket[Item]] = OrderedDict()
        self._holding: dict[Hashable, Held[Item]] = {}  # in the order of their beginnings
        self._forgotten: list[Held[Item]] = []

    def admit(self, key: Hashable, rate: Rate, item: Item, now: float) -> bool:
        """Whether ``item`` may be said now; if not, it is held back."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(rate.burst, now)
            if len(self._buckets) > _KEYS_MAX:
                self._forget()
        self._buckets.move_to_end(key)
        bucket.tokens = min(rate.burst, bucket.tokens + (now - bucket.at) / rate.seconds)
        bucket.at = now
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return True
        if bucket.held is None:
            bucket.held = self._holding[key] = Held(0, now, item)
        bucket.held.count += 1
        bucket.held.last = item
        return False

    def _forget(self) -> None:
        key, bucket = self._buckets.popitem(last=False)
        if bucket.held is not None:
            self._forgotten.append(self._holding.pop(key))

    def due(self, now: float = math.inf) -> list[Held[Item]]:
        """What was held back ``PAUSE`` seconds ago, to be said now; without a time, all of it."""
        due, self._forgotten = self._forgotten, []
        while self._holding:
            key = next(iter(self._holding))
            if now < self._holding[key].since + PAUSE:
                break
            due.append(self._holding.pop(key))
            self._buckets[key].held = None
        return due

    def patience(self, now: float) -> float | None:
        """Seconds until something is due; None if nothing is held back."""
        if self._forgotten:
            return 0.0
        first = next(iter(self._holding.values()), None)
        return None if first is None else max(0.0, first.since + PAUSE - now)
