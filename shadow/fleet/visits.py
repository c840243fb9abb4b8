"""Visitors here of robots that are at other servers: each is taken to where its robot is.

Where that is, the directory says, or the server that the robot has left, or, while no directory answers, each
of the others when asked. A robot that is nowhere may be on its way from one server to another; so a visitor
waits, as it does for a channel of a robot that is here.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

from .. import text as texts
from ..errors import Unreachable, brief
from ..server.directory import Alone
from ..server.robot import Robot
from ..server.visitor import Visitor
from ..wire.frames import Failed, Moved, Started, Visit
from .doors import PeerDoor
from .foreign import Foreign
from .news import News
from .peers import Peers
from .people import People
from .whereabouts import Place, Whereabouts, ask

_CONNECTED, _TURNED_AWAY = "connected", "turned away"
_AGAIN = 0.5  # seconds until a place that was tried in vain is tried again
_LOOK = 0.25  # seconds between two looks for one, and at the visitor, if nobody tells us anything
_ANSWERS = 4  # times the patience that we have with a robot, until its server must have answered


class Visits(Alone):
    """See ``directory.Elsewhere``.

    Attributes:
        news: is to hear what the view is told.
        count: how many visitors were connected to other servers, or turned away, by that word.
        people: knows the names of their users.
    """

    def __init__(self, whereabouts: Whereabouts, peers: Peers, foreign: Foreign, patience: float) -> None:
        """Begin without visitors.

        Args:
            whereabouts: knows where robots may be.
            peers: the channels to other servers.
            foreign: has the sockets of robots that are there.
            patience: seconds that a visitor waits for its robot.
        """
        super().__init__()
        self.news = News()
        self.count = Counter({_CONNECTED: 0, _TURNED_AWAY: 0})
        self._whereabouts = whereabouts
        self._peers = peers
        self._foreign = foreign
        self._patience = patience
        self.people = People()
        self._loop = asyncio.get_running_loop()
        self._tasks: dict[Visitor, asyncio.Task[None]] = {}
        self._closed = False

    async def close(self) -> None:
        """Seek no more; who waits, or comes from now on, is its robot's (``robot.visitors.elsewhere``)."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._whereabouts.close()
        self.people.close()

    def describe(self) -> Iterator[str]:
        """Lines for debugging."""
        if self._tasks:
            yield f"{texts.many(len(self._tasks), 'visitor')} waiting for robots elsewhere"

    # What the server's robots need (directory.Elsewhere)

    def take_over(self, name: str) -> bool:
        """See ``Elsewhere``."""
        self._foreign.take_over(name)
        return True

    def pass_on(self, robot: Robot, visitor: Visitor) -> bool:
        """See ``Elsewhere``: who has come from another server goes back there, and no further."""
        if isinstance(visitor.door, PeerDoor):
            visitor.door.move(self._whereabouts.moved(robot.name))
            visitor.close()
            return True
        robot.visitors.elsewhere.add(visitor)
        if not self._closed:
            task = self._tasks[visitor] = self._loop.create_task(self._serve(robot, visitor))
            task.add_done_callback(lambda task: self._done(robot, visitor, task))
        return True

    def came_back(self, robot: Robot) -> None:
        """See ``Elsewhere``."""
        self.news.tell(robot.name)

    def _done(self, robot: Robot, visitor: Visitor, task: asyncio.Task[None]) -> None:
        if self._tasks.get(visitor) is task:  # else it was seated here, and its robot has left again
            del self._tasks[visitor]
        if not task.cancelled() and task.exception() is not None:
            text = "unexpected error: a visitor of robot %s could not be passed on (please report)"
            logging.getLogger("shadow").error(text, robot.name, exc_info=task.exception())
            self._turn_away(robot, visitor, "internal error of the server")
        if not robot.visitors.elsewhere:
            self.news.tell(robot.name)  # nobody waits for that any more: it need not be remembered
        robot.report_if_empty()

    def _turn_away(self, robot: Robot, visitor: Visitor, why: str) -> None:
        self.count[_TURNED_AWAY] += 1
        robot.visitors.turn_away(visitor, why)

    # One visitor

    async def _serve(self, robot: Robot, visitor: Visitor) -> None:
        """Take a visitor to its robot, or turn it away."""
        visitor.host, visitor.user = self._whereabouts.name, await self.people.name_of(visitor.uid)
        until = self._loop.time() + self._patience
        tried: dict[Place, float] = {}  # when each may be tried again
        why = f"no server of the fleet has had the robot for {self._patience:g} s"
        hint: Place | None = None
        while _waits(robot, visitor):
            if robot.session is not None:
                robot.visitors.seat(visitor)
                return
            now = self._loop.time()
            if now >= until:
                self._turn_away(robot, visitor, why)
                return
            recently = {place for place, when in tried.items() if now < when}
            place = await self._whereabouts.find(robot.name, hint, recently)
            if place is None:
                await asyncio.wait([self.news.of(robot.name)], timeout=min(until - now, _LOOK))
                continue
            try:
                hint = await self._attempt(robot, visitor, place)
            except Unreachable as error:
                why = brief(error)
            else:
                if hint is None:
                    return
            tried[place] = self._loop.time() + _AGAIN
        robot.visitors.elsewhere.discard(visitor)
        visitor.close()

    async def _attempt(self, robot: Robot, visitor: Visitor, place: Place) -> Place | None:
        """Visit a robot at a place, unless there is no reason to any more; see ``_visit``.

        A dead machine gives no answer for a long time, while its robots are with others in seconds. And when
        the visitor leaves, we hang up: its robot need not serve it, and others need the channel.
        """
        attempt = self._loop.create_task(self._visit(robot, visitor, place))
        try:
            while not attempt.done() and _waits(robot, visitor):
                both: set[asyncio.Future[Any]] = {attempt, self.news.of(robot.name)}
                await asyncio.wait(both, timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)
                if robot.session is not None or self._whereabouts.has_newer(robot.name, place):
                    break
        finally:
            attempt.cancel()
            await asyncio.wait({attempt})
        if attempt.cancelled():
            raise Unreachable("the robot has moved meanwhile")
        return attempt.result()

    async def _visit(self, robot: Robot, visitor: Visitor, place: Place) -> Place | None:
        """Visit a robot at a place.

        Returns:
            Where else it may be; None if the visitor is connected or was turned away.

        Raises:
            Unreachable: nothing is to be had there now.
        """
        visit = Visit(
            robot.name, visitor.service, visitor.stream, place.sid, place.revision,
            visitor.uid, visitor.user, visitor.pid,
        )  # fmt: skip
        async with self._peers.lend(place.server, self._patience) as channel:
            try:
                answer = await ask(channel, visit, _ANSWERS * self._patience)
            except Unreachable as error:
                raise Unreachable(f"server {place.server}: {error}") from error
            if visitor not in robot.visitors.elsewhere:
                raise Unreachable("the visitor was turned away meanwhile")
            if isinstance(answer, Started):
                if why := self._peers.revocation(channel):
                    raise Unreachable(f"server {place.server}: {why}")
                visitor.server = place.server
                self.count[_CONNECTED] += 1
                robot.visitors.begin_stream(visitor, channel)
                return None
        if isinstance(answer, Moved):
            return Place(answer.server, "", answer.revision) if answer.server else place
        if isinstance(answer, Failed):
            self._turn_away(robot, visitor, f"server {place.server} says: {texts.printable(answer.text)}")
            return None
        raise Unreachable(f"server {place.server} gave no answer that makes sense")


def _waits(robot: Robot, visitor: Visitor) -> bool:
    """Whether a visitor is still there: it may have left, or have been turned away (``Robot.dismiss``)."""
    return visitor in robot.visitors.elsewhere and not visitor.left
