"""When a server has too many robots, and how many of them it sends away: no I/O, and no clock.

A server looks at itself only, and never sends away more than it has above the mean; those with fewer robots
send none. So servers cannot send robots to and fro, unless whatever decides where robots go wants them where
they were.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from .entries import Holder


class Terms(NamedTuple):
    """What is too much, and how fast it is changed.

    Attributes:
        above: a server begins above so many times the mean,
        least: and with at least so many robots above it;
        down_to: it goes on down to so many times the mean.
        share: of its robots, how much goes at once; at least one does.
        calm: seconds for which the same servers must have been there.
        rest: seconds to wait if robots do not go.
        settled: seconds that a robot must have been here before it is sent away.
        again: seconds before one is told again that has stayed.
    """

    above: float = 1.2
    least: int = 50
    down_to: float = 1.05
    share: float = 0.005
    calm: float = 60.0
    rest: float = 600.0
    settled: float = 60.0
    again: float = 3600.0


class Balance:
    """Decides for one server.

    Attributes:
        terms: what is too much.
        sheds: robots are to go.
        mean: how many a server has, by the last look.
    """

    def __init__(self, terms: Terms | None = None) -> None:
        """Nothing is known yet."""
        self.terms = terms or Terms()
        self.sheds = False
        self.mean = 0.0
        self._servers: frozenset[Holder] | None = None
        self._from = math.inf  # when to begin at the earliest

    def look(self, now: float, here: int, others: Mapping[Holder, int] | None, leaving: int) -> int:
        """How many robots to send away now; call it about once a second.

        Args:
            now: by any clock that does not jump.
            here: how many robots we have.
            others: how many each of the other servers has that take robots. None: that is not known, or does
                not matter.
            leaving: how many of ours were told to go, and are still here.
        """
        servers = None if others is None else frozenset(others)
        if servers != self._servers:
            self._servers, self._from = servers, now + self.terms.calm
        if not others or now < self._from:
            self.sheds = False
            return 0
        self.mean = (here + sum(others.values())) / (len(others) + 1)
        self.sheds = here > self._enough if self.sheds else self._is_too_many(here - leaving)
        if not self.sheds:
            return 0
        at_once = max(1, math.ceil(self.terms.share * here))
        return max(0, min(at_once, here - leaving - self._enough))

    def rest(self, now: float) -> None:
        """Nobody is left who could go: leave it at that for a while."""
        self.sheds = False
        self._from = now + self.terms.rest

    def surplus(self, here: int) -> int:
        """How many of the robots here are too many."""
        return max(0, here - self._enough)

    def state(self, now: float) -> str:
        """A few words for debugging."""
        if self._servers is None:
            return "others do not matter"
        if now < self._from:
            return f"waits for {self._from - now:.0f} s"
        return f"{'sends some away' if self.sheds else 'content'}, {self.mean:.1f} on average"

    @property
    def _enough(self) -> int:
        return math.ceil(self.mean * self.terms.down_to)

    def _is_too_many(self, here: int) -> bool:
        return here > self.mean * self.terms.above and here - self.mean >= self.terms.least
