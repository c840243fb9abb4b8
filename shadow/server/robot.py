"""The server's view of its robots: sessions, sockets, visitors, streams.

A robot exists from its first session until its last stream has ended, its sockets while it has a session.
All in the event loop's thread.
"""

import asyncio
import functools
import logging
import secrets
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import __version__, events
from ..daemon.config import ServerConfig
from ..errors import LocalError, PeerError, Refused
from ..events import Event
from ..names import clean_software
from ..relay.durable import DurableStreams
from ..relay.flow import Pump
from ..relay.pool import OnEnd
from ..text import shorten
from ..transport.channel import Channel
from ..transport.link import Link
from ..wire.frames import (
    PROTOCOL_VERSION,
    Dial,
    Failed,
    Frame,
    Hello,
    Ping,
    Pong,
    Refusal,
    Sign,
    Start,
    Started,
    Welcome,
)
from ..wire.timing import Keepalive
from .descriptors import Descriptors
from .session import Cause, Session, checked_services
from .signer import Signer
from .sockets import Sockets
from .streams import Streams
from .visitor import Visitor, has_left, make_visitor

_STANDBYS_MAX = 128  # channels one robot may keep standing by
_STANDBY_TRIES = 3  # channels one visitor is offered before it is turned away
_FIGHT_AGE = 60.0  # seconds; a session replaced sooner than that, again, means two devices with one name
SOFTWARE = f"shadow-server {__version__}"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every robot needs of the server."""

    config: ServerConfig
    durable: DurableStreams
    signer: Signer
    on_empty: Callable[["Robot"], None]
    descriptors: Descriptors
    connected: set[str] = field(default_factory=set)  # names


class Robot:
    """One robot by its name."""

    _last_number = 0  # of the streams of all robots

    def __init__(self, name: str, around: Surroundings) -> None:
        self.name = name
        self._session: Session | None = None
        self.streams = Streams(name, around.durable, self.report_if_empty)
        self.starting: dict[Visitor, Channel] = {}
        self.sockets = Sockets(around.config.ldir, name, self._visitor_came, around.descriptors)
        self._around = around
        self._loop = asyncio.get_running_loop()
        self._hasty_takeovers = 0

    @classmethod
    def _note_number(cls, visitor: Visitor) -> None:
        """No other stream is to have the number that this one has from the daemon before us."""
        cls._last_number = max(cls._last_number, int(visitor.stream, 16))

    # Sessions

    @property
    def session(self) -> Session | None:
        """The one it has."""
        return self._session

    @session.setter
    def session(self, session: Session | None) -> None:
        self._session = session
        (self._around.connected.discard if session is None else self._around.connected.add)(self.name)

    def begin_session(self, channel: Channel, hello: Hello, peer: str) -> None:
        """Welcome a control channel; a session that is still there gives way.

        Raises:
            Refused: the robot cannot be served; the caller tells it.
        """
        services = checked_services(hello)
        if not self.sockets.provide(services):
            if self.session is None:
                self.sockets.close()
            raise Refused("socket", "the server cannot make the robot's socket")
        if self.session is not None:
            self._give_way(self.session, peer)
        now = self._loop.time()
        keepalive = Keepalive(self._around.config.keepalive, now)
        software = clean_software(hello.software)
        session = Session(channel, secrets.token_hex(16), services, keepalive, peer, now, software)
        self.have_session(session)
        interval, renews = self._around.config.keepalive, self._around.signer.there
        channel.send(Welcome(PROTOCOL_VERSION, session.id, interval, SOFTWARE, renews))
        session.log_beginning(self.name)

    def have_session(self, session: Session) -> None:
        """Listen to a session that has been welcomed, by us or by the daemon before us."""
        self.session = session
        session.tell(self.streams.lines, self._loop.time())
        session.channel.on_frame = functools.partial(self._control_frame, session)
        session.channel.on_lost = functools.partial(self._session_lost, session)
        session.timer = self._loop.call_at(session.keepalive.deadline, self._check_alive, session)

    def leave_session(self) -> None:
        """Forget the session: another process goes on with it. What belongs to it is the caller's."""
        session, self.session = self.session, None
        if session is not None:
            session.rest()
            session.channel.leave()

    def restore_sockets(self) -> None:
        """Make those of the session's sockets that are missing; it ends if that is not possible."""
        if self.session is not None and not self.sockets.provide(self.session.services):
            self.end_session("the server cannot make its socket", Cause.SOCKET)

    def look_after_sockets(self) -> None:
        """Make those anew that somebody has removed; if that is not possible, the session goes on without."""
        if self.session is not None and not self.sockets.in_place:
            self.sockets.provide(self.session.services)

    def end_session(self, why: str, cause: Cause, refusal: Refusal | None = None) -> None:
        """End the session, if there is one: its sockets vanish, its streams go on."""
        session = self.session
        if session is None:
            return
        self.session = None
        self._retire(session, refusal)
        self.sockets.close()
        session.log_end(self.name, why, cause, self._loop.time() - session.since)
        self.report_if_empty()

    def _give_way(self, old: Session, peer: str) -> None:
        age = self._loop.time() - old.since
        self._hasty_takeovers = self._hasty_takeovers + 1 if age < _FIGHT_AGE else 0
        old.log_takeover(self.name, peer, fight=self._hasty_takeovers >= 2)
        # Its visitors have waited long enough to be served by the new session.
        waiting = list(old.board.visitors)
        old.board.visitors.clear()
        self.session = None
        self._retire(old, Refusal("superseded", f"the same name connected from {peer}"))
        for visitor in waiting:
            self._loop.call_soon(self.seat, visitor)

    def _retire(self, session: Session, refusal: Refusal | None) -> None:
        session.rest()
        if refusal is not None:
            session.channel.send(refusal)
        session.channel.close()
        for standby in session.board.standbys:
            standby.close()
        for visitor in list(session.board.visitors):
            self._turn_away(visitor, "the robot disconnected")

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
        """Start the next visitor on a channel, or let the channel stand by."""
        channel.on_lost = functools.partial(self._standby_lost, session, channel)
        board = session.board
        # First, or channels would be dialled for them: hundreds may have left while they waited.
        while board.visitors and has_left(board.visitors[0].sock):
            board.visitors.popleft().close()
        visitor, dials = board.channel_came(channel)
        if dials:
            session.channel.send(Dial(dials))
        if visitor is None:
            session.stood_by()
        else:
            session.served = self._loop.time()
            self._start(visitor, channel)

    def _standby_lost(self, session: Session, channel: Channel, error: PeerError | None) -> None:
        del error  # the robot opens another one; nobody was served by this one
        session.board.channel_left(channel)

    # Visitors

    def _visitor_came(self, service: str, sock: socket.socket) -> None:
        Robot._last_number += 1
        visitor = make_visitor(sock, service, f"{Robot._last_number:x}", self._loop.time())
        visitor.on_settled = self._around.descriptors.promise()
        waiting = len(self.session.board.visitors) if self.session else 0
        if len(self.streams) + len(self.starting) + waiting >= self._around.config.max_streams:
            self._turn_away(
                visitor, f"the robot has {self._around.config.max_streams} visitors (--max-streams)"
            )
            return
        self.seat(visitor)

    def have_visitor(self, visitor: Visitor) -> None:
        """Take in a visitor that the daemon before us has accepted."""
        self._note_number(visitor)
        self.seat(visitor)

    def seat(self, visitor: Visitor, *, again: bool = False) -> None:
        """Find a channel for a visitor, or let it wait for one."""
        session = self.session
        if session is None or session.unreachable:
            self._turn_away(visitor, session.unreachable if session else "the robot disconnected")
            return
        if has_left(visitor.sock):
            visitor.close()
            return
        if visitor.timer is None:
            patience = self._around.config.start_timeout
            visitor.timer = self._loop.call_later(patience, self._patience_over, visitor)
        board = session.board
        channel, dials = board.visitor_back(visitor) if again else board.visitor_came(visitor)
        if dials:
            session.channel.send(Dial(dials))
        if channel is not None:
            self._start(visitor, channel)
        else:
            visitor.waited = True

    def _patience_over(self, visitor: Visitor) -> None:
        visitor.timer = None
        session, patience = self.session, self._around.config.start_timeout
        if session is not None:
            gone = has_left(visitor.sock)
            more = session.served + patience - self._loop.time()
            if more > 0 and not gone:  # others are being served, one after the other: its turn comes
                visitor.timer = self._loop.call_later(more, self._patience_over, visitor)
                return
            session.board.visitor_left(visitor)
            dials = session.board.dials_lost()
            if dials:
                session.channel.send(Dial(dials))
            if gone:
                visitor.close()
                return
        self._turn_away(visitor, f"the robot opened no channel within {patience:g} s")

    def _turn_away(self, visitor: Visitor, why: str, event: Event = Event.VISITOR_FAILED) -> None:
        events.log(
            event,
            logging.WARNING,
            f"robot {self.name}: visitor with uid {visitor.uid} turned away: {why}",
            robot=self.name,
            **visitor.facts,
        )
        visitor.close()

    def _start(self, visitor: Visitor, channel: Channel) -> None:
        if visitor.timer is not None:
            visitor.timer.cancel()
        visitor.tries += 1
        channel.send(Start(visitor.service, visitor.stream))
        self.expect_answer(visitor, channel)

    def expect_answer(self, visitor: Visitor, channel: Channel) -> None:
        """START has been said on this channel, by us or by the daemon before us."""
        self._note_number(visitor)
        self.starting[visitor] = channel
        deadline = self._around.config.start_timeout
        visitor.timer = self._loop.call_later(
            deadline,
            self._start_failed,
            visitor,
            channel,
            PeerError(f"no answer to START within {deadline:g} s"),
        )
        channel.on_frame = functools.partial(self._start_answered, visitor, channel)
        channel.on_lost = functools.partial(self._start_failed, visitor, channel)

    def _start_answered(self, visitor: Visitor, channel: Channel, frame: Frame) -> None:
        if visitor.timer is not None:
            visitor.timer.cancel()
        del self.starting[visitor]
        if isinstance(frame, Failed):
            channel.close()
            why = f"{shorten(frame.code)}: {shorten(frame.text)}"
            self._turn_away(visitor, f"the robot could not connect it ({why})", Event.SERVICE_FAILED)
            self.report_if_empty()
        elif isinstance(frame, Started):
            self._begin_stream(visitor, channel)

    def _start_failed(self, visitor: Visitor, channel: Channel, error: PeerError | None) -> None:
        """The channel broke before its visitor was connected: nothing is lost, try the next."""
        if visitor.timer is not None:
            visitor.timer.cancel()
            visitor.timer = None
        del self.starting[visitor]
        channel.abort()
        if error is None and self._loop.time() - visitor.since < self._around.config.start_timeout:
            visitor.tries -= 1  # the robot has given up a surplus just then: no failure; but not for ever
        if visitor.tries >= _STANDBY_TRIES:
            self._turn_away(visitor, f"{_STANDBY_TRIES} channels failed, the last with: {error or 'hung up'}")
        else:
            self.seat(visitor, again=True)
        self.report_if_empty()

    # Streams

    def _begin_stream(self, visitor: Visitor, channel: Channel) -> None:
        try:
            link = channel.release()
        except PeerError as error:  # pragma: no cover - START was answered, so it was sent
            self._turn_away(visitor, str(error))
            return
        try:
            self.streams.begin(visitor, link)
            visitor.settle()
        except LocalError as error:
            self._turn_away(visitor, str(error))
            self.report_if_empty()

    def resume_stream(self, pump: Pump, facts: Mapping[str, Any]) -> OnEnd:
        """Take in a stream that the daemon before us has left; see ``durable.TakeIn``."""
        visitor, on_end = self.streams.resume(pump, facts)
        self._note_number(visitor)
        return on_end

    def cut_off(self, is_bad: Callable[[Link], str | None]) -> int:
        """End what goes over a link of which ``is_bad`` says why; how many sessions and streams that were."""
        count = 0
        session = self.session
        if session is not None and (why := is_bad(session.channel.link)):
            count += 1
            self.end_session(why, Cause.REVOKED, Refusal("revoked", why))
        elif session is not None:
            for standby in [other for other in session.board.standbys if is_bad(other.link)]:
                session.board.channel_left(standby)
                standby.close()
        for visitor, channel in list(self.starting.items()):
            if why := is_bad(channel.link):
                self._start_failed(visitor, channel, PeerError(why))
        revoked = "the robot's certificate was revoked"
        return count + self.streams.cut(lambda pump, _visitor: bool(is_bad(pump.link)), revoked)

    def report_if_empty(self) -> None:
        """Tell the server if there is neither session nor stream any more."""
        if self.session is None and not self.streams and not self.starting:
            self._around.on_empty(self)
