"""Robots that have said HELLO on a control channel, until they are welcomed or refused."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator

from .. import events
from ..errors import PeerError, Refused
from ..text import shorten
from ..transport.channel import Channel
from ..transport.link import Link
from ..wire.frames import Refusal
from .robot import Robot
from .robots import Robots
from .session import Cause, Session

_EXPECTED = {"no-session", "superseded"}  # refusals that no one has to do anything about


class Candidates:
    """All of them, at most one with each name: its robot has it."""

    def __init__(self, robots: Robots, revocation: Callable[[Link], str | None]) -> None:
        """Begin without any.

        Args:
            robots: all known robots.
            revocation: tells why the peer's certificate is no longer good, if it was revoked.
        """
        self._robots = robots
        self._revocation = revocation
        self._waiting: set[str] = set()

    def __len__(self) -> int:
        """How many there are."""
        return len(self._waiting)

    def came(self, robot: Robot, session: Session) -> None:
        """A robot has said HELLO; its session may begin when the directory says so.

        Raises:
            Refused: a later HELLO of the robot has been here before this one.
        """
        earlier = robot.candidate
        if any(rival is not None and rival.is_later_than(session) for rival in (earlier, robot.session)):
            raise Refused("superseded", "a later HELLO of the same robot was here before this one")
        if earlier is not None:
            refused = Refused("superseded", f"the same name connected from {session.peer}")
            refuse(earlier.channel, robot.name, earlier.peer, refused)
        robot.candidate = session
        self._waiting.add(robot.name)
        candidate = Candidate(robot, session, self)
        session.channel.on_lost = functools.partial(self._lost, candidate)
        with self._contained(candidate):
            self._robots.directory.came(candidate)

    def close(self) -> None:
        """Hang up on all of them: they come again."""
        for robot in self._robots.values():
            if robot.candidate is not None:
                robot.candidate.channel.close()
                robot.candidate = None
        self._waiting.clear()

    def welcome(self, candidate: "Candidate") -> None:
        """See ``directory.Candidate``."""
        if not self._leaves(candidate):
            return
        session = candidate.session
        with self._contained(candidate):
            try:
                # Asked again: the list may have been read while it waited.
                if why := self._revocation(session.channel.link):
                    raise Refused("revoked", why)
                candidate.robot.begin_session(session)
            except Refused as refused:
                refuse(session.channel, candidate.name, session.peer, refused)
                self._goes(candidate.robot)

    def refuse(self, candidate: "Candidate", refused: Refused) -> None:
        """See ``directory.Candidate``."""
        if self._leaves(candidate):
            with self._contained(candidate):
                refuse(candidate.session.channel, candidate.name, candidate.session.peer, refused)
                refusal = Refusal(refused.code, refused.text)
                candidate.robot.end_session(refused.text, Cause.SUPERSEDED, refusal)
                self._goes(candidate.robot)

    def _lost(self, candidate: "Candidate", error: PeerError | None) -> None:
        del error  # it comes again, or not
        if self._leaves(candidate):
            self._goes(candidate.robot)

    def _leaves(self, candidate: "Candidate") -> bool:
        """Whether it has waited until now: the directory's answer may be late."""
        if not candidate.waits:
            return False
        candidate.robot.candidate = None
        self._waiting.discard(candidate.name)
        return True

    def _goes(self, robot: Robot) -> None:
        """A candidate has gone: what remains of its robot is what was here before."""
        self._robots.directory.note(robot.name, robot.session)
        robot.report_if_empty()

    @contextlib.contextmanager
    def _contained(self, candidate: "Candidate") -> Iterator[None]:
        """A bug costs one robot its connection, and the directory and the others nothing."""
        try:
            yield
        except Exception:
            text = "unexpected error: robot %s could not be welcomed (please report)"
            logging.getLogger("shadow").exception(text, candidate.name)
            candidate.session.channel.abort()  # nobody else would close it
            self._leaves(candidate)
            if candidate.robot.session is candidate.session:
                candidate.robot.end_session("internal error of the server", Cause.LOST)
            self._goes(candidate.robot)


class Candidate:
    """See ``directory.Candidate``.

    Attributes:
        robot: whose it is.
        session: the session that begins with WELCOME.
    """

    def __init__(self, robot: Robot, session: Session, candidates: Candidates) -> None:
        self.robot = robot
        self.session = session
        self._candidates = candidates

    def __repr__(self) -> str:
        return f"<Candidate {self.name}: {self.session!r}>"

    @property
    def name(self) -> str:
        """The robot's name."""
        return self.robot.name

    @property
    def waits(self) -> bool:
        """See ``directory.Candidate``."""
        return self.robot.candidate is self.session

    def welcome(self) -> None:
        """See ``directory.Candidate``."""
        self._candidates.welcome(self)

    def refuse(self, refused: Refused) -> None:
        """See ``directory.Candidate``."""
        self._candidates.refuse(self, refused)


def refuse(channel: Channel, name: str, peer: str, refused: Refused) -> None:
    """Refuse a connection: tell the robot and the log why.

    Args:
        channel: it has said HELLO.
        name: whose robot's it claims to be.
        peer: its address, for humans.
        refused: why.
    """
    level = logging.INFO if refused.code in _EXPECTED else logging.WARNING
    text = f"robot {shorten(name)} from {peer} {refused}"
    events.log(events.RobotRefused(robot=name[:64], peer=peer, code=refused.code), level, text)
    channel.send(Refusal(refused.code, refused.text, refused.retry_after))
    channel.close()
