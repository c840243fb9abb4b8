"""Descriptors: how many are left, who may still have one, and what we give up when they run short.

The number of descriptors of a process is limited (RLIMIT_NOFILE in getrlimit(2)). Using up the last one harms
everybody else: a visitor cannot be served without the robot's connection, and nobody can find out what is
wrong. So there is a reserve. We accept visitors as long as all of it is left, and robots as long as half of
it is left; the rest is for the API, the log, files and whatever else has to work then. Connections that are
not accepted wait in the kernel's backlog, and cost nothing.

All methods must be called in the event loop's thread.
"""

import asyncio
import logging
import resource
from collections.abc import Callable
from pathlib import Path

from .. import events
from ..errors import reason

_OURS = Path("/proc/self/fd")
_RESERVE_PART = 5  # one descriptor in this many belongs to the reserve
_RESERVE_MAX = 128
_CALM = 5.0  # seconds in which nobody had to wait: then the shortage is over
_REMINDER = 60.0  # seconds between two lines that say that it is not
_MEMORY = 0.1  # seconds for which a no holds: thousands may ask, and each answer takes a look at everything
_RECOUNT = 1.0  # seconds between two counts for those who only ask whether robots have to wait


class Descriptors:
    """The descriptors of this process."""

    def __init__(self, give_up: Callable[[int], int], later: int) -> None:
        """Count the free ones.

        Args:
            give_up: closes up to this many standbys, and returns how many it closed.
            later: how many a visitor needs besides its own before its stream runs.
        """
        self._give_up = give_up
        self._later = later
        self._loop = asyncio.get_running_loop()
        self._free = 0  # at least this many are free; counting takes longer the more are in use
        self._reserve = 0
        self._promised = 0
        self._since: float | None = None  # when somebody first had to wait; ``_last``: most recently
        self._last = self._said = 0.0
        self._given_up = self._refused = 0
        self._denied = 0  # so many, or more, are not there until then
        self._denied_until = self._short_until = self._exhausted_until = 0.0
        self._robots_wait = False
        self._recount_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.count()

    @property
    def limit(self) -> int:
        """How many there may be."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    @property
    def short(self) -> bool:
        """True if there are none to spare for things that only save time."""
        if self._since is not None:
            return True
        now = self._loop.time()
        if now >= self._short_until and not self._has(self._reserve):
            self._short_until = now + _MEMORY
        return now < self._short_until

    def for_visitor(self) -> bool:
        """Whether one more visitor may be accepted: there must be enough for all that serving it takes."""
        return self._let_in(1 + self._later + self._promised + self._reserve)

    def for_robot(self) -> bool:
        """Whether one more connection of a robot may be accepted."""
        self._robots_wait = not self._let_in(self._for_a_robot)
        return not self._robots_wait

    @property
    def robots_wait(self) -> bool:
        """True if the last connection of a robot had to wait, and there is no room for one since then.

        In contrast to ``for_robot`` nothing is given up for that, and it may be asked as often as you like.
        """
        now = self._loop.time()
        if self._robots_wait and now >= self._recount_at:
            self._recount_at = now + _RECOUNT
            self._robots_wait = not self._has(self._for_a_robot)
        return self._robots_wait

    @property
    def _for_a_robot(self) -> int:
        return 1 + self._reserve // 2

    def for_caller(self) -> bool:
        """Whether somebody who only asks us something may be accepted: always, of the reserve if need be."""
        self.took_one()
        return True

    def took_one(self) -> None:
        """One more is in use, and not for a connection that was let in."""
        self._free -= 1

    def promise(self) -> Callable[[], None]:
        """A visitor was accepted; call the returned function, once, when it needs no more descriptors."""
        self._promised += self._later
        return self._keep_promise

    def _keep_promise(self) -> None:
        self._promised -= self._later
        self._free -= self._later

    def ran_out(self, error: OSError) -> None:
        """Accepting failed nevertheless: the machine has no descriptors or no memory left."""
        now = self._loop.time()
        if now >= self._exhausted_until:
            self._exhausted_until = now + _MEMORY
            self._given_up += self._give_up(max(1, self._reserve // 2))
        self._let_wait(reason(error))

    def refused_standby(self) -> None:
        """A standby was refused, because it would only save time."""
        self._refused += 1

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _let_in(self, wanted: int) -> bool:
        now = self._loop.time()
        if self._free < wanted and wanted >= self._denied and now < self._denied_until:
            return False
        if not self._has(wanted):
            # A few more than that, or the next one to come would have to look for one again.
            self._given_up += self._give_up(wanted - self._free + self._reserve // 2)
            if not self._has(wanted):
                self._let_wait(
                    f"{max(0, self._free)} of {self.limit} descriptors are left, and those are needed"
                )
                self._denied, self._denied_until = wanted, now + _MEMORY
                return False
        self._free -= 1
        return True

    def _has(self, wanted: int) -> bool:
        if self._free < wanted:
            self.count()
        return self._free >= wanted

    def count(self) -> None:
        """Count the free ones; needed where many were taken that nobody has told us of."""
        limit = self.limit
        self._reserve = min(limit // _RESERVE_PART, _RESERVE_MAX)
        try:
            # The folder's size is their number from Linux 6.2 on (fs/proc/fd.c), and 0 before.
            self._free = limit - (_OURS.stat().st_size or sum(1 for _one in _OURS.iterdir()))
        except OSError:  # not even one is left to look with
            self._free = 0

    # What we log: that a shortage began, once a minute that it goes on, and a summary at its end.

    def _let_wait(self, why: str) -> None:
        self._last = now = self._loop.time()
        if self._since is None:
            self._since = self._said = now
            text = f"accepting pauses: {why} (LimitNOFILE= of the unit may be too low)"
            events.log(events.AcceptPaused(), logging.ERROR, text)
            self._timer = self._loop.call_later(_CALM, self._look)
        elif now - self._said >= _REMINDER:
            self._said = now
            text = f"accepting still pauses, for {now - self._since:.0f} s now: {why}"
            events.log(events.AcceptPaused(), logging.ERROR, text)

    def _look(self) -> None:
        assert self._since is not None  # noqa: S101 - the code that set the timer has set it
        now = self._loop.time()
        if now - self._last < _CALM:
            self._timer = self._loop.call_at(self._last + _CALM, self._look)
            return
        text = f"accepting goes on: for {self._last - self._since:.0f} s there were too few descriptors; "
        text += f"{self._given_up} standby channels were given up, {self._refused} refused"
        events.log(events.AcceptResumed(), logging.WARNING, text)
        self._since = self._timer = None
        self._given_up = self._refused = 0
