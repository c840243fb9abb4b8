"""The letters in which a server leaves its robots: one for each part of a robot, each part of its own kind.

This module says what each letter contains, and what the next daemon does with it. Daemons of other versions
read and write the same letters: facts may be added, but none may change its meaning.
"""

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ..errors import LocalError
from ..net import tcp, unix
from ..net.unix import UnixListener
from ..systemd.bundle import Letter
from ..transport import channel as channels
from ..transport import link as links
from ..transport.channel import Channel
from ..transport.link import KernelLink, Link
from ..wire.conversation import Party, State
from . import session, visitor
from .robot import Robot
from .session import Session
from .trust import Offer
from .visitor import OwnDoor, Visitor

Facts = Mapping[str, Any]
"""Fit for JSON. What was read may be anything: code that takes a fact out of it must check its type."""


class House(Protocol):
    """A daemon with its robots, as the code sees it that takes letters for it."""

    @property
    def robots(self) -> Mapping[str, Robot]:
        """All known robots."""

    @property
    def offer(self) -> Offer:
        """The terms that sessions must have begun with."""

    def readmit(self, link: Link) -> Robot:
        """Find the robot whose link it is, or make it.

        Raises:
            ShadowError: we would not let it in today.
        """

    def elsewhere(self, name: str) -> Robot | None:
        """The robot of this name, if it can be visited from here although it is not here."""


class Heir:
    """Takes the letters of the previous daemon.

    Attributes:
        house: takes over what the letters are about.
        anew: names of robots that have to reconnect, because the offer has changed.
    """

    def __init__(self, house: House) -> None:
        self.house = house
        self.anew: set[str] = set()
        self._offer = house.offer.facts

    def check_offer(self, robot: str, offer: object) -> None:
        """Make sure that a session began with the terms that we offer.

        Raises:
            LocalError: it did not, so the robot must learn the new offer.
        """
        if offer != self._offer:
            self.anew.add(robot)
            raise LocalError("the server has other settings now, and the robot is to hear of them")

    def connected(self, name: str) -> tuple[Robot, Session] | None:
        """A robot that has a session, and that session."""
        robot = self.house.robots.get(name)
        return None if robot is None or robot.session is None else (robot, robot.session)

    def visitable(self, name: str) -> Robot | None:
        """A robot that visitors may wait for: it is here, or may be elsewhere."""
        found = self.connected(name)
        return self.house.elsewhere(name) if found is None else found[0]

    def expect(self, name: str) -> tuple[Robot, Session]:
        """The same, for a part that is useless without it.

        Raises:
            LocalError: the robot has no session.
        """
        found = self.connected(name)
        if found is None:
            raise LocalError("its robot is not connected any more")
        return found

    def resume_channel(
        self, name: str, facts: Facts, sock: socket.socket, state: State
    ) -> tuple[Robot, Channel]:
        """A robot, and its data channel, which has the session's certificate or is admitted by its own.

        Raises:
            ShadowError, KeyError, TypeError, ValueError: it cannot continue.
        """
        found = self.connected(name)
        known = None if found is None else found[1].channel.link
        if "chain" not in facts and isinstance(known, KernelLink):
            facts = {**facts, "chain": known.record["chain"]}
        its_link = links.remembered(sock, facts)
        if found is not None and its_link.chain == found[1].channel.link.chain:
            robot = found[0]
        else:
            robot = self.house.readmit(its_link)
            if robot.name != name:
                raise LocalError("its certificate is another robot's")
        return robot, channels.remembered(its_link, facts, Party.SERVER, state)


class Part(ABC):
    """A part of a robot on its way from one daemon to the next.

    Attributes:
        kind: the word for it.
        robot: the robot's name.
    """

    kind: ClassVar[str]
    robot: str

    @property
    @abstractmethod
    def facts(self) -> Facts:
        """What the letter says about it, besides its kind and its robot."""

    @property
    @abstractmethod
    def sockets(self) -> Sequence[socket.socket]:
        """The sockets that it consists of."""

    @classmethod
    @abstractmethod
    def read(cls, robot: str, facts: Facts, sockets: Sequence[socket.socket]) -> "Part":
        """The part that a letter is about.

        Raises:
            LocalError, KeyError, TypeError, ValueError: the letter makes no sense.
        """

    @abstractmethod
    def resume(self, heir: Heir) -> None:
        """Continue it.

        Raises:
            ShadowError, KeyError, TypeError, ValueError: it cannot continue.
        """

    @property
    def letter(self) -> Letter:
        """The letter about it."""
        facts = {**self.facts, "kind": self.kind, "robot": self.robot}
        return Letter(facts, [sock.fileno() for sock in self.sockets])


@dataclass(frozen=True)
class SessionPart(Part):
    """A session with its control channel.

    Attributes:
        offer: the terms that it began with.
        record: of the session, the channel and its link.
        sock: the channel's.
    """

    kind = "session"
    robot: str
    offer: Facts
    record: Facts
    sock: socket.socket

    @property
    def facts(self) -> Facts:
        """See ``Part.facts``; ``terms`` is what earlier versions called the offer."""
        return {**self.record, "terms": self.offer}

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """See ``Part.sockets``."""
        return (self.sock,)

    @classmethod
    def read(cls, robot: str, facts: Facts, sockets: Sequence[socket.socket]) -> "SessionPart":
        """See ``Part.read``."""
        _check_number(sockets, 1)
        return cls(robot, facts["terms"], facts, sockets[0])

    def resume(self, heir: Heir) -> None:
        """See ``Part.resume``: the certificate is checked anew."""
        heir.check_offer(self.robot, self.offer)
        its_link = links.remembered(self.sock, self.record)
        robot = heir.house.readmit(its_link)
        if robot.session is not None:
            raise LocalError("it has a session already")
        control = channels.remembered(its_link, self.record, Party.SERVER, State.OPEN)
        robot.have_session(session.remembered(control, self.record, asyncio.get_running_loop().time()))


