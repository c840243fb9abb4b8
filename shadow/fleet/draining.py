"""A server that is to be stopped for longer has its robots go to others first, and takes no more of them.

Robots that understand MOVE begin a session elsewhere before they end the one here: nobody notices. Others are
refused, and come back elsewhere in a moment. Streams go on where they are until they end, or until the time
that somebody has given them is up. Even then streams of a robot that no other server takes go on: to end them
would help nobody.
"""

import asyncio
import dataclasses
import logging
import math

from .. import events
from ..errors import LocalError
from ..server.questions import By
from ..server.robot import Robot
from ..server.robots import Robots
from ..server.session import Cause
from ..text import many
from ..wire.frames import Refusal
from .keys import Progress
from .live import Announcement
from .moves import Moves, takers
from .view import View

_RATE = 100  # robots a second: as many handshakes for the others, three each
_WHY = "the server is being drained"


class Draining:
    """See ``directory.Drainer``; somebody calls ``tick`` once a second.

    Attributes:
        on: we drain.
        moves: the robots that were told to go.
    """

    def __init__(self, robots: Robots, name: str, view: View, announcement: Announcement) -> None:
        """Do not drain yet.

        Args:
            robots: of our server.
            name: our name in the fleet.
            view: knows the other servers.
            announcement: tells them.
        """
        self._robots = robots
        self._name = name
        self._view = view
        self._announcement = announcement
        self._loop = asyncio.get_running_loop()
        self.moves = Moves(robots)
        self.on = self._done = False
        self._begun, self._timeout = 0.0, math.inf  # by the loop's clock; seconds
        self._visited = 0  # robots that have streams here

    def start(self, by: By, timeout: float | None = None) -> None:
        """See ``Drainer``.

        Raises:
            LocalError: no other server of the fleet would take them.
        """
        if not self._others:
            raise LocalError("no other server of the fleet is alive and takes robots")
        self._begun, self._timeout = self._loop.time(), timeout or math.inf
        self._done = False
        self._set(on=True)
        text = f"draining: {many(self._robots.connected, 'robot')} to go to other servers"
        if timeout is not None:
            text += f"; streams that are left then are ended after {timeout:g} s"
        events.log(events.DrainBegun(), logging.INFO, f"{text}; by order of {by}")

    def stop(self, by: By) -> None:
        """See ``Drainer``."""
        if self.on:
            self._set(on=False)
            text = f"draining is over: robots are taken again; by order of {by}"
            events.log(events.DrainOver(), logging.INFO, text)

    def close(self) -> None:
        """The server is about to stop; the next daemon does not drain."""
        self.on = self._robots.draining = False

    @property
    def remark(self) -> str:
        """What the status line should say; usually nothing."""
        return "" if not self.on else ", drained" if self._done else ", draining"

    @property
    def progress(self) -> Progress:
        """How far we are."""
        left = max(0.0, self._begun + self._timeout - self._loop.time())
        return Progress(self._visited, None if math.isinf(left) else math.ceil(left))

    def tick(self) -> None:
        """Send robots away while we drain."""
        if self.on:
            self.moves.look()
            # If the others have gone meanwhile, a robot is better here than nowhere.
            self._robots.draining = bool(self._others)
            if self._robots.draining:
                self._send_away()
            self._look_at_streams()
            self._report()

    def _set(self, *, on: bool) -> None:
        self.on = self._robots.draining = on
        self.moves.forget()
        self._announcement.say(dataclasses.replace(self._announcement.live, draining=on, progress=Progress()))

    @property
    def _others(self) -> set[str]:
        """The servers that take robots."""
        return takers(self._view).keys() - {self._name}

    def _send_away(self) -> None:
        """The next robots go; those that are visited come last."""
        quiet: list[Robot] = []
        visited: list[Robot] = []
        for robot in self._robots.values():  # of 100,000 only as many are looked at as must be
            if robot.session is not None and robot.name not in self.moves:
                (visited if robot.streams else quiet).append(robot)
                if len(quiet) == _RATE:
                    break
        visited.sort(key=lambda robot: len(robot.streams))
        for robot in [*quiet, *visited][:_RATE]:
            session = robot.session
            if session is not None and not self.moves.tell(robot, session):
                robot.end_session(_WHY, Cause.DRAINING, Refusal("draining", _WHY))

    # Streams

    def _look_at_streams(self) -> None:
        """Count the robots that have any; end those whose time is up, and whose robots are elsewhere."""
        # Streams that lead to other servers do not count: their robots are elsewhere anyway.
        visited = [robot for robot in self._robots.values() if robot.streams and robot.streams.direct]
        self._visited = len(visited)
        if self._loop.time() - self._begun < self._timeout or not self._robots.draining:
            return
        for robot in [robot for robot in visited if robot.session is None][:_RATE]:
            why = f"{_WHY}, and the {self._timeout:g} s are over that streams were given"
            robot.streams.cut(lambda _pump, visitor: visitor.is_direct, why)

    def _report(self) -> None:
        """Say so when nothing is left."""
        done = not self._robots.connected and not self._visited
        if done and not self._done:
            text = "drained: no robot and no stream of one is left, "
            text += f"after {self._loop.time() - self._begun:.0f} s"
            events.log(events.Drained(), logging.INFO, text)
        self._done = done
