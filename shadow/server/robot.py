"""A robot, as the server sees it: its session, its sockets, its standbys, and its visitors.

A robot exists from its first session until its last stream has ended; its sockets exist while it has a
session. Everything runs in the event loop's thread.
"""

import asyncio
import functools
import secrets
from collections.abc import Iterator
from typing import Protocol

from ..errors import PeerError, Refused
from ..transport.channel import Channel
from ..wire.frames import PROTOCOL_VERSION, Frame, Hello, Ping, Pong, Refusal, Sign, Welcome
from .session import Cause, Session, new_session
from .sockets import Sockets
from .streams import Streams
from .surroundings import SOFTWARE, Surroundings
from .visitor import Visitor
from .visitors import Numbers, Visitors

_STANDBYS_MAX = 128  # channels one robot may keep standing by
_FIGHT_AGE = 60.0  # seconds; a session replaced sooner than that, again, means two devices with one name


class Registry(Protocol):
    """The keeper of all robots, as each of them sees it.

    Attributes:
        numbers: gives numbers to the streams of all robots.
    """

    numbers: Numbers

    def note_session(self, robot: "Robot") -> None:
        """The robot has a session from now on, or none any more."""

    def pass_on(self, robot: "Robot", visitor: Visitor) -> bool:
        """The robot is not here: have a visitor wait for it elsewhere; False: it cannot be elsewhere."""

    def came_back(self, robot: "Robot") -> None:
        """The robot is here again, and visitors wait for it elsewhere."""

    def keeps_sockets(self, robot: "Robot") -> bool:
        """The robot is not here any more: whether its sockets stay, because it may be elsewhere."""

    def forget(self, robot: "Robot") -> None:
        """The robot has neither a session nor a stream any more, nor sockets."""


