"""One robot's visitors until their streams run: who waits, who gets which channel, and the robot's answer.

Everything runs in the event loop's thread.
"""

import asyncio
import functools
import logging
import socket
from typing import Protocol

from .. import events
from ..daemon.config import ServerConfig
from ..errors import LocalError, PeerError
from ..text import shorten
from ..transport.channel import Channel
from ..wire.frames import Failed, Frame, Start, Started
from .descriptors import Descriptors
from .session import Session
from .streams import Streams
from .visitor import Visitor, make_visitor

_STANDBY_TRIES = 3  # channels to try for one visitor before turning it away


class Numbers:
    """The numbers of all robots' streams: each is given out once."""

    def __init__(self) -> None:
        """The first is 1."""
        self._last = 0

    def take(self) -> str:
        """The next one, in the hexadecimal digits that go over the wire."""
        self._last += 1
        return f"{self._last:x}"

    def note(self, number: str) -> None:
        """A stream of the previous daemon has this number: no other may get it."""
        self._last = max(self._last, int(number, 16))


class Host(Protocol):
    """The robot, as its visitors see it."""

    name: str
    streams: Streams

    @property
    def session(self) -> Session | None:
        """Its present session, whose board has the waiting visitors."""

    def pass_on(self, visitor: Visitor) -> bool:
        """Have a visitor wait for the robot at other servers; False: it cannot be elsewhere."""

    def report_if_empty(self) -> None:
        """One of the visitors has gone."""


