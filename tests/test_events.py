"""Events: an id for each, and fields that are harmless."""

import logging
import re

import pytest

from shadow import events
from shadow.systemd.journal import journal_fields


def test_every_event_has_a_message_id_of_its_own() -> None:
    kinds = events.Event.__subclasses__()
    assert len({kind.MESSAGE_ID for kind in kinds}) == len(kinds) > 40
    for kind in kinds:
        assert re.fullmatch(r"[0-9a-f]{32}", kind.MESSAGE_ID)


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
