"""Who else may have a robot: what a server asks before it welcomes one, and tells when that has changed.

A server by itself asks nobody (``Alone``). One of a fleet asks the others, which takes a moment.
"""

from typing import Protocol

from ..errors import Refused
from .session import Session


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


class Alone:
    """The directory of a server that is no part of a fleet: all robots are here."""

    def came(self, candidate: Candidate) -> None:
        """See ``Directory``."""
        candidate.welcome()

    def note(self, name: str, session: Session | None) -> None:
        """See ``Directory``."""
