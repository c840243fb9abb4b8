"""What all events have in common: message ids and fields, and the way to whoever wants to know of them.

The standard ``logging`` module carries events to their consumers: the journal or a terminal
(``systemd.journal``), metrics, watching callers. Nothing else in Shadow prints.

See systemd.journal-fields(7).
"""

import logging
import re
from typing import ClassVar, dataclass_transform

from .text import printable

LOGGER = logging.getLogger("shadow")
STEPS = LOGGER.getChild("steps")
"""For debugging: a line at each change of state, if ``--log-level=debug`` asks for them. They are no events,
and without that option they cost no more than a call of an empty function."""
STEPS.setLevel(logging.INFO)


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Event:
    """Something that happened; a subclass says what, and its fields are the facts.

    A field ``robot`` becomes the journal's ``ROBOT=``; a field that is None is left out. A type checker takes
    subclasses for frozen dataclasses. Real ones, some fifty, would take a tenth of a daemon's start.

    Attributes:
        MESSAGE_ID: 128 bits in hexadecimal, one for each kind; never change one that was released.
        FIELDS: the names of its fields.
        NEEDED: those that every event of the kind has.
    """

    MESSAGE_ID: ClassVar[str]
    FIELDS: ClassVar[tuple[str, ...]]
    NEEDED: ClassVar[frozenset[str]]

    def __init_subclass__(cls, message_id: str) -> None:
        """Record what the fields are; those with a default are attributes of the class by now."""
        cls.MESSAGE_ID = message_id
        cls.FIELDS = tuple(vars(cls).get("__annotations__", ()))
        cls.NEEDED = frozenset(name for name in cls.FIELDS if name not in vars(cls))

    def __init__(self, **facts: str | float | None) -> None:
        """Set these fields.

        Raises:
            TypeError: one is missing, or there is no such field.
        """
        if wrong := (self.NEEDED - facts.keys()) | (facts.keys() - self.FIELDS):
            raise TypeError(f"{type(self).__name__}: {', '.join(sorted(wrong))}")
        vars(self).update(facts)

    def __eq__(self, other: object) -> bool:
        """True if it is the same kind of event with the same facts."""
        return isinstance(other, Event) and type(self) is type(other) and self.facts == other.facts

    __hash__ = None  # type: ignore[assignment]  # nobody looks one up

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.facts})"

    @classmethod
    def kind(cls) -> str:
        """Its name for those who watch: ``robot-connected``."""
        return re.sub("(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    @property
    def facts(self) -> dict[str, str | float]:
        """The fields that are set."""
        named = ((name, getattr(self, name)) for name in self.FIELDS)
        return {name: value for name, value in named if value is not None}


def log(event: Event, level: int, text: str) -> None:
    """Log one event.

    Args:
        event: what happened.
        level: one of the levels of ``logging``; becomes the journal's PRIORITY=.
        text: one line for a human.
    """
    LOGGER.log(level, "%s", text, extra={"event": event}, stacklevel=2)


def event_of(record: logging.LogRecord) -> Event | None:
    """The event that a record carries, if any."""
    event = getattr(record, "event", None)
    return event if isinstance(event, Event) else None


def fields_of(record: logging.LogRecord) -> dict[str, str]:
    """The facts of an event, as journal fields.

    Some are a peer's own words, and ``journalctl -x`` inserts fields into commands that people paste.
    """
    event = event_of(record)
    return {name.upper(): printable(str(value)) for name, value in event.facts.items()} if event else {}


def priority_of(record: logging.LogRecord) -> int:
    """PRIORITY=, a level of syslog(3)."""
    return _PRIORITIES.get(record.levelno, 6)


_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
