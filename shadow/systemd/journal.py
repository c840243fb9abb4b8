"""Where events go: to the journal with their fields, or to a terminal as lines.

Each kind of line has a quota for each robot or address, so that no peer decides how often we log. See
systemd.journal-fields(7) and sd_journal_send(3).
"""

import copy
import enum
import functools
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
        """The number that ``logging`` uses."""
        return logging.getLevelNamesMapping()[self.name]


def setup(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Send events to the journal if systemd gave us one, else as plain lines to ``stream`` (stderr).

    The reader may be as slow as it likes; see ``outlet``. Events below ``level`` are only counted.

    Raises:
        LocalError: the thread for this cannot be started.
    """
    close()
    try:
        outlet = _make_outlet(stream or sys.stderr)
    except RuntimeError as error:
        raise no_thread("the log's thread", error) from error
    outlet.addFilter(functools.partial(_is_wanted, level))
    STEPS.setLevel(level)
    for logger in (LOGGER, logging.getLogger("asyncio")):  # asyncio's would write to stderr, and wait
        logger.handlers[:] = [outlet]
        logger.propagate = False
    LOGGER.setLevel(logging.DEBUG)  # events that are only counted


def _is_wanted(level: int, record: logging.LogRecord) -> bool:
    """Whether a record is written; somebody has asked for a page, whatever else is logged."""
    return record.levelno >= level or isinstance(event_of(record), events.Described)


def close() -> None:
    """Write what was logged, unless the reader takes more than a second; end the thread that writes."""
    for handler in LOGGER.handlers[:]:
        if isinstance(handler, Outlet):
            LOGGER.removeHandler(handler)
            handler.close()


def lost() -> int:
    """How many lines were lost because nobody read them."""
    return sum(handler.lost for handler in LOGGER.handlers if isinstance(handler, Outlet))


def is_journal(stream: TextIO, journal_stream: str) -> bool:
    """True if ``stream`` is the very socket that ``$JOURNAL_STREAM`` names (systemd.exec(5)).

    The comparison matters: a program started from a service inherits the variable, but its output may be
    redirected elsewhere.
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):  # closed, or not a file at all
        return False
    return journal_stream == f"{status.st_dev}:{status.st_ino}"


# Events that peers and strangers can cause: for each of them no more lines than people read, so that none
# decides how often we log, or makes journald drop another's lines. Metrics count them all, and callers that
# watch see them all.
_OFTEN = Rate(20, 3.0)
_STREAMS = Rate(2000, 0.02)
_STRANGERS = Rate(60, 1.0)
_BY_ROBOT: dict[type[Event | None], Rate] = {
    events.RobotConnected: _OFTEN, events.RobotDisconnected: _OFTEN, events.RobotTakenOver: _OFTEN,
    events.SocketFailed: _OFTEN, events.Renewed: _OFTEN, events.RenewalFailed: _OFTEN,
    events.ServiceFailed: _OFTEN, events.GateFailed: _OFTEN, events.SessionStarted: _OFTEN,
    events.SessionLost: _OFTEN, events.StreamStarted: _STREAMS, events.StreamEnded: _STREAMS,
    events.StreamAborted: _STREAMS, events.StoreFull: _OFTEN,
    events.ListRefused: _OFTEN, events.ListPassedOn: _OFTEN, events.DrainBegun: _OFTEN,
    events.DrainOver: _OFTEN,
}  # fmt: skip


def limits_of(record: logging.LogRecord) -> list[tuple[Hashable, Rate]]:
    """The keys that a record counts for, and their rates; an empty list means no limit."""
    event = event_of(record)
    kind: type[Event | None] = type(event)
    if isinstance(event, events.HandshakeFailed | events.RobotRefused | events.PeerRefused):
        address = event.peer.rpartition(":")[0]  # a stranger may have many, so we also limit all together
        return [((kind, address), _OFTEN), ((kind,), _STRANGERS)]
    if isinstance(event, events.VisitorFailed):  # a visitor at the gate of a fleet may make up names
        return [((kind, event.robot), _OFTEN), ((kind,), _STREAMS)]
    if kind in _BY_ROBOT:
        return [((kind, getattr(event, "robot", None)), _BY_ROBOT[kind])]
    if event is None and record.levelno > logging.DEBUG:  # a bug, which may happen again and again
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
    """A copy that we can keep: a traceback keeps everything alive that was on the stack."""
    kept = copy.copy(record)
    kept.exc_info = kept.exc_text = None
    return kept


def _summary(held: Held[logging.LogRecord]) -> logging.LogRecord:
    record = copy.copy(held.last)
    text = f"{held.count} more within {PAUSE:.0f} s, the last one: {record.getMessage()}"
    record.msg, record.args = "%s", (text,)
    return record


def _lost_record(count: int) -> logging.LogRecord:
    text = f"{many(count, 'line')} of this log were lost: nobody read them"
    record = LOGGER.makeRecord(LOGGER.name, logging.WARNING, __file__, 0, "%s", (text,), None)
    record.event = events.LogLost()
    return record


def encode_native(record: logging.LogRecord) -> bytes:
    """A record in journald's format, with its facts as fields."""
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
