"""What the daemon before this one has left of visits between servers, until this one has joined the fleet."""

from ..server.directory import Alone
from ..server.robot import Robot
from ..server.visitor import Visitor
from ..transport.link import Link
from .foreign import Foreign
from .peer_trust import PeerTrust


class Arriving(Alone):
    """Keeps visitors and sockets of robots that may be at other servers; see ``directory.Elsewhere``."""

    def __init__(self, trust: PeerTrust) -> None:
        """Begin without any; ``trust`` says whom we take for another server."""
        super().__init__()
        self._trust = trust
        self._names: list[str] = []
        self._visitors: list[tuple[Robot, Visitor]] = []

    def take_over(self, name: str) -> bool:
        """See ``Elsewhere``."""
        self._names.append(name)
        return True

    def pass_on(self, robot: Robot, visitor: Visitor) -> bool:
        """See ``Elsewhere``."""
        robot.visitors.elsewhere.add(visitor)
        self._visitors.append((robot, visitor))
        return True

    def readmit(self, link: Link) -> None:
        """See ``Elsewhere``."""
        self._trust.check_again(link)

    def arrive(self, foreign: Foreign) -> None:
        """We have joined: from now on it is like everything that comes."""
        while self._names:
            foreign.take_over(self._names.pop())
        visitors, self._visitors = self._visitors, []
        for robot, visitor in visitors:
            robot.visitors.seat(visitor)
