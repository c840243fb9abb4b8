"""Who else may have a robot: what a server asks before it welcomes one, and tells when that has changed.

A server by itself asks nobody (``Alone``). One of a fleet asks the others, which takes a moment.
"""

from collections.abc import Mapping
from typing import Protocol

from ..errors import LocalError, Refused
from ..transport.link import Link
from .overview import Overview
from .questions import By
from .robot import Robot
from .session import Session
from .visitor import Visitor


class Candidate(Protocol):
    """A robot that has said HELLO on a control channel, and has no answer yet."""

    @property
    def name(self) -> str:
        """Which robot."""

    @property
    def session(self) -> Session:
        """The session that begins with WELCOME."""

    @property
    def waits(self) -> bool:
        """Whether it still waits for an answer: the robot may have left, or come again."""

    def welcome(self) -> None:
        """Let it begin, if the robot is still there."""

    def refuse(self, refused: Refused) -> None:
        """Turn the robot away, and end the session that it had before: that is no better."""


class Directory(Protocol):
    """Knows which server has which robot."""

    def came(self, candidate: Candidate) -> None:
        """A robot has said HELLO: see to it that it is welcomed or refused, now or soon."""

    def note(self, name: str, session: Session | None) -> None:
        """From now on a robot has this session here; None: it has none.

        Either is a surprise, or what ``came`` has led to.
        """


class Elsewhere(Protocol):
    """The other servers, where a robot may be that is not here."""

    @property
    def overview(self) -> Overview:
        """What is known of them, for those who look after this server."""

    def take_over(self, name: str) -> bool:
        """A robot is not here any more: whether its sockets stay, because it may be elsewhere.

        If so, it is up to you when they go: see ``Robot.dismiss``.
        """

    def pass_on(self, robot: Robot, visitor: Visitor) -> bool:
        """A visitor has come for a robot that is not here: see to it, or say that you cannot.

        Once it is connected, or must be turned away, its fate is up to ``robot.visitors`` again.
        """

    def came_back(self, robot: Robot) -> None:
        """A robot is here again: ``robot.visitors.elsewhere`` can be seated here."""

    def readmit(self, link: Link) -> None:
        """Make sure that the connection to another server, left by the daemon before us, may go on.

        Raises:
            ShadowError: it may not.
        """


class Drainer(Protocol):
    """Has a server's robots go to others, and takes no more of them."""

    def start(self, by: By, timeout: float | None = None) -> None:
        """Begin.

        Args:
            by: who wants it.
            timeout: streams that are left after so many seconds are ended; None: they end by themselves.

        Raises:
            LocalError: there is no other server for them.
        """

    def stop(self, by: By) -> None:
        """Take robots again, as somebody wants."""

    @property
    def moves(self) -> Mapping[tuple[str, str], int]:
        """How many robots were told to go, by a word for why, and by ``gone`` or ``stayed``."""


class Alone:
    """All that for a server that is no part of a fleet: its robots are here or nowhere."""

    def __init__(self) -> None:
        self.overview = Overview()

    @property
    def moves(self) -> Mapping[tuple[str, str], int]:
        """See ``Drainer``."""
        return {}

    def start(self, by: By, timeout: float | None = None) -> None:
        """See ``Drainer``."""
        del by, timeout
        raise LocalError("this server is not one of a fleet (--fleet): there is no other for its robots")

    def stop(self, by: By) -> None:
        """See ``Drainer``."""

    def came(self, candidate: Candidate) -> None:
        """See ``Directory``."""
        candidate.welcome()

    def note(self, name: str, session: Session | None) -> None:
        """See ``Directory``."""

    def take_over(self, name: str) -> bool:
        """See ``Elsewhere``."""
        del name
        return False

    def pass_on(self, robot: Robot, visitor: Visitor) -> bool:
        """See ``Elsewhere``."""
        del robot, visitor
        return False

    def came_back(self, robot: Robot) -> None:
        """See ``Elsewhere``."""

    def readmit(self, link: Link) -> None:
        """See ``Elsewhere``."""
        del link
        raise LocalError("the server is not one of a fleet any more (--fleet)")
