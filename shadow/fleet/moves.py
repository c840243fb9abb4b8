"""Robots that were told to go to another server, until it is known whether they have gone.

Where they go is not ours to say: they try the addresses that they know, the present one last. Behind a
balancer that may be this server again, and then a robot has stayed.
"""

import asyncio
from collections import Counter
from typing import NamedTuple

from ..server.robot import Robot
from ..server.robots import Robots
from ..server.session import Session
from ..wire.frames import Move
from .keys import Live
from .view import View

_WITHIN = 60.0  # seconds that a robot has to try all addresses that it knows
_GONE, _STAYED = "gone", "stayed"


def takers(view: View) -> dict[str, Live]:
    """The servers that take robots, and what each says about itself."""
    found = ((name, view.live(name)) for name in view.servers)
    return {name: live for name, live in found if live is not None and not live.draining}


class _Told(NamedTuple):
    """Which session was told, and when."""

    session: Session
    at: float


class Moves:
    """Those on their way.

    Attributes:
        count: how many have gone, and how many have stayed, by these two words; for metrics.
    """

    def __init__(self, robots: Robots) -> None:
        """Nobody is; ``robots`` are those of our server."""
        self.count = Counter({_GONE: 0, _STAYED: 0})
        self._robots = robots
        self._loop = asyncio.get_running_loop()
        self._told: dict[str, _Told] = {}

    def __str__(self) -> str:
        counts = [f"{count} {result}" for result, count in self.count.items()]
        return ", ".join([f"{len(self)} on their way", *counts])

    def __len__(self) -> int:
        """How many have been told, and are still here."""
        return len(self._told)

    def __contains__(self, name: str) -> bool:
        """Whether a robot has been told, and is still here."""
        return name in self._told

    def tell(self, robot: Robot, session: Session) -> bool:
        """Tell a robot, which has this session; False: it does not understand MOVE, so end the session."""
        self._told[robot.name] = _Told(session, self._loop.time())
        if session.moves:
            session.channel.send(Move())
        return session.moves

    def look(self) -> list[str]:
        """See what has become of them; return the names of those who have stayed."""
        stayed = []
        for name, told in list(self._told.items()):
            robot = self._robots.get(name)
            session = None if robot is None else robot.session
            if session is told.session and self._loop.time() - told.at < _WITHIN:
                continue
            del self._told[name]
            if session is not None:  # perhaps another one: it has come back
                stayed.append(name)
            self.count[_GONE if session is None else _STAYED] += 1
        return stayed

    def forget(self) -> None:
        """Whoever was told is free to stay."""
        self._told.clear()
