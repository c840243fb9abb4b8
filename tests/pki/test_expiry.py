"""Warnings before something ends: when, how often, and what they say."""

import datetime as dt
import logging
from pathlib import Path

import pytest

from shadow import events
from shadow.client.certificate_store import LoadedPair
from shadow.pki.certificates import Purpose, load_credentials, validity
from shadow.pki.expiry import Calendar, Term, terms
from tests.support import Authority, now

END = dt.datetime(2030, 6, 1, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
SECOND = dt.timedelta(seconds=1)
MINUTE = 60 * SECOND
BEGIN = END - 730 * DAY
TERM = Term("certificate a.crt", BEGIN, END, "make another")

Said = list[tuple[events.Event, int, str]]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    lines: Said = []
    monkeypatch.setattr(events, "log", lambda event, level, text: lines.append((event, level, text)))
    return lines


@pytest.mark.parametrize(
    ("left", "level", "words"),
    [
        (30 * DAY, logging.WARNING, "expires in 30 days"),
        (7 * DAY + SECOND, logging.WARNING, "expires in 7 days"),
        (DAY + SECOND, logging.WARNING, "expires in 1 day"),
        (DAY - SECOND, logging.ERROR, "expires within a day"),
        (-SECOND, logging.ERROR, "HAS EXPIRED"),
        (-400 * DAY, logging.ERROR, "HAS EXPIRED"),
    ],
)
def test_what_it_says(said: Said, left: dt.timedelta, level: int, words: str) -> None:
    calendar = Calendar()
    calendar.look([TERM], END - left)
    ((event, said_level, text),) = said
    assert said_level == level
    assert text == f"certificate a.crt {words} (2030-06-01 12:00:00 UTC): make another"
    assert event == events.Expires(expires="2030-06-01T12:00:00+00:00", days=left // DAY)
    assert calendar.remark == f"; certificate a.crt {words}"


def test_nothing_before_its_time(said: Said) -> None:
    calendar = Calendar()
    calendar.look([TERM], END - 30 * DAY - SECOND)
    assert (said, calendar.remark) == ([], "")
    calendar.look([], END)
    assert (said, calendar.remark) == ([], "")


def test_once_at_each_stage(said: Said) -> None:
    calendar = Calendar()
    hours = 40 * 24
    for hour in range(hours + 48):
        calendar.look([TERM], END - dt.timedelta(hours=hours - hour))
    assert [event.facts["days"] for event, _level, _text in said] == [30, 7, 1, 0]


@pytest.mark.parametrize(
    "life",
    [dt.timedelta(minutes=2), dt.timedelta(hours=1), DAY, 7 * DAY, 30 * DAY, 90 * DAY, 365 * DAY, 3650 * DAY],
)
def test_no_warning_while_renewal_is_on_time(own: Authority, said: Said, life: dt.timedelta) -> None:
    """It is asked for at 70 % of the life at the latest; nothing is said then, nor after it succeeded."""
    crt, key = own.robot(days=(-life / DAY, 0.001))
    pair = LoadedPair(load_credentials(own.ca, crt, key, Purpose.ROBOT, now()), crt)
    begin, end = validity(pair.certificate)
    calendar = Calendar()
    calendar.look([Term("it", begin, end, "")], pair.due)
    calendar.look([Term("it", pair.due, pair.due + life, "")], pair.due)
    assert (said, calendar.remark) == ([], "")


def test_a_short_life_is_warned_of_late(said: Said) -> None:
    """Of a certificate for ten days, at a quarter, a tenth and a fortieth of that, and at the end."""
    calendar, life = Calendar(), 10 * DAY
    for step in range(1001):
        calendar.look([Term("it", END - life, END, "")], END - life + step * life / 1000)
    assert [level for _event, level, _text in said] == [logging.WARNING] * 2 + [logging.ERROR] * 2
    left = [END - 2.5 * DAY, END - DAY, END - DAY / 4, END]
    assert [event.facts["days"] for event, _level, _text in said] == [(END - when) // DAY for when in left]


def test_a_clock_that_jumps(said: Said) -> None:
    """Ahead by years and back: all that is near the end is said again when the end is near again."""
    calendar = Calendar()
    calendar.look([TERM], END - 5 * DAY)
    calendar.look([TERM], END + 3000 * DAY)
    calendar.look([TERM], END - 3000 * DAY)
    assert calendar.remark == ""
    calendar.look([TERM], END - 5 * DAY)
    assert [event.facts["days"] for event, _level, _text in said] == [5, -3000, 5]


def test_a_new_certificate_ends_the_matter(said: Said) -> None:
    calendar = Calendar()
    calendar.look([TERM], END - DAY / 2)
    calendar.look([Term(TERM.what, END - 10 * DAY, END + 700 * DAY, TERM.advice)], END - DAY / 2)
    assert len(said) == 1
    assert calendar.remark == ""


def test_the_status_tells_of_the_first_to_end(said: Said) -> None:
    calendar = Calendar()
    calendar.look([TERM, Term("list b.crl", BEGIN, END - 3 * DAY, "sign it")], END - 9 * DAY)
    assert len(said) == 2
    assert calendar.remark == "; list b.crl expires in 6 days"


def test_everything_that_a_side_uses(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "First CA")
    second = Authority(tmp_path / "second", "Second CA")
    crt, key = authority.robot("011")
    ca = tmp_path / "both.crt"
    ca.write_bytes(authority.ca.read_bytes() + second.ca.read_bytes())
    credentials = load_credentials(ca, crt, key, Purpose.ROBOT, now())
    found = terms(credentials, crt, ca, "`this`")
    assert [term.what for term in found] == [
        f"certificate {crt}", f"CA certificate 'First CA' in {ca}", f"CA certificate 'Second CA' in {ca}",
    ]  # fmt: skip
    assert found[0].until == validity(credentials.chain[0])[1]
    assert found[0].advice == "make a new one with `this`"
