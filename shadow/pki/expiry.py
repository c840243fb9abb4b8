"""Everything we use that expires: warns in time, in the log and in the status.

A fleet whose certificates expire unnoticed is lost all at once, and somebody has to visit every robot.
"""

import datetime as dt
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from .. import events
from .. import text as texts
from ..errors import IdentityError
from .certificates import Credentials, common_name, moment, validity

_DAY = dt.timedelta(days=1)

# How long before the end to warn: this many days, but at most this share of the lifetime. Renewal is due when
# a third is left (``certificate_store``): while it is on time we do not warn, however short the lifetime is.
_STAGES = ((30 * _DAY, 1 / 4), (7 * _DAY, 1 / 10), (_DAY, 1 / 40))


@dataclass(frozen=True, slots=True)
class Term:
    """Something that expires.

    Attributes:
        what: its name for a human, e.g. ``certificate /etc/shadow-tunnel/011.crt``.
        since: when it began, aware.
        until: when it expires, aware.
        advice: what to do about it.
    """

    what: str
    since: dt.datetime
    until: dt.datetime
    advice: str


def terms(credentials: Credentials, crt: Path, ca: Path, renewal: str) -> list[Term]:
    """The terms of all certificates that one side of the tunnel uses.

    Args:
        credentials: the certificates.
        crt: the file that our own is in.
        ca: the file that the CA's are in.
        renewal: the command that makes a new certificate of our own.
    """
    own = min(map(validity, credentials.chain), key=lambda term: term[1])
    found = [Term(f"certificate {crt}", *own, f"make a new one with {renewal}")]
    for authority in credentials.ca:
        what = f"CA certificate {_name(authority)!r} in {ca}"
        found.append(Term(what, *validity(authority), "see CA ROLL-OVER in shadow-ca(1)"))
    return found


def _name(authority: x509.Certificate) -> str:
    try:
        return common_name(authority)
    except IdentityError:  # a company's own CA may only have an organisation
        return "without a name"


class Calendar:
    """Warns once at each stage of each term."""

    def __init__(self) -> None:
        self._said: dict[Term, int] = {}  # stages reached
        self._next: tuple[Term, int] | None = None

    def look(self, found: Sequence[Term], now: dt.datetime) -> None:
        """Warn of terms that have reached another stage since the last look."""
        # If a term disappears, or a clock set back makes it young again, we shall have to warn anew.
        said, self._said = self._said, {term: _stage(term, now) for term in found}
        for term, stage in self._said.items():
            if stage > said.get(term, 0):
                _warn(term, stage, now)
        first = min(found, key=lambda term: term.until, default=None)
        self._next = (first, _days(first, now)) if first and self._said[first] else None

    @property
    def remark(self) -> str:
        """What to add to the status line about the term that expires first."""
        if self._next is None:
            return ""
        term, days = self._next
        return f"; {term.what} {_when(days)}"


def _days(term: Term, now: dt.datetime) -> int:
    """Whole days left; negative after the end."""
    return (term.until - now) // _DAY


def warned_from(since: dt.datetime, until: dt.datetime) -> dt.datetime:
    """When to warn for the first time about something that is valid from ``since`` until ``until``."""
    return _warnings(since, until)[0]


def _warnings(since: dt.datetime, until: dt.datetime) -> list[dt.datetime]:
    return [until - min(days, (until - since) * share) for days, share in _STAGES]


def _stage(term: Term, now: dt.datetime) -> int:
    return sum(now >= when for when in (*_warnings(term.since, term.until), term.until))


def _when(days: int) -> str:
    if days < 0:
        return "HAS EXPIRED"
    return f"expires in {texts.many(days, 'day')}" if days else "expires within a day"


def _warn(term: Term, stage: int, now: dt.datetime) -> None:
    days = _days(term, now)
    level = logging.WARNING if stage < len(_STAGES) else logging.ERROR
    text = f"{term.what} {_when(days)} ({moment(term.until)}): {term.advice}"
    events.log(events.Expires(expires=term.until.isoformat(), days=days), level, text)
