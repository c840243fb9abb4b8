"""A robot's session as the server sees it; what happens in it is in test_robot.py."""

import datetime as dt
import json
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.errors import Refused
from shadow.server.session import Session, checked_services, remembered
from shadow.server.visitor import has_left
from shadow.wire.conversation import CONTROL
from shadow.wire.frames import Dial, Frame, Hello
from shadow.wire.timing import Keepalive

BEGINNING = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)


def session(said: list[Frame] | None = None) -> Session:
    dates = {"not_valid_before_utc": BEGINNING, "not_valid_after_utc": BEGINNING + dt.timedelta(days=1)}
    said = [] if said is None else said
    link = SimpleNamespace(certificate=SimpleNamespace(**dates))
    channel: Any = SimpleNamespace(link=link, send=said.append)
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


class Waiting:
    """A visitor, as far as a session knows it."""

    def __init__(self) -> None:
        self.sock, self.end = socket.socketpair()

    @property
    def left(self) -> bool:
        return has_left(self.sock)

    def close(self) -> None:
        self.sock.close()
        self.end.close()


def test_the_robot_is_asked_for_what_is_missing_and_for_no_more() -> None:
    """One channel for each who waits and has none on its way: once, and anew when those have not come."""
    dialled: list[Frame] = []
    made = session(dialled)
    visitors: list[Any] = [Waiting() for _ in range(4)]
    channels: list[Any] = ["first", "second", "third"]
    try:
        assert [made.seat(visitor, again=False) for visitor in visitors[:2]] == [None, None]
        assert dialled == [Dial(1), Dial(1)]
        assert [made.pair(channels[0], 7.0)] == visitors[:1]
        assert made.served == 7.0
        assert made.seat(visitors[0], again=True) is None  # the channel broke
        assert [made.pair(channels[1], 8.0)] == visitors[:1], "it comes before those behind it"
        assert dialled == [Dial(1)] * 3
        made.lose_patience(visitors[3])  # of another session: nobody here; but what was dialled is late
        assert dialled == [Dial(1)] * 4
        made.lose_patience(visitors[1])
        assert len(dialled) == 4, "nobody waits any more"
    finally:
        for visitor in visitors:
            visitor.close()


def test_nobody_is_started_who_has_left() -> None:
    made = session()
    visitors: list[Any] = [Waiting() for _ in range(3)]
    for visitor in visitors:
        made.seat(visitor, again=False)
    for visitor in visitors[:2]:
        visitor.end.close()
    channel: Any = "a channel"
    assert [made.pair(channel, 0.0)] == visitors[2:]
    assert [visitor.sock.fileno() for visitor in visitors[:2]] == [-1, -1]
    visitors[2].close()


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