class Robot:
    """One robot.

    Attributes:
        name: its name.
        streams: its running streams.
        visitors: visitors whose streams do not run yet.
        sockets: the unix sockets that visitors connect to.
        candidate: the session that waits for its WELCOME; see ``candidates``.
    """

    def __init__(self, name: str, around: Surroundings, registry: Registry) -> None:
        config = around.config
        self.name = name
        self.streams = Streams(name, around.durable, self.report_if_empty)
        self.visitors = Visitors(self, config, around.descriptors, registry.numbers)
        self.sockets = Sockets(config.ldir, name, self.visitors.came, around.descriptors)
        self.candidate: Session | None = None
        self._session: Session | None = None
        self._around = around
        self._registry = registry
        self._loop = asyncio.get_running_loop()
        self._hasty_takeovers = 0

    def __repr__(self) -> str:
        session, starting = self.session, len(self.visitors.starting)
        state = "not connected"
        if session is not None:
            state = f"{len(session.board.standbys)} standing by, {len(session.board.visitors)} waiting"
        return f"<Robot {self.name}: {state}, {starting} starting, {len(self.streams)} running>"

    def describe(self) -> Iterator[str]:
        """For debugging: a line about the robot, and one about each thing that it has."""
        yield repr(self)
        session = self.session  # others have their turn between two lines
        if session is not None:
            yield f"  {session!r} over {session.channel!r}"
            yield from (f"  {visitor!r} waits" for visitor in list(session.board.visitors))
        if self.candidate is not None:
            yield f"  {self.candidate!r} waits for its WELCOME"
        yield from (f"  {visitor!r} waits for it elsewhere" for visitor in list(self.visitors.elsewhere))
        yield from (
            f"  {who!r} starts on {channel!r}" for who, channel in list(self.visitors.starting.items())
        )
        yield from (f"  {visitor!r} has {pump!r}" for pump, visitor in list(self.streams.items()))

    # Sessions

    @property
    def session(self) -> Session | None:
        """Its present session."""
        return self._session

    def _set_session(self, session: Session | None) -> None:
        self._session = session
        self._registry.note_session(self)

    def meet(self, channel: Channel, hello: Hello, peer: str) -> Session:
        """The session that a HELLO on a control channel asks for; ``begin_session`` lets it begin.

        Raises:
            Refused: a service's name cannot be a file's.
        """
        return new_session(channel, hello, peer, self._around.config.keepalive, self._loop.time())

    def begin_session(self, session: Session) -> None:
        """Welcome a control channel; an old session that is still there is replaced.

        Raises:
            Refused: we cannot serve the robot; the caller tells it.
        """
        if not self.sockets.provide(session.services):
            if self.session is None:
                self._close_sockets()
            raise Refused("socket", "the server cannot make the robot's socket")
        old = self.session
        # Its visitors have waited long enough: the new session serves them.
        waiting = list(old.board.visitors) if old is not None else []
        if old is not None:
            self._give_way(old, session.peer)
        self.have_session(session)
        interval, renews = session.keepalive.interval, self._around.signer.there
        advertise = self._around.config.advertise
        dial = "" if advertise is None else str(advertise)
        session.channel.send(Welcome(PROTOCOL_VERSION, session.id, interval, SOFTWARE, renews, dial))
        session.log_beginning(self.name)
        for visitor in waiting:
            self.visitors.seat(visitor)
        if self.visitors.elsewhere:
            self._registry.came_back(self)

    def have_session(self, session: Session) -> None:
        """Listen to a session that has been welcomed, by us or by the previous daemon."""
        self._set_session(session)
        session.tell(self.streams.lines, self._loop.time())
        session.channel.on_frame = functools.partial(self._control_frame, session)
        session.channel.on_lost = functools.partial(self._session_lost, session)
        session.timer = self._loop.call_at(session.keepalive.deadline, self._check_alive, session)

    def leave_session(self) -> None:
        """Forget the session: another process continues it. What belongs to it is the caller's."""
        session = self.session
        if session is not None:
            self._set_session(None)
            session.rest()
            session.channel.leave()

    def restore_sockets(self) -> None:
        """Make missing sockets of the session; if that is not possible, the session ends."""
        if self.session is not None and not self.sockets.provide(self.session.services):
            self.end_session("the server cannot make its socket", Cause.SOCKET)

    def look_after_sockets(self) -> None:
        """Restore sockets that somebody has removed; if that is not possible, the session goes on without."""
        if not self.sockets.in_place:
            self.sockets.provide(self.session.services if self.session else self.sockets.services)

    def end_session(self, why: str, cause: Cause, refusal: Refusal | None = None) -> None:
        """End the session, if there is one: its streams go on, its sockets vanish if that was all."""
        session = self.session
        if session is None:
            return
        self._set_session(None)
        self._retire(session, refusal)
        self._close_sockets()
        session.log_end(self.name, why, cause, self._loop.time() - session.since)
        self.report_if_empty()

    def dismiss(self, why: str) -> None:
        """The robot can be visited from here no more, unless it is here: remove its sockets."""
        for visitor in list(self.visitors.elsewhere):
            self.visitors.turn_away(visitor, why)
        if self.session is None:
            self.sockets.close()
            self.report_if_empty()

    def _give_way(self, old: Session, peer: str) -> None:
        age = self._loop.time() - old.since
        self._hasty_takeovers = self._hasty_takeovers + 1 if age < _FIGHT_AGE else 0
        old.log_takeover(self.name, peer, fight=self._hasty_takeovers >= 2)
        old.board.visitors.clear()
        self._session = None  # for an instant: nobody needs to hear of it
        self._retire(old, Refusal("superseded", f"the same name connected from {peer}"))

    def _retire(self, session: Session, refusal: Refusal | None) -> None:
        session.rest()
        if refusal is not None:
            session.channel.send(refusal)
        session.channel.close()
        for standby in session.board.standbys:
            standby.close()
        for visitor in list(session.board.visitors):
            self.visitors.seat(visitor)  # elsewhere; if there is no other place, it is turned away

    def _close_sockets(self) -> None:
        if not self._registry.keeps_sockets(self):
            self.sockets.close()

    def pass_on(self, visitor: Visitor) -> bool:
        """See ``visitors.Host``."""
        visitor.rest()
        return self._registry.pass_on(self, visitor)

    def _session_lost(self, session: Session, error: PeerError | None) -> None:
        if self.session is session:
            self.end_session(str(error) if error else "it hung up", Cause.LOST if error else Cause.HUNG_UP)

    def _check_alive(self, session: Session) -> None:
        if self.session is not session:
            return
        if session.keepalive.is_dead(self._loop.time()):
            session.channel.abort()
            self.end_session(f"nothing heard for {3 * session.keepalive.interval:g} s", Cause.SILENT)
        elif why := session.outlived(self.name, renews=self._around.signer.there):
            self.end_session(why, Cause.EXPIRED, Refusal("expired", why))
        else:
            session.timer = self._loop.call_at(session.keepalive.deadline, self._check_alive, session)

    def _control_frame(self, session: Session, frame: Frame) -> None:
        session.heard(self._loop.time())
        if isinstance(frame, Ping):
            session.channel.send(Pong(frame.stamp))
        elif isinstance(frame, Sign):
            self._around.signer.ask(self.name, session.channel, frame)

    # Data channels

    def add_standby(self, channel: Channel, hello: Hello) -> None:
        """Welcome a data channel: to a waiting visitor, or to stand by.

        Raises:
            Refused: no such session, or too many standing by.
        """
        session = self.session
        if session is None or not secrets.compare_digest(hello.session.encode(), session.id.encode()):
            raise Refused("no-session", "the session is over; connect the control channel first")
        if len(session.board.standbys) >= _STANDBYS_MAX:
            raise Refused("limit", f"{_STANDBYS_MAX} channels are standing by already")
        if not session.board.visitors and self._around.descriptors.short:
            self._around.descriptors.refused_standby()  # each in the log would be too much
            channel.send(Refusal("limit", "the server has no descriptors to spare for standbys"))
            channel.close()
            return
        channel.send(Welcome(PROTOCOL_VERSION, session.id, session.keepalive.interval))
        self.serve(session, channel)

    def serve(self, session: Session, channel: Channel) -> None:
        """Give a channel that has been welcomed, by us or by the previous daemon, to the next visitor."""
        channel.on_lost = functools.partial(_standby_lost, session, channel)
        self.visitors.serve(session, channel)

    # Both

    def cut_off_revoked(self) -> int:
        """End everything over links with revoked certificates; return how many sessions and streams ended."""
        count, revocation = 0, self._around.trust.revocation
        session = self.session
        if session is not None and (why := revocation(session.channel.link)):
            count += 1
            self.end_session(why, Cause.REVOKED, Refusal("revoked", why))
        elif session is not None:
            for standby in [other for other in session.board.standbys if revocation(other.link)]:
                session.board.channel_left(standby)
                standby.close()
        for visitor, channel in list(self.visitors.starting.items()):
            if why := revocation(channel.link):
                self.visitors.take_back(visitor, channel, why)
        return count + self.streams.cut_off_revoked(revocation)

    def report_if_empty(self) -> None:
        """Tell the registry if there is neither a session nor a stream any more, and none is about to be."""
        if not self.is_here and not self.sockets and not self.visitors.elsewhere:
            self._registry.forget(self)

    @property
    def is_here(self) -> bool:
        """Whether it has, or is about to have, a session or streams here, and not just sockets."""
        if self._session is not None:  # nearly always, and of 100,000 it is to be seen quickly
            return True
        return bool(self.streams) or self.candidate is not None or bool(self.visitors.starting)


def _standby_lost(session: Session, channel: Channel, error: PeerError | None) -> None:
    del error  # the robot opens another one; this one served nobody
    session.board.channel_left(channel)
