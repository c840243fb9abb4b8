"""The timing of a conversation: keepalive, backoff, rates, windows. No I/O and no clock."""

import math
import random

MISSED_MAX = 3  # keepalive intervals without a word after which the peer counts as dead


class Keepalive:
    """When to send PING, and when to give up on the peer. Times are any monotonic clock's, in seconds."""

    __slots__ = ("_heard", "interval")

    def __init__(self, interval: float, now: float) -> None:
        self.interval = interval
        self._heard = now

    def heard(self, now: float) -> None:
        """The peer said something."""
        self._heard = now

    @property
    def heard_at(self) -> float:
        """When the peer said something for the last time."""
        return self._heard

    def is_dead(self, now: float) -> bool:
        """True after ``MISSED_MAX`` intervals without a word."""
        return now >= self.deadline

    @property
    def deadline(self) -> float:
        """When the peer counts as dead if it says nothing more."""
        return self._heard + MISSED_MAX * self.interval


class Backoff:
    """How long to wait before the next attempt: exponential with full jitter.

    Full jitter (any time between none and the ceiling) is what spreads a fleet that lost its server at the
    same moment. A connection that lasted ``healthy_after`` seconds restarts the series.
    """

    first = 0.5  # seconds, ceiling of the first wait
    ceiling = 30.0  # seconds
    healthy_after = 60.0  # seconds
    patience = 3600.0  # seconds that a server may keep us away

    def __init__(self, source: random.Random | None = None) -> None:
        self._random = source or random.SystemRandom()
        self._failures = 0

    def wait(self, at_least: float = 0.0, at_most: float = math.inf) -> float:
        """Seconds to wait now, after one more failure.

        Args:
            at_least: wait this long and up to half of it more, but never longer than ``patience``.
            at_most: a lower ceiling, for callers in a hurry; ``at_least`` takes precedence.
        """
        # The exponent is bounded too: a robot offline for a year must not overflow a float.
        exponent = min(self._failures, math.ceil(math.log2(self.ceiling / self.first)))
        self._failures += 1
        wait = self._random.uniform(0.0, min(self.ceiling, at_most, self.first * 2**exponent))
        wanted = max(0.0, min(at_least, self.patience))
        return max(wait, self._random.uniform(wanted, min(1.5 * wanted, self.patience)))

    def lived(self, seconds: float) -> None:
        """The last connection lasted that long."""
        if seconds >= self.healthy_after:
            self._failures = 0


class Pace:
    """``rate`` a second, and no more than ``burst`` at once."""

    def __init__(self, rate: float, burst: float | None = None) -> None:
        """Start with a full burst; without ``burst`` that is one second's worth."""
        self._rate = rate
        self._burst = self._tokens = rate if burst is None else burst
        self._last: float | None = None

    def delay(self, now: float) -> float:
        """Seconds until the next one may go; 0 counts it as gone."""
        if self._last is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._last) * self._rate)
        self._last = now
        if self._tokens >= 1:
            self._tokens -= 1
            return 0.0
        return (1 - self._tokens) / self._rate

    def give_back(self) -> None:
        """One that was counted as gone does not count after all."""
        self._tokens = min(self._burst, self._tokens + 1)


class Window:
    """How many may be in progress at once: more while that costs no time, fewer when it does.

    Work that waits for the line takes no longer if many are in progress. Work that needs a CPU does: if many
    begin at once, all end late at once, perhaps too late. So we compare the time of each with the best time
    so far, as TCP Vegas does. The best time doubles each minute, because lines change.
    """

    _LEAST, _FIRST, _MOST = 2.0, 6.0, 64.0
    _MEMORY = 60.0  # seconds

    def __init__(self) -> None:
        self._size = self._FIRST
        self._best = math.inf
        self._last = 0.0

    @property
    def size(self) -> int:
        """How many."""
        return int(self._size)

    def took(self, seconds: float, now: float) -> None:
        """One has succeeded, ``seconds`` after it began."""
        aged = self._best * 2 ** min((now - self._last) / self._MEMORY, 64)
        self._best, self._last = min(aged, seconds), now
        if seconds <= 2 * self._best:
            self._size = min(self._size + 1, self._MOST)
        elif seconds > 4 * self._best:
            self._size = max(self._size - 1, self._LEAST)

    def failed(self) -> None:
        """One has failed."""
        self._size = max(self._size / 2, self._LEAST)
