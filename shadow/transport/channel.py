"""Frames over a live TLS connection, on asyncio's event loop, without a task per connection.

A channel belongs to a robot for days and carries a frame every half minute: callbacks cost a fraction of what
a task with its coroutine costs. Reading takes exactly the bytes of the current frame; after ``release`` the
link belongs to somebody else, and none of its further bytes has been read.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import FrameError, LocalError, LocalProtocolError, PeerError, reason_of
from ..events import STEPS
from ..net.tcp import KEEPALIVE_MAX
from ..wire.codec import Decoder, encode
from ..wire.conversation import Budget, Conversation, Party, State
from ..wire.frames import Frame
from .link import KernelLink, Link

KEEPALIVE_MIN = 0.1  # seconds
UNSENT_MAX = 2**16  # bytes a peer may leave unread before we give up on it
_READS_AT_ONCE = 32  # then other connections get their turn

OnFrame = Callable[[Frame], None]
OnLost = Callable[[PeerError | None], None]


class Channel:
    """A connection that speaks frames.

    Attributes:
        link: the TLS connection.
        conversation: its protocol state.
        on_frame: called with each frame received; it may send, release or close.
        on_lost: called once when the peer hung up (None) or the connection failed (the error); the
            channel is closed by then. Not called after ``close``, ``abort`` or ``release``.
    """

    __slots__ = (
        "_budget",
        "_decoder",
        "_hears",
        "_live",
        "_loop",
        "_watches_write",
        "conversation",
        "link",
        "on_frame",
        "on_lost",
    )

    def __init__(
        self,
        link: Link,
        us: Party,
        on_frame: OnFrame,
        on_lost: OnLost,
        conversation: Conversation | None = None,
    ) -> None:
        self.link = link
        self.conversation = conversation or Conversation(us)
        self.on_frame = on_frame
        self.on_lost = on_lost
        self._decoder = Decoder()
        self._budget = Budget(us)
        self._loop = asyncio.get_running_loop()
        self._watches_write = False
        self._live = True
        self._hears = True  # live, and not paused
        self._loop.add_reader(link.sock, self._readable)

    def __repr__(self) -> str:
        said = f"{self.conversation.role or 'new'} {self.conversation.state}"
        return f"<Channel {said}{'' if self._live else ', let go'}, {self.link!r}>"

    @property
    def live(self) -> bool:
        """True until the channel is closed, lost or released."""
        return self._live

    @property
    def stands_by(self) -> bool:
        """True while it waits for somebody to need it."""
        return self._live and self.conversation.state is State.STANDBY

    def send(self, frame: Frame) -> None:
        """Send one frame; if the connection fails meanwhile, ``on_lost`` reports that later.

        Raises:
            LocalProtocolError: it may not be sent now, a bug of ours; the connection fails, too, because its
                state is now unknown.
        """
        if not self._live:
            return
        try:
            self.conversation.sent(frame)
            data = encode(frame)
        except LocalProtocolError as error:
            self._loop.call_soon(self._lose, PeerError(f"given up for a bug of ours: {error}"))
            raise
        self._budget.said(frame)
        STEPS.debug("%r says %s", self, type(frame).__name__)
        if self.link.unsent > UNSENT_MAX:
            self._loop.call_soon(self._lose, PeerError("the peer does not read what we send"))
            return
        try:
            self.link.write(data)
        except OSError as error:
            self._loop.call_soon(self._lose, _lost(error))
            return
        self._watch_write()

    def pause(self) -> None:
        """Stop listening for a moment: what the peer says from now on waits for ``hear``."""
        self._hears = False
        self._loop.remove_reader(self.link.sock)

    def hear(self, on_frame: OnFrame, on_lost: OnLost) -> None:
        """Tell a new owner what the peer says, starting after this iteration of the event loop."""
        self.on_frame, self.on_lost = on_frame, on_lost
        self._hears = self._live
        if not self._live:  # it broke while nobody listened
            self._loop.call_soon(on_lost, PeerError("connection lost"))
            return
        self._loop.add_reader(self.link.sock, self._readable)
        self._loop.call_soon(self._readable)  # data may be inside OpenSSL already, where no selector sees it

    def release(self) -> Link:
        """Stop watching; the link is the caller's.

        Raises:
            PeerError: frames are still unsent; nothing may follow them yet, so the link is aborted.
        """
        self._stop_watching()
        if not self.link.flushed:
            self.link.abort()
            raise PeerError("the peer does not read what we send")
        # From here on the reader may pause as long as it likes; see liveness.Watch.
        self.link.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)
        return self.link

    @property
    def record(self) -> dict[str, Any]:
        """What ``remembered`` needs besides the socket, fit for JSON.

        Raises:
            LocalError: no other process could continue it.
        """
        if not (self._live and isinstance(self.link, KernelLink)):
            raise LocalError("encryption in userspace ends with it")
        if not (self._decoder.idle and self.link.flushed):
            raise LocalError("in the middle of a frame")
        return {**self.link.record, "role": self.conversation.role, "state": self.conversation.state.value}

    def leave(self) -> None:
        """Close our descriptor silently: another process continues the connection."""
        self._stop_watching()
        self.link.sock.close()

    def close(self) -> None:
        """End the connection properly."""
        if self._live:
            self._stop_watching()
            self.link.close()

    def retire(self, within: float) -> None:
        """End the connection properly, and wait ``within`` seconds for the peer to do the same.

        We read what the peer says meanwhile, but do not answer: if we closed at once, it would cause a reset,
        which might overtake our close_notify. So the peer learns that we have left properly.
        """
        if not self._live:
            return
        self.on_frame, self.on_lost = _unheard, _unheard
        self.link.send_close_notify()
        with contextlib.suppress(OSError):
            self.link.sock.shutdown(socket.SHUT_WR)
        self._loop.call_later(within, self.abort)

    def abort(self) -> None:
        """Cut the connection off."""
        if self._live:
            self._stop_watching()
            self.link.abort()

    def _stop_watching(self) -> None:
        STEPS.debug("%r ends or is a stream's from now on", self)
        self._live = self._hears = False
        self._loop.remove_reader(self.link.sock)
        self._loop.remove_writer(self.link.sock)

    def _watch_write(self) -> None:
        wanted = not self.link.flushed
        if wanted == self._watches_write:
            return
        self._watches_write = wanted
        if wanted:
            self._loop.add_writer(self.link.sock, self._writable)
        else:
            self._loop.remove_writer(self.link.sock)

    def _writable(self) -> None:
        try:
            self.link.flush()
        except OSError as error:
            self._lose(_lost(error))
            return
        self._watch_write()

    def _readable(self) -> None:
        now = self._loop.time()
        try:
            for _ in range(_READS_AT_ONCE):
                if not self._hears:
                    return
                data = self.link.read(self._decoder.wanted)
                if not data:
                    self._hung_up()
                    return
                self._budget.read(len(data), now)
                frame = self._decoder.feed(data)
                if frame is not None:
                    self._budget.frame(now)
                    self.conversation.received(frame)
                    STEPS.debug("%r hears %s", self, type(frame).__name__)
                    self.on_frame(frame)
            # More may already be inside OpenSSL, where no selector sees it.
            self._loop.call_soon(self._readable)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(_lost(error))
        except PeerError as error:
            self._lose(error)

    def _hung_up(self) -> None:
        cut = None if self._decoder.idle else FrameError("the peer hung up in the middle of a frame")
        self._lose(cut)

    def _lose(self, error: PeerError | None) -> None:
        if not self._live:
            return
        if error is None:
            self.close()
        else:
            self.abort()
        self.on_lost(error)


def remembered(link: Link, record: Mapping[str, Any], us: Party, state: State) -> Channel:
    """The channel that another process has recorded; set ``on_frame`` and ``on_lost`` at once.

    Raises:
        KeyError, TypeError, ValueError: the record is not one of a channel in this state.
    """
    if State(record["state"]) is not state:
        raise ValueError(f"a channel that is {record['state']} and not {state}")
    conversation = Conversation(us, str(record["role"]), state)
    return Channel(link, us, _unheard, _unheard, conversation)


def remembered_interval(record: Mapping[str, Any]) -> float:
    """The keepalive interval that another process has recorded.

    Raises:
        KeyError, TypeError, ValueError: the record has none.
    """
    interval = float(record["interval"])
    if not KEEPALIVE_MIN <= interval <= KEEPALIVE_MAX:
        raise ValueError(f"a keepalive interval of {interval:g} s")
    return interval


def _unheard(_what: object) -> None:
    """For a channel that has no owner yet (nothing is read before the event loop's next turn) or any more."""


def _lost(error: OSError) -> PeerError:
    return PeerError(f"connection lost: {reason_of(error)}")