class Visitors:
    """The visitors of one robot, all of its services together.

    Attributes:
        starting: those whose START has no answer yet, with the channels that carried it.
        elsewhere: those that wait for the robot at other servers.
    """

    def __init__(self, host: Host, config: ServerConfig, descriptors: Descriptors, numbers: Numbers) -> None:
        """Begin without any; ``numbers`` are those of the streams of all robots."""
        self.starting: dict[Visitor, Channel] = {}
        self.elsewhere: set[Visitor] = set()
        self._host = host
        self._config = config
        self._descriptors = descriptors
        self._numbers = numbers
        self._loop = asyncio.get_running_loop()

    def came(self, service: str, sock: socket.socket) -> None:
        """Somebody has connected to a socket of the robot."""
        self.take(make_visitor(sock, service, self.next_number(), self._loop.time()))

    def next_number(self) -> str:
        """The number of the next visitor's stream."""
        return self._numbers.take()

    def take(self, visitor: Visitor) -> None:
        """Serve a visitor."""
        visitor.on_settled = self._descriptors.promise()
        most, session = self._config.max_streams, self._host.session
        waiting = len(self.elsewhere) + (len(session.board.visitors) if session else 0)
        if len(self._host.streams) + len(self.starting) + waiting >= most:
            self.turn_away(visitor, f"the robot has {most} visitors (--max-streams)")
            return
        self.seat(visitor)

    def resume(self, visitor: Visitor) -> None:
        """Take in a visitor that the previous daemon has accepted."""
        visitor.on_settled = self._descriptors.promise()
        self._numbers.note(visitor.stream)
        self.seat(visitor)

    def resume_start(self, visitor: Visitor, channel: Channel) -> None:
        """Take in one for which the previous daemon has sent START; the answer may be there already."""
        visitor.on_settled = self._descriptors.promise()
        self.expect_answer(visitor, channel)

    def seat(self, visitor: Visitor, *, again: bool = False) -> None:
        """Find a channel for a visitor, or let it wait for one."""
        self.elsewhere.discard(visitor)
        session = self._host.session
        if session is None and self._host.pass_on(visitor):
            return
        if session is None or session.unreachable:
            self.turn_away(visitor, session.unreachable if session else "the robot disconnected")
            return
        if visitor.left:
            visitor.close()
            return
        if visitor.timer is None:
            visitor.timer = self._loop.call_later(self._config.start_timeout, self._patience_over, visitor)
        channel = session.seat(visitor, again=again)
        if channel is not None:
            self._start(visitor, channel)
        else:
            visitor.waited = True
            events.STEPS.debug("%r waits for a channel of %r", visitor, session)

    def serve(self, session: Session, channel: Channel) -> None:
        """Start the next visitor on a channel, or let the channel stand by."""
        visitor = session.pair(channel, self._loop.time())
        if visitor is not None:
            self._start(visitor, channel)

    def _patience_over(self, visitor: Visitor) -> None:
        visitor.timer = None
        session, patience = self._host.session, self._config.start_timeout
        if session is not None:
            gone = visitor.left
            more = session.served + patience - self._loop.time()
            if more > 0 and not gone:  # others are being served, one after the other: its turn will come
                visitor.timer = self._loop.call_later(more, self._patience_over, visitor)
                return
            session.lose_patience(visitor)
            if gone:
                visitor.close()
                return
        self.turn_away(visitor, f"the robot opened no channel within {patience:g} s")

    def turn_away(
        self,
        visitor: Visitor,
        why: str,
        kind: type[events.VisitorFailed] | type[events.ServiceFailed] = events.VisitorFailed,
    ) -> None:
        """Log why a visitor is not connected, and hang up on it."""
        name = self._host.name
        event = kind(
            robot=name,
            service=visitor.offered,
            stream=visitor.stream,
            visitor_uid=visitor.uid,
            visitor_pid=visitor.pid,
            visitor_user=visitor.user or None,
            visitor_host=visitor.host or None,
            visitor_stream=visitor.there or None,
        )
        text = f"robot {name}: visitor with uid {visitor.uid}{visitor.known_as} turned away: {why}"
        events.log(event, logging.WARNING, text)
        self.elsewhere.discard(visitor)
        visitor.refuse(why)

    # START and its answer

    def _start(self, visitor: Visitor, channel: Channel) -> None:
        if visitor.timer is not None:
            visitor.timer.cancel()
        visitor.tries += 1
        events.STEPS.debug("%r is started on %r", visitor, channel)
        channel.send(Start(visitor.service, visitor.stream))
        self.expect_answer(visitor, channel)

    def expect_answer(self, visitor: Visitor, channel: Channel) -> None:
        """START was sent on this channel, by us or by the previous daemon."""
        self._numbers.note(visitor.stream)
        self.starting[visitor] = channel
        deadline = self._config.start_timeout
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
            self.turn_away(visitor, f"the robot could not connect it ({why})", events.ServiceFailed)
            self._host.report_if_empty()
        elif isinstance(frame, Started):
            self.begin_stream(visitor, channel)

    def _start_failed(self, visitor: Visitor, channel: Channel, error: PeerError | None) -> None:
        """The channel broke before its visitor was connected: nothing is lost, try the next."""
        if visitor.timer is not None:
            visitor.timer.cancel()
            visitor.timer = None
        del self.starting[visitor]
        channel.abort()
        if error is None and self._loop.time() - visitor.since < self._config.start_timeout:
            visitor.tries -= 1  # the robot was just giving up a surplus: no failure; but not for ever
        if visitor.tries >= _STANDBY_TRIES:
            self.turn_away(visitor, f"{_STANDBY_TRIES} channels failed, the last with: {error or 'hung up'}")
        else:
            self.seat(visitor, again=True)
        self._host.report_if_empty()

    def take_back(self, visitor: Visitor, channel: Channel, why: str) -> None:
        """Give up the channel that carried START; the visitor gets another, if there is one."""
        self._start_failed(visitor, channel, PeerError(why))

    def begin_stream(self, visitor: Visitor, channel: Channel) -> None:
        """A visitor's service is connected, at the other end of this channel."""
        self.elsewhere.discard(visitor)
        try:
            self._host.streams.begin(visitor, channel.release())
            visitor.settle()
        except (LocalError, PeerError) as error:
            self.turn_away(visitor, str(error))
            self._host.report_if_empty()
