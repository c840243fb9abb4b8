"""The last word about a stream."""

import errno
import logging
from dataclasses import replace
from typing import Any

import pytest

from shadow import events
from shadow.events import Event
from shadow.relay.ending import Ending, Whose, Words, log_end
from shadow.relay.ends import Side
from shadow.relay.flow import StreamCut

WORDS = Words(near="visitor", link="robot", target="robot")
ENDING = Ending("011", "default", "2a", 5, 7, 1.25)


class _Pump:
    def __init__(self, cut: StreamCut | None) -> None:
        self.cut = cut


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Event, int, str]]:
    lines: list[tuple[Event, int, str]] = []
    monkeypatch.setattr(events, "log", lambda event, level, text: lines.append((event, level, text)))
    return lines


def test_an_orderly_end(said: list[Any]) -> None:
    log_end(_Pump(None), replace(ENDING, whose=Whose(1000, 7, "alice", "server1", "b")), WORDS)  # type: ignore[arg-type]
    ((event, level, text),) = said
    assert (type(event), level) == (events.StreamEnded, logging.INFO)
    assert text == "robot 011: stream 2a ended: 5 bytes to the robot, 7 bytes from it, 1.2 s"
    assert event.facts == {
        "robot": "011",
        "service": "default",
        "stream": "2a",
        "bytes_to_robot": 5,
        "bytes_from_robot": 7,
        "duration": 1.25,
        "visitor_uid": 1000,
        "visitor_pid": 7,
        "visitor_user": "alice",
        "visitor_host": "server1",
        "visitor_stream": "b",
    }


@pytest.mark.parametrize(
    ("side", "who"), [(Side.NEAR, " by the visitor"), (Side.LINK, " by the robot"), (None, "")]
)
def test_a_cut_names_who_it_was(said: list[Any], side: Side | None, who: str) -> None:
    cut = StreamCut(side, OSError(errno.ECONNRESET, "x"))
    log_end(_Pump(cut), ENDING, WORDS)  # type: ignore[arg-type]
    ((event, _level, text),) = said
    assert isinstance(event, events.StreamAborted)
    assert text.startswith(f"robot 011: stream 2a cut off{who} (Connection reset by peer): ")


def test_a_number_that_the_server_made_up_is_harmless(said: list[Any]) -> None:
    ending = Ending("011", "default", "\x1b[2J", 0, 0, 0)
    log_end(_Pump(None), ending, WORDS)  # type: ignore[arg-type]
    assert "\x1b" not in said[0][2]
