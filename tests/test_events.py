"""Events: an id for each, and fields that are harmless."""

import logging
import re

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
