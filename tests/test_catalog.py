"""The message catalog: an entry for every event, with fields that the event has, as systemd reads it."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from shadow import events
from shadow.events import Event
from tests.support import CHECKOUT, facts

CATALOG = CHECKOUT / "lib" / "systemd" / "catalog" / "shadow-tunnel.catalog"
WIDTH_MAX = 90  # columns; journalctl puts three more before each line
ADDED_BY_JOURNALD = {"_SYSTEMD_UNIT"}  # to all that a unit logs (systemd.journal-fields(7))
# What a peer has said and nobody has checked. journalctl prints an explanation as it is, control
# characters and all, and people paste the commands in it.
UNCHECKED = {
    events.RobotRefused: {"ROBOT"},
    events.ServiceFailed: {"SERVICE", "STREAM"},
    events.SessionStarted: {"SESSION"},
    events.StreamStarted: {"STREAM"},
    events.StreamEnded: {"STREAM"},
    events.StreamAborted: {"STREAM"},
}


@dataclass(frozen=True)
class Entry:
    """One entry."""

    id: str
    headers: dict[str, str]
    text: str


def entries() -> list[Entry]:
    found = []
    for block in re.split("^-- ", CATALOG.read_text(), flags=re.MULTILINE)[1:]:
        head, _blank, text = block.partition("\n\n")
        number, *lines = head.splitlines()
        found.append(Entry(number, dict(line.split(": ", 1) for line in lines), text))
    return found


def entry(kind: type[Event]) -> Entry:
    return next(entry for entry in entries() if entry.id == kind.MESSAGE_ID)


def test_each_event_has_its_entry_and_no_entry_is_unknown() -> None:
    assert [entry.id for entry in entries()] == [kind.MESSAGE_ID for kind in facts.KINDS]


def test_every_event_is_made_somewhere_and_all_places_are_understood() -> None:
    made = facts.calls()
    assert {kind for call in made for kind in call.kinds} == set(facts.KINDS)
    for call in made:
        assert all(facts.always(kind) <= call.fields for kind in call.kinds), call
    # Some that were read by hand.
    assert facts.always(events.RobotRefused) == {"ROBOT", "PEER", "CODE"}
    assert facts.always(events.KtlsUnavailable) == set()  # the client names its robot, the server has none
    by_client = next(call for call in made if call.module == "client.streams" and call.fields)
    assert by_client.kinds == frozenset({events.StreamStarted})
    assert "VISITOR_UID" not in by_client.fields


@pytest.mark.parametrize("kind", facts.KINDS, ids=lambda kind: kind.__name__)
def test_fields_are_those_the_event_is_logged_with(kind: type[Event]) -> None:
    used = set(re.findall("@([A-Z_]+)@", "\n".join([*entry(kind).headers.values(), entry(kind).text])))
    allowed = facts.always(kind) - UNCHECKED.get(kind, set())
    assert used - allowed - ADDED_BY_JOURNALD == set()


@pytest.mark.parametrize("kind", facts.KINDS, ids=lambda kind: kind.__name__)
def test_headers_and_text(kind: type[Event]) -> None:
    found = entry(kind)
    assert list(found.headers) == ["Subject", "Defined-By", "Documentation"]
    assert found.headers["Defined-By"] == "Shadow"
    for reference in found.headers["Documentation"].split():
        page = re.fullmatch(r"man:(\S+)\((\d)\)", reference)
        assert page is not None, reference
        assert (CHECKOUT / "man" / f"{page[1]}.{page[2]}.scd").is_file(), reference
    assert len(found.text.strip().splitlines()) >= 3
    assert [line for line in found.text.splitlines() if len(line) > WIDTH_MAX] == []
    for number in re.findall("[0-9a-f]{32}", found.text):
        assert number in {each.MESSAGE_ID for each in facts.KINDS}


def test_systemd_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "usr" / "lib" / "systemd" / "catalog"
    folder.mkdir(parents=True)
    shutil.copy(CATALOG, folder)
    made = subprocess.run(
        ["journalctl", "--update-catalog", f"--root={tmp_path}"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    listed = subprocess.run(
        ["journalctl", f"--root={tmp_path}", "--list-catalog"], capture_output=True, text=True, check=True
    )
    said = dict(line.split(" ", 1) for line in listed.stdout.splitlines())
    assert said == {entry.id: f"Shadow: {entry.headers['Subject']}" for entry in entries()}
