"""A server that is to be stopped for longer has its robots go to others first, and takes no more of them.

Robots that understand MOVE begin a session elsewhere before they end the one here: nobody notices. Others are
refused, and come back elsewhere in a moment. Streams go on where they are until they end.
"""

import asyncio
import dataclasses

from ..errors import LocalError
from ..server.robots import Robots
from ..server.session import Cause
from ..wire.frames import Move, Refusal
from .live import Announcement
from .view import View

_RATE = 100  # robots a second: as many handshakes for the others, three each
_AGAIN = 60.0  # seconds until a robot is asked again that has stayed
_WHY = "the server is being drained"


class Draining:
    """See ``directory.Drainer``; ``run`` it."""

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
        self._on = False
        self._asked: dict[str, float] = {}

    def start(self) -> None:
        """See ``Drainer``.

        Raises:
            LocalError: no other server of the fleet would take them.
        """
        if not self._others:
            raise LocalError("no other server of the fleet is alive and takes robots")
        self._set(on=True)

    def stop(self) -> None:
        """See ``Drainer``."""
        if self._on:
            self._set(on=False)

    @property
    def remark(self) -> str:
        """What the status line should say; usually nothing."""
        return ", draining" if self._on else ""

    async def run(self) -> None:
        """Send robots away while we drain, for ever."""
        while True:
            await asyncio.sleep(1.0)
            if self._on:
                # If the others have gone meanwhile, a robot is better here than nowhere.
                self._robots.draining = bool(self._others)
                if self._robots.draining:
                    self._send_away()

    def _set(self, *, on: bool) -> None:
        self._on = self._robots.draining = on
        self._asked.clear()
        self._announcement.say(dataclasses.replace(self._announcement.live, draining=on))

    @property
    def _others(self) -> list[str]:
        """The servers that take robots."""
        found = ((name, self._view.live(name)) for name in self._view.servers)
        return [name for name, live in found if live is not None and not live.draining and name != self._name]

    def _send_away(self) -> None:
        now = self._loop.time()
        here = [robot for robot in self._robots.values() if robot.session is not None]
        waiting = [robot for robot in here if now >= self._asked.get(robot.name, now)]
        waiting.sort(key=lambda robot: len(robot.streams))  # those that are visited come last
        for robot in waiting[:_RATE]:
            self._asked[robot.name] = now + _AGAIN
            session = robot.session
            if session is not None and session.moves:
                session.channel.send(Move())
            else:
                robot.end_session(_WHY, Cause.DRAINING, Refusal("draining", _WHY))
