"""Where events go: to the journal with their fields, or to a terminal as lines.

Each kind of line has a quota for each robot or address, so that no peer decides how often we log. See
systemd.journal-fields(7) and sd-journal's ``sd_journal_send(3)``.
"""

import copy
import enum
import logging
import os
import sys
from collections.abc import Hashable
from typing import TextIO

from .. import events
from ..errors import no_thread
from ..events import LOGGER, STEPS, Event, event_of, fields_of, priority_of
from ..text import many
from .outlet import JOURNALD, Journald, Outlet, Terminal, native
from .quota import PAUSE, Held, Quota, Rate


def _make_outlet(stream: TextIO | None) -> Outlet:
    if stream is not None and is_journal(stream, os.environ.get("JOURNAL_STREAM", "")):
        return Outlet(Journald(JOURNALD), encode_native, _Gate(), _lost_record)
    lines = logging.Formatter("%(asctime)s %(levelname)s: %(message)s", "%H:%M:%S")
    return Outlet(
        Terminal(stream),
        lambda record: f"{lines.format(record)}\n".encode(errors="backslashreplace"),
        _Gate(),
        _lost_record,
    )


class Level(enum.StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def number(self) -> int:
        """As ``logging`` has it."""
        return logging.getLevelNamesMapping()[self.name]


def setup(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send events to the journal if systemd gave us one, else as plain lines to ``stream`` (stderr).

    Whoever reads them may be as slow as he likes; see ``outlet``. What is below ``level`` is counted only.

    Raises:
        LocalError: there is no thread to be had for that.
    """
    close()
    try:
        outlet = _make_outlet(stream or sys.stderr)
    except RuntimeError as error:
        raise no_thread("the log's thread", error) from error
    outlet.setLevel(level)
    STEPS.setLevel(level)
    for logger in (LOGGER, logging.getLogger("asyncio")):  # which would write to stderr by itself, and wait
        logger.handlers[:] = [outlet]
        logger.propagate = False
    LOGGER.setLevel(logging.DEBUG)  # what is only counted


def close() -> None:
    """Have what was logged written, if it is taken within a second; end the thread that writes."""
    for handler in LOGGER.handlers[:]:
        if isinstance(handler, Outlet):
            LOGGER.removeHandler(handler)
            handler.close()


def lost() -> int:
    """How many lines nobody has taken."""
    return sum(handler.lost for handler in LOGGER.handlers if isinstance(handler, Outlet))


def is_journal(stream: TextIO, journal_stream: str) -> bool:
    """True if ``stream`` is the very socket that ``$JOURNAL_STREAM`` names (systemd.exec(5)).

    The comparison matters: a program started from a service inherits the variable, but its output may
    long have been redirected elsewhere.
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or not a file at all
        return False
    return journal_stream == f"{status.st_dev}:{status.st_ino}"


# What peers and strangers can cause: no more of it for each than people read, so that none of them decides
# how often we log, and journald drops no line of another for it. Figures count all, who watches sees all.
_OFTEN = Rate(20, 3.0)
_STREAMS = Rate(2000, 0.02)
_STRANGERS = Rate(60, 1.0)
_BY_ROBOT: dict[type[Event | None], Rate] = {
    events.RobotConnected: _OFTEN, events.RobotDisconnected: _OFTEN, events.RobotTakenOver: _OFTEN,
    events.SocketFailed: _OFTEN, events.Renewed: _OFTEN, events.RenewalFailed: _OFTEN,
    events.VisitorFailed: _OFTEN, events.ServiceFailed: _OFTEN, events.SessionStarted: _OFTEN,
    events.SessionLost: _OFTEN, events.StreamStarted: _STREAMS, events.StreamEnded: _STREAMS,
    events.StreamAborted: _STREAMS, events.StoreFull: _OFTEN,
}  # fmt: skip


def limits_of(record: logging.LogRecord) -> list[tuple[Hashable, Rate]]:
    """Whose a record is, and how many of those there may be; nothing: as many as come."""
    event = event_of(record)
    kind: type[Event | None] = type(event)
    if isinstance(event, events.HandshakeFailed | events.RobotRefused):
        address = event.peer.rpartition(":")[0]  # he may have many, so all together are limited
        return [((kind, address), _OFTEN), ((kind,), _STRANGERS)]
    if kind in _BY_ROBOT:
        return [((kind, getattr(event, "robot", None)), _BY_ROBOT[kind])]
    if event is None and record.levelno > logging.DEBUG:  # a bug, and whatever makes it happen again
        return [((record.pathname, record.lineno), _OFTEN)]
    return []


class _Gate:
    """See ``outlet.Gate``."""

    def __init__(self) -> None:
        self._quota: Quota[logging.LogRecord] = Quota()

    def admit(self, record: logging.LogRecord, now: float) -> bool:
        kept = _without_trace(record) if record.exc_info else record
        return all(self._quota.admit(key, rate, kept, now) for key, rate in limits_of(record))

    def due(self, now: float) -> list[logging.LogRecord]:
        return [_summary(held) for held in self._quota.due(now)]

    def patience(self, now: float) -> float | None:
        return self._quota.patience(now)


def _without_trace(record: logging.LogRecord) -> logging.LogRecord:
    """Fit to be kept: a traceback keeps everything alive that was on the stack."""
    kept = copy.copy(record)
    kept.exc_info = kept.exc_text = None
    return kept


def _summary(held: Held[logging.LogRecord]) -> logging.LogRecord:
    record = copy.copy(held.last)
    text = f"{held.count} more within {PAUSE:.0f} s, the last one: {record.getMessage()}"
    record.msg, record.args = "%s", (text,)
    return record


def _lost_record(count: int) -> logging.LogRecord:
    text = f"{many(count, 'line')} of this log were lost: nobody took them"
    record = LOGGER.makeRecord(LOGGER.name, logging.WARNING, __file__, 0, "%s", (text,), None)
    record.event = events.LogLost()
    return record


def encode_native(record: logging.LogRecord) -> bytes:
    """A record as journald takes it, with its facts as fields."""
    return native({"MESSAGE": _FORMATTER.format(record), **journal_fields(record)})


_FORMATTER = logging.Formatter()


def journal_fields(record: logging.LogRecord) -> dict[str, str]:
    """The fields of a record besides MESSAGE=."""
    fields = fields_of(record)
    fields |= {"CODE_FILE": record.pathname, "CODE_LINE": str(record.lineno)}
    fields["CODE_FUNC"] = record.funcName or ""
    fields["PRIORITY"] = str(priority_of(record))
    fields["SYSLOG_IDENTIFIER"] = _identifier()
    event = event_of(record)
    if event is not None:
        fields["MESSAGE_ID"] = event.MESSAGE_ID
    return fields


def _identifier() -> str:
    return os.path.basename(sys.argv[0]) or "shadow"  # noqa: PTH119 - argv[0] is a word, not a path to use
