"""Where a server answers those who look after it, and takes their orders.

They are callers of its API, or at another server of its fleet. Whether they may is up to who passes them on.
"""

import asyncio
import itertools
from collections.abc import Iterator

from ..errors import LocalError, Refused
from ..wire.frames import Refusal
from . import questions
from .facts import Facts, find_stream, robot_facts, streams_of
from .questions import By, Question
from .robot import Robot
from .robots import Robots
from .session import Cause


class Desk:
    """Stands for one server."""

    def __init__(self, robots: Robots) -> None:
        """Answer for these robots."""
        self._robots = robots

    def answer(self, question: Question, by: By) -> Iterator[Facts]:
        """Answer a question, or carry out an order, which is done when this returns.

        Returns:
            The facts of the answer; each is looked up when it is taken, for there may be very many.

        Raises:
            Refused: that cannot be done, with one of the codes of ``questions``.
        """
        name = question.name
        match question.what:
            case questions.ROBOT:
                return self._robot(name)
            case questions.STREAMS:
                return self.streams(name)
            case questions.DISCONNECT:
                return iter([{"ended": self._disconnect(name, by)}])
            case questions.CUT:
                return iter([{"ended": self._cut(name, by)}])
            case questions.DRAIN | questions.UNDRAIN:
                return iter([{"robots": self._drain(question, by)}])
            case _:
                raise Refused(questions.UNKNOWN, "this server does not know what is asked of it")

    def streams(self, name: str) -> Iterator[Facts]:
        """The streams of a robot; without its name of all; none if there is no such robot."""
        loop, server = asyncio.get_running_loop(), self._server
        names = [name] if name else list(self._robots)
        # In their turn: whoever takes them may take long, and meanwhile streams begin.
        there = (found for one in names if (found := self._robots.get(one)) is not None)
        return itertools.chain.from_iterable(streams_of(robot, loop.time(), server) for robot in there)

    @property
    def _server(self) -> str:
        return self._robots.elsewhere.overview.server

    def _robot(self, name: str) -> Iterator[Facts]:
        robot = self._robots.get(name)
        if robot is None or not robot.is_here:
            raise _no_such_robot()
        now = asyncio.get_running_loop().time()
        return itertools.chain([robot_facts(robot, now, self._server)], self.streams(name))

    def _disconnect(self, name: str, by: By) -> int:
        robot = self._robots.get(name)
        if robot is None or not self._is_ours(robot):
            raise _no_such_robot()
        why, ended = f"{by} has ended it", robot.session is not None
        refusal = Refusal("disconnected", "an operator has ended the session")
        robot.end_session(why, Cause.OPERATOR, refusal)
        return ended + robot.streams.cut(lambda _pump, _visitor: True, why)

    def _is_ours(self, robot: Robot) -> bool:
        """Whether it is here, or at least no other server has it: then its streams here can be ended."""
        if robot.session is not None:
            return True
        remote = self._robots.elsewhere.overview.find(robot.name)
        return robot.is_here and (remote is None or not remote.live)

    def _cut(self, number: str, by: By) -> int:
        robot = find_stream(self._robots, number)
        if robot is None:
            raise Refused(questions.NO_SUCH_STREAM, "there is no such stream")
        return robot.streams.cut(lambda _pump, visitor: visitor.stream == number, f"{by} has ended it")

    def _drain(self, question: Question, by: By) -> int:
        drainer = self._robots.drainer
        try:
            if question.what == questions.DRAIN:
                drainer.start(by, question.seconds or None)
            else:
                drainer.stop(by)
        except LocalError as error:
            raise Refused(questions.FAILED, str(error)) from error
        return self._robots.connected


def _no_such_robot() -> Refused:
    return Refused(questions.NO_SUCH_ROBOT, "the robot is not here")
