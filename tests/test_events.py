"""Events: an id for each, and fields that are harmless."""

import logging
import re

from shadow.events import Event
from shadow.systemd.journal import journal_fields


def test_every_event_has_a_message_id_of_its_own() -> None:
    assert len({event.value for event in Event}) == len(list(Event))
    for event in Event:
        assert re.fullmatch(r"[0-9a-f]{32}", event.value)


def test_a_peers_words_are_harmless_in_fields() -> None:
    record = logging.LogRecord("shadow", logging.INFO, "file", 1, "text", None, None)
    record.facts = {"robot": "x\n\x1b[2J@ROBOT@"}
    assert journal_fields(record)["ROBOT"] == "x??[2J@ROBOT@"