@dataclass(frozen=True)
class SocketPart(Part):
    """One of a robot's unix sockets, with the visitors in its backlog."""

    kind = "socket"
    robot: str
    service: str
    listener: UnixListener

    @property
    def facts(self) -> Facts:
        """See ``Part.facts``."""
        return {"service": self.service, **self.listener.record}

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """See ``Part.sockets``."""
        return (self.listener.sock,)

    @classmethod
    def read(cls, robot: str, facts: Facts, sockets: Sequence[socket.socket]) -> "SocketPart":
        """See ``Part.read``."""
        _check_number(sockets, 1)
        tcp.check_connection(sockets[0], socket.AF_UNIX, listening=True)
        return cls(robot, str(facts["service"]), unix.remembered(sockets[0], facts))

    def resume(self, heir: Heir) -> None:
        """See ``Part.resume``: if nobody should wait there, the file is removed."""
        found = heir.visitable(self.robot)
        if found is None:
            self.listener.close()
        else:
            found.sockets.resume(self.service, self.listener)


@dataclass(frozen=True)
class StandbyPart(Part):
    """A data channel that stands by.

    Attributes:
        record: of the channel, and of its link; without the chain of certificates if the session has it.
        sock: the channel's.
    """

    kind = "standby"
    robot: str
    record: Facts
    sock: socket.socket

    @property
    def facts(self) -> Facts:
        """See ``Part.facts``."""
        return self.record

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """See ``Part.sockets``."""
        return (self.sock,)

    @classmethod
    def read(cls, robot: str, facts: Facts, sockets: Sequence[socket.socket]) -> "StandbyPart":
        """See ``Part.read``."""
        _check_number(sockets, 1)
        return cls(robot, facts, sockets[0])

    def resume(self, heir: Heir) -> None:
        """See ``Part.resume``: it goes to the next visitor."""
        robot, its_session = heir.expect(self.robot)
        _same, its_channel = heir.resume_channel(self.robot, self.record, self.sock, State.STANDBY)
        robot.serve(its_session, its_channel)


@dataclass(frozen=True)
class VisitorPart(Part):
    """A visitor that waits for a channel."""

    kind = "visitor"
    robot: str
    visitor: Visitor

    @property
    def facts(self) -> Facts:
        """See ``Part.facts``."""
        return self.visitor.record

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """See ``Part.sockets``."""
        return (self.visitor.sock,)

    @classmethod
    def read(cls, robot: str, facts: Facts, sockets: Sequence[socket.socket]) -> "VisitorPart":
        """See ``Part.read``."""
        _check_number(sockets, 1)
        tcp.check_connection(sockets[0], socket.AF_UNIX)
        return cls(robot, visitor.remembered(facts, OwnDoor(sockets[0])))

    def resume(self, heir: Heir) -> None:
        """See ``Part.resume``: it goes on waiting."""
        found = heir.visitable(self.robot)
        if found is None:
            raise LocalError("its robot is not connected any more")
        found.visitors.resume(self.visitor)


@dataclass(frozen=True)
class StartPart(Part):
    """A visitor whose START has no answer yet, and the channel that carried it; it needs no session.

    Attributes:
        record: of the channel, and of its link.
        sock: the channel's.
        visitor: the visitor.
    """

    kind = "start"
    robot: str
    record: Facts
    sock: socket.socket
    visitor: Visitor

    @property
    def facts(self) -> Facts:
        """See ``Part.facts``."""
        return {**self.record, "visitor": self.visitor.record}

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """See ``Part.sockets``."""
        return self.sock, self.visitor.sock

    @classmethod
    def read(cls, robot: str, facts: Facts, sockets: Sequence[socket.socket]) -> "StartPart":
        """See ``Part.read``."""
        _check_number(sockets, 2)
        sock, visitors = sockets
        tcp.check_connection(visitors, socket.AF_UNIX)
        return cls(robot, facts, sock, visitor.remembered(facts["visitor"], OwnDoor(visitors)))

    def resume(self, heir: Heir) -> None:
        """See ``Part.resume``: the answer may be there already."""
        robot, its_channel = heir.resume_channel(self.robot, self.record, self.sock, State.STARTING)
        robot.visitors.resume_start(self.visitor, its_channel)


_KINDS: Mapping[str, type[Part]] = {
    part.kind: part for part in (SessionPart, SocketPart, StandbyPart, VisitorPart, StartPart)
}


def read(facts: Facts, sockets: Sequence[socket.socket]) -> Part:
    """The part that a letter is about.

    Raises:
        LocalError, KeyError, TypeError, ValueError: the letter makes no sense.
    """
    kind = facts["kind"]
    if kind not in _KINDS:
        raise LocalError(f"{kind!r} is unknown to this version")
    return _KINDS[kind].read(str(facts["robot"]), facts, sockets)


def _check_number(sockets: Sequence[socket.socket], wanted: int) -> None:
    if len(sockets) != wanted:
        raise LocalError(f"{len(sockets)} sockets and not {wanted}")
