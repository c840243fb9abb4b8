"""Lines whose number the server decides: some of them are logged, the rest is counted."""

from collections.abc import Callable

from .. import events
from ..events import Event
from ..wire.timing import Pace


class Sparing:
    """Lines whose number a peer decides: some at once and so many a minute; the others are counted only."""

    def __init__(self, clock: Callable[[], float], at_once: int = 10, a_minute: float = 10.0) -> None:
        """``clock``: seconds, and it never goes back."""
        self._clock = clock
        self._pace = Pace(a_minute / 60, at_once)
        self._left_out = 0

    def log(self, event: Event, level: int, text: str) -> bool:
        """Log one event like ``events.log``, if that may be, and how many were left out since the last one.

        Args:
            event: see there, as for the rest.
            level: see there.
            text: see there.

        Returns:
            True if it was logged.
        """
        if self._pace.delay(self._clock()):
            self._left_out += 1
            return False
        others, self._left_out = self._left_out, 0
        events.log(event, level, f"{text} ({others} more before it were not logged)" if others else text)
        return True
