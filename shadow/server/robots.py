"""All robots of a server: the registry that makes them, counts them and forgets them."""

import logging
from collections.abc import Iterator, Mapping, ValuesView

from ..daemon.config import ServerConfig
from ..events import STEPS
from ..relay.durable import DurableStreams
from .descriptors import Descriptors
from .directory import Alone, Directory, Drainer, Elsewhere
from .robot import Robot
from .signer import Signer
from .sockets import check_folder
from .surroundings import Surroundings
from .trust import Trust
from .visitor import Visitor
from .visitors import Numbers


class Robots(Mapping[str, Robot]):
    """The robots by their names, each from its first session until its last stream has ended.

    In a fleet there may also be robots with nothing but sockets, because they are at other servers.

    Attributes:
        numbers: gives numbers to the streams of all robots.
        descriptors: those of this process; it admits robots and visitors as long as there are some left.
        signer: renews the robots' certificates.
        directory: asked before a session begins, and told when one has begun or ended.
        elsewhere: where robots may be that are not here.
        alone: these where there are no other servers.
        drainer: has the robots go to other servers.
        draining: robots are to go to other servers.
    """

    def __init__(self, config: ServerConfig, durable: DurableStreams, trust: Trust) -> None:
        """Begin without any.

        Raises:
            ConfigError: the folder for their sockets is not usable.
        """
        check_folder(config.ldir)
        self.numbers = Numbers()
        # A visitor needs a channel, and with kernel TLS two pipes.
        self.descriptors = Descriptors(self._give_up_standbys, 1 if trust.no_ktls else 5)
        self.signer = Signer(config.signer)
        self._around = Surroundings(config, durable, self.signer, self.descriptors, trust)
        self.alone = Alone()
        self.directory: Directory = self.alone
        self.elsewhere: Elsewhere = self.alone
        self.drainer: Drainer = self.alone
        self.draining = False
        self._robots: dict[str, Robot] = {}
        self._connected: set[str] = set()

    def __getitem__(self, name: str) -> Robot:
        return self._robots[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._robots)

    def __len__(self) -> int:
        return len(self._robots)

    def values(self) -> ValuesView[Robot]:
        """The robots."""
        return self._robots.values()

    @property
    def connected(self) -> int:
        """How many have a session. The time this takes does not grow with the number of robots."""
        return len(self._connected)

    def provide(self, name: str) -> Robot:
        """The robot of this name; made now if necessary."""
        robot = self._robots.get(name)
        if robot is None:
            robot = self._robots[name] = Robot(name, self._around, self)
        return robot

    def note_session(self, robot: Robot) -> None:
        """See ``robot.Registry``."""
        (self._connected.discard if robot.session is None else self._connected.add)(robot.name)
        self.directory.note(robot.name, robot.session)
        STEPS.debug("%r now has %r", robot, robot.session)

    def pass_on(self, robot: Robot, visitor: Visitor) -> bool:
        """See ``robot.Registry``."""
        return self.elsewhere.pass_on(robot, visitor)

    def came_back(self, robot: Robot) -> None:
        """See ``robot.Registry``."""
        self.elsewhere.came_back(robot)

    def keeps_sockets(self, robot: Robot) -> bool:
        """See ``robot.Registry``."""
        return self.elsewhere.take_over(robot.name)

    def forget(self, robot: Robot) -> None:
        """See ``robot.Registry``."""
        if self._robots.get(robot.name) is robot:
            del self._robots[robot.name]

    def cut_off_revoked(self) -> int:
        """See ``Robot.cut_off_revoked``; for all of them."""
        return sum(map(_cut_off_revoked, list(self.values())))

    def look_after_sockets(self) -> None:
        """See ``Robot.look_after_sockets``; for all of them."""
        for robot in list(self.values()):
            robot.look_after_sockets()

    def _give_up_standbys(self, count: int) -> int:
        """Close up to ``count`` of them, those of the robots with the most first; return how many."""
        boards = [robot.session.board for robot in self.values() if robot.session is not None]
        boards.sort(key=lambda board: len(board.standbys), reverse=True)
        given_up = 0
        for level in range(len(boards[0].standbys) if boards else 0, 0, -1):
            for board in boards:
                if given_up == count or len(board.standbys) < level:
                    break
                board.take_standby().close()
                given_up += 1
        return given_up


def _cut_off_revoked(robot: Robot) -> int:
    try:
        return robot.cut_off_revoked()
    except Exception:  # the others must still be cut off
        logging.getLogger("shadow").exception("robot %s: its connections cannot be cut off", robot.name)
        return 0
