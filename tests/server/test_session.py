"""A robot's session as the server sees it; what happens in it is in test_robot.py."""

import datetime as dt
import json
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.errors import Refused
from shadow.server.session import Session, checked_services, remembered
from shadow.wire.conversation import CONTROL
from shadow.wire.frames import Hello
from shadow.wire.timing import Keepalive

BEGINNING = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)


def session() -> Session:
    dates = {"not_valid_before_utc": BEGINNING, "not_valid_after_utc": BEGINNING + dt.timedelta(days=1)}
    channel: Any = SimpleNamespace(link=SimpleNamespace(certificate=SimpleNamespace(**dates)))
    return Session(channel, "an id", ("", "web"), Keepalive(20.0, 100.0), "198.51.100.1:4242", 90.0, "crab 1")


def test_it_is_remembered_with_all_that_matters() -> None:
    before = session()
    after = remembered(before.channel, json.loads(json.dumps(before.record)), 500.0)
    assert after.record == before.record
    assert after.until == BEGINNING + dt.timedelta(days=1)
    assert after.services == ("", "web")
    assert after.keepalive.deadline == 500.0 + 3 * 20.0, "as if it had just been heard"
    assert not after.board.visitors
    assert not after.board.standbys


def test_a_version_that_did_not_note_down_what_robots_run() -> None:
    record = session().record
    del record["software"]
    assert remembered(session().channel, record, 0.0).software == ""


@pytest.mark.parametrize("name", ["session", "services", "interval", "peer", "since"])
def test_a_record_that_lacks_something(name: str) -> None:
    record = session().record
    del record[name]
    with pytest.raises(KeyError):
        remembered(session().channel, record, 0.0)


def test_services_are_named_once_and_in_order() -> None:
    hello = Hello(1, CONTROL, "011", ("web", "", "data", "web"))
    assert checked_services(hello) == ("", "data", "web")


@pytest.mark.parametrize("service", ["a/b", "..", "x" * 33, "a@b", "a\0b"])
def test_services_that_cannot_be_files_are_refused(service: str) -> None:
    with pytest.raises(Refused, match="bad-service"):
        checked_services(Hello(1, CONTROL, "011", ("", service)))
