"""Robots that have said HELLO on a control channel, until they are welcomed or refused."""

import functools
import logging

from .. import events
from ..errors import PeerError, Refused
from ..text import shorten
from ..transport.channel import Channel
from ..wire.frames import Refusal
from .robots import Robots
from .session import Cause, Session

_EXPECTED = {"no-session", "superseded"}  # refusals that no one has to do anything about


class Candidates:
    """All of them, at most one with each name."""

    def __init__(self, robots: Robots) -> None:
        self._robots = robots
        self._waiting: dict[str, Candidate] = {}

    def came(self, name: str, session: Session) -> None:
        """A robot has said HELLO; its session may begin when the directory says so.

        Raises:
            Refused: a later HELLO of the robot has been here before this one.
        """
        robot, earlier = self._robots.get(name), self._waiting.get(name)
        rivals = [earlier.session if earlier else None, robot.session if robot else None]
        if any(rival is not None and rival.is_later_than(session) for rival in rivals):
            raise Refused("superseded", "a later HELLO of the same robot was here before this one")
        if earlier is not None:
            refused = Refused("superseded", f"the same name connected from {session.peer}")
            refuse(earlier.session.channel, name, earlier.session.peer, refused)
        candidate = self._waiting[name] = Candidate(name, session, self)
        session.channel.on_lost = functools.partial(self._lost, candidate)
        self._robots.directory.came(candidate)

    def has(self, candidate: "Candidate") -> bool:
        """See ``directory.Candidate.waits``."""
        return self._waiting.get(candidate.name) is candidate

    def close(self) -> None:
        """Hang up on all of them: they come again."""
        for candidate in self._waiting.values():
            candidate.session.channel.close()
        self._waiting.clear()

    def welcome(self, candidate: "Candidate") -> None:
        """See ``directory.Candidate``."""
        if self._leaves(candidate):
            try:
                self._robots.provide(candidate.name).begin_session(candidate.session)
            except Refused as refused:
                refuse(candidate.session.channel, candidate.name, candidate.session.peer, refused)
                self._goes(candidate.name)

    def refuse(self, candidate: "Candidate", refused: Refused) -> None:
        """See ``directory.Candidate``."""
        if self._leaves(candidate):
            refuse(candidate.session.channel, candidate.name, candidate.session.peer, refused)
            robot = self._robots.get(candidate.name)
            if robot is not None:
                robot.end_session(refused.text, Cause.SUPERSEDED, Refusal(refused.code, refused.text))
            self._goes(candidate.name)

    def _lost(self, candidate: "Candidate", error: PeerError | None) -> None:
        del error  # it comes again, or not
        if self._leaves(candidate):
            self._goes(candidate.name)

    def _leaves(self, candidate: "Candidate") -> bool:
        """Whether it has waited until now: the directory's answer may be late."""
        if not self.has(candidate):
            return False
        del self._waiting[candidate.name]
        return True

    def _goes(self, name: str) -> None:
        """A candidate has gone: what remains of its robot is what was here before."""
        robot = self._robots.get(name)
        self._robots.directory.note(name, robot.session if robot is not None else None)
        if robot is not None:
            robot.report_if_empty()


class Candidate:
    """See ``directory.Candidate``.

    Attributes:
        name: the robot's name.
        session: the session that begins with WELCOME.
    """

    def __init__(self, name: str, session: Session, candidates: Candidates) -> None:
        self.name = name
        self.session = session
        self._candidates = candidates

    def __repr__(self) -> str:
        return f"<Candidate {self.name}: {self.session!r}>"

    @property
    def waits(self) -> bool:
        """See ``directory.Candidate``."""
        return self._candidates.has(self)

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
