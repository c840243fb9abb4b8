"""Sockets here of robots that are at other servers: who opens one visits its robot there.

A socket appears when another server has claimed its robot, and vanishes a minute after nobody has it: then a
visitor finds out at once instead of waiting in vain, but not while a robot moves. There are so many at most;
robots beyond that can be visited by their names only (``gate``).

Thousands of robots may come and go at once, with their server: it is done in turns.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Iterable, Iterator

from .. import text as texts
from ..server.robots import Robots
from .keys import Entry
from .turns import in_turns
from .view import View

_TURN = 200  # sockets made or removed before everybody else has a turn: some five milliseconds
_STAY = 60.0  # seconds for which sockets stay when nobody has their robot
_LOOK = 1.0  # seconds between two looks at those


class Foreign:
    """The sockets of all robots that are not here."""

    def __init__(self, robots: Robots, name: str, view: View, most: int) -> None:
        """Make none yet; ``run`` it.

        Args:
            robots: those of our server.
            name: our name in the fleet.
            view: says where robots are.
            most: how many robots may have sockets.
        """
        self._robots = robots
        self._name = name
        self._view = view
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._due: dict[str, None] = {}
        self._news = asyncio.Event()
        self._open: set[str] = set()
        self._gone: dict[str, float] = {}  # of those in ``_open``: since when nobody has them

    def __len__(self) -> int:
        """How many robots have sockets that are not here."""
        return len(self._open)

    def describe(self) -> Iterator[str]:
        """Lines for debugging."""
        robots = texts.many(len(self._open), "robot")
        yield f"sockets of {robots} that are elsewhere, {len(self._gone)} of them nowhere"

    def take_over(self, name: str) -> None:
        """A robot is not here, or not any more: its sockets are ours to remove."""
        self._open.add(name)
        self._look_at([name])

    # What the view tells (view.Subscriber)

    def on_change(self, robot: str, entry: Entry | None, revision: int) -> None:
        """See ``view.Subscriber``."""
        del revision
        if robot in self._open or (entry is not None and entry.server != self._name):
            self._look_at([robot])

    def on_live(self, server: str) -> None:
        """See ``view.Subscriber``."""
        self._look_at_others(server)

    def on_reset(self) -> None:
        """See ``view.Subscriber``."""
        self._look_at(self._open)
        self._look_at_others()

    def on_engine(self, *, up: bool) -> None:
        """See ``view.Subscriber``: what was there stays."""

    def _look_at_others(self, server: str = "") -> None:
        """Look at the robots of another server, or of all others: our own have sockets by themselves."""
        for holder in self._view.entries.holders:
            if holder.server != self._name and server in {"", holder.server}:
                self._look_at(self._view.entries.held_by(holder))

    def _look_at(self, names: Iterable[str]) -> None:
        self._due.update(dict.fromkeys(names))
        self._news.set()

    # Making and removing

    async def run(self) -> None:
        """Make and remove them, for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._news.wait()
            self._news.clear()
            while self._due:
                for name in list(itertools.islice(self._due, _TURN)):
                    del self._due[name]
                    self._settle(name)
                await asyncio.sleep(0)
            async for name in in_turns(self._old):
                self._remove(name)

    def _settle(self, name: str) -> None:
        entry = self._view.robot(name)
        robot = self._robots.get(name)
        if robot is not None and robot.session is not None:  # its sockets are its own again
            self._forget(name)
        elif entry is not None and entry.server != self._name and self._view.counts(entry):
            self._gone.pop(name, None)
            if name in self._open or len(self._open) < self._most:
                self._make(name, entry.services)
        elif name in self._open:
            self._gone.setdefault(name, self._loop.time())

    def _make(self, name: str, services: tuple[str, ...]) -> None:
        if self._robots.descriptors.short:
            return
        robot = self._robots.provide(name)
        if set(robot.sockets.services) != set(services) and not robot.sockets.provide(services):
            robot.report_if_empty()
        if robot.sockets:
            self._open.add(name)
        else:
            self._forget(name)

    @property
    def _old(self) -> list[str]:
        """Those whose robots nobody has had for long enough."""
        if not self._view.up:
            return []  # nobody knows where robots are
        now = self._loop.time()
        return [name for name, since in self._gone.items() if now - since > _STAY]

    def _remove(self, name: str) -> None:
        robot = self._robots.get(name)
        if name in self._gone and robot is not None and robot.session is None:
            robot.dismiss(f"no server of the fleet has had the robot for {_STAY:g} s")
        self._forget(name)

    def _forget(self, name: str) -> None:
        self._open.discard(name)
        self._gone.pop(name, None)
