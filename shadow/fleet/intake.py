"""Whether the engine takes what this server writes; it may answer everything else.

An engine that is full grants no lease until somebody makes room (etcd 3.4 and 3.5 go on taking entries, for
they do not count what is in a transaction inside another), and one with users may let us read only. Then the
others take us for gone, and robots may be in no directory, so the servers have to ask each other
(``whereabouts``).
"""

import logging
from collections.abc import Callable

from .. import events
from ..errors import EngineFull, EngineRefused, brief

_REASON_MAX = 400  # characters


class Intake:
    """What became of what was written last.

    Attributes:
        open: it was taken, as far as we know.
    """

    def __init__(self, answers: Callable[[], bool]) -> None:
        """Suppose that it will be; ``answers``: whether we may read; else that is known already."""
        self.open = True
        self._answers = answers

    def took(self) -> None:
        """Something was written."""
        if not self.open:
            self.open = True
            events.log(events.EngineFound(), logging.INFO, "the fleet's engine takes again what we write")

    def refused(self, error: EngineFull | EngineRefused) -> None:
        """Something was not, and the next will not be."""
        if self.open and self._answers():
            self.open = False
            text = f"{brief(error, _REASON_MAX)}; the other servers take this one for gone"
            text += "; robots and visitors here are served all the same"
            events.log(events.WritesRefused(), logging.ERROR, text)
