"""What events have in common: fields that are complete, and harmless."""

import logging

import pytest

from shadow import events
from shadow.eventlog import event_of
from shadow.systemd.journal import journal_fields


def test_what_is_none_is_no_fact() -> None:
    stopping = events.Stopping(robots=3)
    assert stopping.facts == {"robots": 3}
    assert (stopping.kind(), events.KtlsUnavailable.kind()) == ("stopping", "ktls-unavailable")


def test_a_peers_words_are_harmless_in_fields() -> None:
    record = logging.LogRecord("shadow", logging.INFO, "file", 1, "text", None, None)
    record.event = events.SocketFailed(robot="x\n\x1b[2J@ROBOT@")
    assert journal_fields(record)["ROBOT"] == "x??[2J@ROBOT@"


def test_an_event_has_the_fields_of_its_kind_and_no_others() -> None:
    made = events.SocketFailed(robot="011")
    assert made == events.SocketFailed(robot="011") != events.SocketRestored(robot="011")
    assert repr(made) == "SocketFailed({'robot': '011'})"
    facts: dict[str, str] = {}
    with pytest.raises(TypeError, match="SocketFailed: robot"):
        events.SocketFailed(**facts)
    with pytest.raises(TypeError, match="Reloaded: robot"):
        events.Reloaded(robot="011")


def test_an_event_comes_with_its_record() -> None:
    made = events.SocketFailed(robot="011")
    record = logging.LogRecord("shadow", logging.INFO, "file", 1, "text", None, None)
    assert event_of(record) is None
    record.event = made
    assert event_of(record) is made
