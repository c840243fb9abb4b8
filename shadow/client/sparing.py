"""Log lines whose number the server decides: some are logged, the rest is counted."""

from collections.abc import Callable

from .. import events
from ..events import Event
from ..wire.timing import Pace


class Sparing:
    """Logs lines whose number a peer decides: ``at_once``, then ``a_minute``; others are only counted."""

    def __init__(self, clock: Callable[[], float], at_once: int = 10, a_minute: float = 10.0) -> None:
        """``clock`` returns seconds, and never goes back."""
        self._clock = clock
        self._pace = Pace(a_minute / 60, at_once)
        self._left_out = 0

    def log(self, event: Event, level: int, text: str) -> bool:
        """Log one event like ``events.log``, if allowed, with the number of lines left out before it.

        Args:
            event: see ``events.log``.
            level: see ``events.log``.
            text: see ``events.log``.

        Returns:
            True if it was logged.
        """
        if self._pace.delay(self._clock()):
            self._left_out += 1
            return False
        others, self._left_out = self._left_out, 0
        events.log(event, level, f"{text} ({others} more before it were not logged)" if others else text)
        return True
