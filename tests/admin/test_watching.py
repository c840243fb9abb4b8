"""What is watched: what has been logged, for as many as watch, at the pace of each."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shadow import events
from shadow.admin import watching
from shadow.admin.watching import Feed, Watcher
from shadow.server.overview import Happening, Overview
from tests.support import DEADLINE


@pytest.fixture
def lines() -> Iterator[None]:
    """A log that goes nowhere but to watchers."""
    level, handlers = events.LOGGER.level, events.LOGGER.handlers[:]
    events.LOGGER.setLevel(logging.INFO)
    events.LOGGER.handlers[:] = [logging.NullHandler()]
    yield
    events.LOGGER.setLevel(level)
    events.LOGGER.handlers[:] = handlers


@pytest.mark.usefixtures("lines")
def test_a_watcher_who_does_not_keep_up_hears_how_much_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_EVENTS_MAX", 3)

    async def scenario() -> list[dict[str, Any]]:
        watcher = Feed(Overview()).watch()
        assert watcher.take() == {"ready": True}
        assert not watcher.news.is_set()
        for number in range(8):
            events.log(events.SocketRestored(robot=f"{number}"), logging.INFO, f"line {number}")
        await asyncio.wait_for(watcher.news.wait(), DEADLINE)
        told = []
        while watcher.news.is_set():
            told.append(watcher.take())
        watcher.close()
        events.log(events.Reloaded(), logging.INFO, "too late")
        await asyncio.sleep(0)
        assert not watcher.news.is_set()
        return told

    told = asyncio.run(scenario())
    assert [reply["event"]["message"] for reply in told] == ["line 5", "line 6", "line 7"]
    assert [reply.get("lost") for reply in told] == [5, None, None]
    assert told[0]["event"] == {
        "event": "socket-restored", "priority": 6, "message": "line 5", "fields": {"ROBOT": "5"},
    }  # fmt: skip


@pytest.mark.usefixtures("lines")
def test_a_line_without_an_event_and_a_peers_own_words() -> None:
    async def scenario() -> list[dict[str, Any]]:
        watcher = Feed(Overview()).watch()
        watcher.take()
        logging.getLogger("shadow").error("a bug %s", "\x1b[2J")
        events.log(events.SocketRestored(robot="\x1b"), logging.WARNING, "x")
        await asyncio.wait_for(watcher.news.wait(), DEADLINE)
        told = [watcher.take(), watcher.take()]
        watcher.close()
        return told

    first, second = asyncio.run(scenario())
    assert first["event"] == {"event": "message", "priority": 3, "message": "a bug ?[2J", "fields": {}}
    assert second["event"]["fields"] == {"ROBOT": "?"}


@pytest.mark.usefixtures("lines")
def test_many_watchers_are_one_handler_and_each_goes_at_its_own_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sixty who do not read make a line of the log no dearer than one."""
    made: list[logging.LogRecord] = []
    note = watching._event

    def take_note(record: logging.LogRecord) -> dict[str, Any]:
        made.append(record)
        return note(record)

    monkeypatch.setattr(watching, "_event", take_note)

    async def scenario() -> None:
        feed = Feed(Overview())
        before = len(events.LOGGER.handlers)
        watchers = [feed.watch() for _ in range(60)]
        assert len(events.LOGGER.handlers) == before + 1
        for watcher in watchers:
            assert watcher.take() == {"ready": True}
        for number in range(3):
            events.log(events.Reloaded(), logging.INFO, f"line {number}")
        quick, slow = watchers[0], watchers[1]
        await asyncio.wait_for(slow.news.wait(), DEADLINE)
        assert len(made) == 3
        assert messages(quick) == ["line 0", "line 1", "line 2"]
        events.log(events.Reloaded(), logging.INFO, "line 3")
        await asyncio.wait_for(quick.news.wait(), DEADLINE)
        assert messages(quick) == ["line 3"]
        assert messages(slow) == ["line 0", "line 1", "line 2", "line 3"]
        for watcher in watchers:
            watcher.close()
        assert len(events.LOGGER.handlers) == before
        late = feed.watch()  # sees nothing of what was before
        assert late.take() == {"ready": True}
        assert not late.news.is_set()
        late.close()

    asyncio.run(scenario())


def messages(watcher: Watcher) -> list[str]:
    told = []
    while watcher.news.is_set():
        told.append(watcher.take()["event"]["message"])
    return told


@pytest.mark.usefixtures("lines")
def test_lines_from_other_threads() -> None:
    async def scenario() -> None:
        watcher = Feed(Overview()).watch()
        watcher.take()

        def shout() -> None:
            for number in range(500):
                logging.getLogger("shadow").info("%d", number)

        shouting = asyncio.ensure_future(asyncio.to_thread(shout))
        seen: list[str] = []
        while len(seen) < 500:
            await asyncio.wait_for(watcher.news.wait(), DEADLINE)
            seen += messages(watcher)
        await shouting
        watcher.close()
        assert seen == [str(number) for number in range(500)]

    asyncio.run(scenario())


class Neighbours(Overview):
    """Others, at which things happen."""

    def __init__(self) -> None:
        self.told: list[Callable[[Happening], None]] = []

    def watch(self, tell: Callable[[Happening], None] | None) -> None:
        self.told = [tell] if tell is not None else []


@pytest.mark.usefixtures("lines")
def test_what_happens_elsewhere_is_asked_for_only_while_somebody_watches() -> None:
    async def scenario() -> None:
        neighbours = Neighbours()
        feed = Feed(neighbours)
        assert neighbours.told == []
        first, second = feed.watch(), feed.watch()
        assert first.take() == second.take() == {"ready": True}
        assert len(neighbours.told) == 1
        neighbours.told[0](Happening("robot-connected", "robot\n011", {"ROBOT": "011", "SERVER": "s2"}))
        said = {"event": "robot-connected", "priority": 6, "message": "robot?011"}
        for watcher in (first, second):
            await watcher.news.wait()
            assert watcher.take() == {"event": {**said, "fields": {"ROBOT": "011", "SERVER": "s2"}}}
        first.close()
        assert len(neighbours.told) == 1
        second.close()
        assert neighbours.told == []

    asyncio.run(scenario())
