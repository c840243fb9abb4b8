"""Logging: fields for the journal, plain lines for people, and never an exception."""

import io
import logging
import os
import re
import socket
import sys
from pathlib import Path

import pytest
import systemd.journal

from shadow import journal
from shadow.journal import Event, JournalHandler, Sparing, is_journal, journal_fields


@pytest.fixture(autouse=True)
def _restore_logger() -> object:
    handlers, propagate = journal.LOGGER.handlers[:], journal.LOGGER.propagate
    yield
    journal.LOGGER.handlers[:] = handlers
    journal.LOGGER.propagate = propagate


def test_every_event_has_a_message_id_of_its_own() -> None:
    assert len({event.value for event in Event}) == len(list(Event))
    for event in Event:
        assert re.fullmatch(r"[0-9a-f]{32}", event.value)


def test_plain_lines_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    output = io.StringIO()
    journal.setup(output)
    journal.log(Event.ROBOT_CONNECTED, logging.WARNING, "robot 100%d connected", robot="011")
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING: robot 100%d connected\n", output.getvalue())


def test_fields_for_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, str]] = []
    monkeypatch.setattr(
        systemd.journal, "sendv", lambda *fields: sent.append(dict(field.split("=", 1) for field in fields))
    )
    monkeypatch.setattr(sys, "argv", ["/usr/bin/shadow-server"])
    journal.LOGGER.handlers[:] = [JournalHandler()]
    journal.LOGGER.setLevel(logging.INFO)
    journal.log(Event.STREAM_ENDED, logging.ERROR, "over", robot="011", bytes_to_robot=5, duration=0.5)
    (fields,) = sent
    where = {name: fields.pop(name) for name in ("CODE_FILE", "CODE_LINE", "CODE_FUNC")}
    assert (where["CODE_FILE"], where["CODE_FUNC"]) == (__file__, "test_fields_for_the_journal")
    assert int(where["CODE_LINE"]) > 0
    assert fields == {
        "MESSAGE": "over",
        "ROBOT": "011",
        "BYTES_TO_ROBOT": "5",
        "DURATION": "0.5",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "shadow-server",
        "MESSAGE_ID": Event.STREAM_ENDED.value,
    }


def test_a_peers_words_are_harmless_in_fields() -> None:
    record = logging.LogRecord("shadow", logging.INFO, "file", 1, "text", None, None)
    record.facts = {"robot": "x\n\x1b[2J@ROBOT@"}
    assert journal_fields(record)["ROBOT"] == "x??[2J@ROBOT@"


def test_a_record_without_an_event_is_sent_too() -> None:
    record = logging.LogRecord("shadow", logging.INFO, "file", 1, "text", None, None)
    assert "MESSAGE_ID" not in journal_fields(record)


def test_the_journal_is_recognised_by_device_and_inode(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        status = os.fstat(stream.fileno())
        assert is_journal(stream, f"{status.st_dev}:{status.st_ino}")
        assert not is_journal(stream, f"{status.st_dev}:{status.st_ino + 1}")
        assert not is_journal(stream, "")
    assert not is_journal(io.StringIO(), "1:2")


def test_setup_chooses_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, os.fdopen(os.dup(ours.fileno()), "w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        journal.setup(stream)
        assert isinstance(journal.LOGGER.handlers[0], JournalHandler)


def test_a_journal_that_is_away_does_not_stop_us(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_fields: object) -> None:
        raise OSError(111, "Connection refused")

    monkeypatch.setattr(systemd.journal, "sendv", away)
    journal.LOGGER.handlers[:] = [JournalHandler()]
    journal.LOGGER.propagate = False
    journal.log(Event.STOPPING, logging.WARNING, "x")
    assert "Connection refused" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "said"), [(0, "0 robots"), (1, "1 robot"), (2, "2 robots")])
def test_many(number: int, said: str) -> None:
    assert journal.many(number, "robot") == said


def test_what_a_peer_can_repeat_at_will_is_counted_and_not_written(said: list[tuple[Event, str]]) -> None:
    now = 100.0
    sparing = Sparing(lambda: now, at_once=3, a_minute=6)
    logged = [sparing.log(Event.SERVICE_FAILED, logging.WARNING, f"no {number}") for number in range(1000)]
    assert logged == [True] * 3 + [False] * 997
    now = 110.0
    assert sparing.log(Event.SERVICE_FAILED, logging.WARNING, "one more")
    assert not sparing.log(Event.SERVICE_FAILED, logging.WARNING, "too soon")
    now = 200.0
    assert sparing.log(Event.SERVICE_FAILED, logging.WARNING, "and now")
    assert [text for _event, text in said] == [
        "no 0", "no 1", "no 2",
        "one more (997 more before it were not logged)",
        "and now (1 more before it were not logged)",
    ]  # fmt: skip
