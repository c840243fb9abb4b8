"""Watching what is logged, for any number of watchers: each line is recorded once, however many watch.

In a fleet they also see which robots come and go at other servers, which no log here has.
"""

import asyncio
import collections
import contextlib
import logging
from typing import Any

from .. import events
from ..server.overview import Happening, Overview
from ..text import printable

_EVENTS_MAX = 1000  # by which a watcher may lag behind


class Feed(logging.Handler):
    """The last lines of the log, while somebody watches; during that time it is a handler of the log.

    Watchers read from it at their own pace, so one that does not read costs nothing.

    Attributes:
        lines: the last of them.
        count: how many there have been.
    """

    def __init__(self, overview: Overview) -> None:
        """Begin without anybody who watches; ``overview`` says what happens at other servers."""
        super().__init__(logging.INFO)
        self._overview = overview
        self.lines: collections.deque[dict[str, Any]] = collections.deque(maxlen=_EVENTS_MAX)
        self.count = 0
        self._loop = asyncio.get_running_loop()
        self._watchers: set[Watcher] = set()
        self._coming: collections.deque[dict[str, Any]] = collections.deque()  # from other threads, too

    def watch(self) -> "Watcher":
        """Begin to watch; the caller must ``close`` the watcher."""
        watcher = Watcher(self)
        self._watchers.add(watcher)
        events.LOGGER.addHandler(self)
        self._overview.watch(self._happened)
        return watcher

    def forget(self, watcher: "Watcher") -> None:
        """A watcher has stopped watching."""
        self._watchers.discard(watcher)
        if not self._watchers:
            events.LOGGER.removeHandler(self)
            self._overview.watch(None)
            self.lines.clear()

    def emit(self, record: logging.LogRecord) -> None:
        """A line of the log; it may come from any thread, but one at a time (``logging`` has a lock)."""
        if isinstance(events.event_of(record), events.Described):
            return  # a page of who debugs, of many lines; it is in the log
        self._come(_event(record))

    def _happened(self, happening: Happening) -> None:
        """Something at another server."""
        said = {"event": happening.kind, "priority": 6, "message": printable(happening.text)}
        self._come({**said, "fields": dict(happening.fields)})

    def _come(self, line: dict[str, Any]) -> None:
        self._coming.append(line)
        if len(self._coming) == 1:  # else the loop knows already
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._take_in)

    def _take_in(self) -> None:
        while self._coming:
            # Removed last: until then, logging threads need not wake us.
            self.lines.append(self._coming[0])
            self.count += 1
            self._coming.popleft()
        for watcher in self._watchers:
            watcher.news.set()


class Watcher:
    """Somebody who watches.

    Attributes:
        news: set while there is something to report.
    """

    def __init__(self, feed: Feed) -> None:
        self.news = asyncio.Event()
        self.news.set()  # that the watch has begun
        self._feed = feed
        self._next = feed.count  # the number of the line to report next
        self._begun = False

    def take(self) -> dict[str, Any]:
        """The next reply of ``Watch``; call it only when there is ``news``."""
        if not self._begun:
            self._begun = True
            self._look()
            return {"ready": True}
        feed = self._feed
        first = feed.count - len(feed.lines)
        lost = max(0, first - self._next)
        self._next += lost
        reply: dict[str, Any] = {"event": feed.lines[self._next - first]}
        if lost:
            reply["lost"] = lost
        self._next += 1
        self._look()
        return reply

    def _look(self) -> None:
        if self._next == self._feed.count:
            self.news.clear()

    def close(self) -> None:
        """Stop watching."""
        self._feed.forget(self)


def _event(record: logging.LogRecord) -> dict[str, Any]:
    event = events.event_of(record)
    return {
        "event": event.kind() if event else "message",
        "priority": events.priority_of(record),
        "message": printable(record.getMessage()),
        "fields": events.fields_of(record),
    }
