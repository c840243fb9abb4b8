"""One direction of a stream, and the two together: who may read, who may write, and how it ends.

The theory. A stream joins two ends (``ends``): a *link*, which is a TLS connection, and a *near* end, which
is a plain socket or another link. Each direction is a ``Flow`` from a source to a sink with a store between
them, and goes through only three states::

    moving ──source says end of file──▶ draining ──store is empty──▶ done (the end was passed on)

The directions are independent: a half-closed stream is one with one flow done. When both are done the
stream has ended properly. Any error of either socket cuts the whole stream: both sockets are reset, because
half a stream that silently stays would look like a live one (RFC 9293, section 3.5.2).

Readiness comes from edge-triggered epoll, so it is remembered here: ``readable`` and ``writable`` stay true
until a system call says EAGAIN. How bytes move is left to the subclasses in ``splice`` and ``userspace``.
"""

import errno
import select
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from ..errors import reason_of
from ..events import STEPS
from ..net.tcp import is_delivered, take_error
from ..transport.link import Link
from .ends import End, Side
from .progress import MOVED, STAGE, Entry, Record, Stage

TURN_BUDGET = 2**18  # bytes per direction before the next stream gets its turn
CALL_COST = 2**12  # minimum charge for a record or call, in bytes: tiny ones must not buy endless turns

_READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR


class StreamCut(Exception):
    """One side of the stream failed, or we wanted the stream to end; internal to the relay.

    Attributes:
        side: whose socket it was; None if it was us.
        error: the system call's error, or our reason.
    """

    def __init__(self, side: Side | None, error: OSError) -> None:
        super().__init__(f"{side or 'us'}: {reason_of(error)}")
        self.side = side
        self.error = error


class Flow(ABC):
    """Bytes from ``source`` to ``sink``.

    Attributes:
        record: its progress, in memory that may outlive the process.
        moved: bytes of plaintext taken from the source so far.
        ended: the source has said end of file.
        done: everything has been passed on, including the end.
        readable: the source may have something; False once it would block.
        writable: the sink may take something; False once it would block.
        failure: the source has failed; data from before that may still be there.
        urgent: the source may have reached urgent data (tcp(7)).
        calls: how many records or system calls the last ``fill`` took.
    """

    __slots__ = (
        "calls",
        "done",
        "ended",
        "failure",
        "moved",
        "readable",
        "record",
        "sink",
        "source",
        "urgent",
        "writable",
    )

    def __init__(self, source: Side, sink: Side, record: Record) -> None:
        self.source = source
        self.sink = sink
        self.record = record
        self.readable = self.writable = True
        self.failure: OSError | None = None
        self.urgent = False
        self.calls = 1
        self.moved: int = record[MOVED]
        self.ended = record[STAGE] >= Stage.ENDED
        self.done = record[STAGE] == Stage.DONE

    def __repr__(self) -> str:
        """Its state, in the words of the theory."""
        state = "done" if self.done else "draining" if self.ended else "moving"
        waits = "" if self.readable or self.ended else ", source empty"
        waits += "" if self.writable else ", sink full"
        return f"<{self.source} to {self.sink} {state}, {self.moved} bytes{waits}>"

    def end(self) -> None:
        """Record that the source has said end of file.

        Raises:
            OSError: it only looks like the end, because the source has failed.
        """
        if self.failure is not None:
            raise self.failure
        if not self.ended:
            self.record[STAGE] = Stage.ENDED
            self.ended = True
            STEPS.debug("%r", self)

    @abstractmethod
    def fill(self) -> int:
        """Take from the source into the store; return the number of plaintext bytes taken.

        Sets ``readable`` to False where the source would block, and calls ``end`` at its end of file.
        Called only while ``has_room``.
        """

    @abstractmethod
    def drain(self) -> None:
        """Give from the store to the sink; sets ``writable`` to False where it would block."""

    @abstractmethod
    def finish(self) -> bool:
        """Pass on the end of file; False if the sink has no room for that yet."""

    @property
    @abstractmethod
    def holds(self) -> bool:
        """True while the store is not empty."""

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """True if ``fill`` may be called."""

    @property
    def descriptors(self) -> list[int]:
        """What another process needs to continue with the store; nothing if it is memory."""
        return []

    def resume(self) -> None:  # noqa: B027 - most have nothing to do
        """Continue with what another process has left."""

    def close(self) -> None:  # noqa: B027 - most stores are memory
        """Free the store."""

    def turn(self, budget: int) -> bool:
        """Move bytes until both ends block or ``budget`` is spent; True if there is more to do at once.

        Raises:
            StreamCut: one side failed.
        """
        if self.done:
            return False
        self._give()
        while budget > 0 and self.readable and not self.ended and self.has_room:
            budget -= self._filled()
            self._give()
        return budget <= 0 and not self.done

    def _give(self) -> None:
        """Pass on what there is, including the end, as far as the sink takes it."""
        if self.writable and self.holds:
            self._drained()
        if self.ended and self.writable and not self.holds:
            self._finished()

    def _filled(self) -> int:
        try:
            taken = self.fill()
        except OSError as error:
            raise StreamCut(self.source, self.failure or error) from error
        if taken:
            self.moved += taken
            self.record[MOVED] = self.moved
        return max(taken, self.calls * CALL_COST)

    def _drained(self) -> None:
        try:
            self.drain()
        except OSError as error:
            raise StreamCut(self.sink, error) from error

    def _finished(self) -> None:
        try:
            finished = self.finish()
        except OSError as error:
            raise StreamCut(self.sink, error) from error
        if finished:
            self.record[STAGE] = Stage.DONE
            self.done = True
            STEPS.debug("%r", self)
        else:
            self.writable = False


class Home(Protocol):
    """The thread that a stream belongs to."""

    def adopt(self, pump: "Pump") -> None:
        """Move its bytes from now on."""

    def cut(self, pump: "Pump", why: str) -> None:
        """Cut it off."""


class Pump:
    """Both directions of one stream, with the ends they run between.

    Attributes:
        near: one end.
        link: the other.
        up: near to link.
        down: link to near.
        entry: what is known about it, in memory that may outlive the process.
        home: the thread that it belongs to for life; None while it belongs to nobody.
        kept: the service manager has copies of its descriptors, so it can continue when this process ends.
        on_end: called once, from the relay's thread, when the stream is over and its sockets are closed.
    """

    __slots__ = ("_cut", "_well", "down", "entry", "home", "kept", "link", "near", "on_end", "up")

    def __init__(self, near: End, link: Link, up: Flow, down: Flow, entry: Entry) -> None:
        self.near = near
        self.link = link
        self.up = up
        self.down = down
        self.entry = entry
        self.home: Home | None = None
        self.kept = False
        self._cut: StreamCut | None = None
        self._well = False
        self.on_end: Callable[[Pump], object] | None = None

    def __repr__(self) -> str:
        """Safe in any thread: its parts may be from different moments."""
        cut, kept = f", cut by {self._cut}" if self._cut is not None else "", ", kept" if self.kept else ""
        links = " and ".join(map(repr, self.links))
        return f"<Pump {self.up!r} {self.down!r}{cut}{kept}, {links}>"

    @property
    def ends(self) -> dict[Side, End]:
        """Both of its ends."""
        return {Side.NEAR: self.near, Side.LINK: self.link}

    @property
    def links(self) -> list[Link]:
        """Those of its ends that are links, the near one first."""
        return [end for end in self.ends.values() if isinstance(end, Link)]

    @property
    def in_kernel(self) -> bool:
        """True if no byte of it comes into this process."""
        return self.near.in_kernel and self.link.in_kernel

    def note_in(self, entry: Entry) -> None:
        """Record its progress in another place: call it before the first byte, while there is no progress."""
        self.entry, self.up.record, self.down.record = entry, entry.up, entry.down

    @property
    def cut(self) -> StreamCut | None:
        """Why it was cut off, or None."""
        return self._cut

    @cut.setter
    def cut(self, why: StreamCut) -> None:
        # Before any socket is touched: the next daemon must not take the remains for an orderly end.
        self.entry.cut = True
        self._cut = why

    @property
    def descriptors(self) -> list[int]:
        """Everything the stream consists of: two sockets, and the stores of both directions."""
        sockets = [end.sock.fileno() for end in self.ends.values()]
        return [*sockets, *self.up.descriptors, *self.down.descriptors]

    @property
    def running(self) -> bool:
        """True until both ends of file have been passed on, or it was cut off."""
        return self._cut is None and not (self.up.done and self.down.done)

    @property
    def passed_on(self) -> bool:
        """True if both ends of file have been passed on."""
        return self._cut is None and self.up.done and self.down.done

    @property
    def delivered(self) -> bool:
        """True if the peers have acknowledged everything that was written.

        Until then the sockets must stay open: the kernel resets a socket that nobody has open any more if its
        peer does not read for some minutes (tcp(7), tcp_orphan_retries), and what it still held is lost.
        """
        return is_delivered(self.near.sock) and is_delivered(self.link.sock)

    @property
    def over(self) -> bool:
        """True when nothing remains to be done."""
        return not self.running and (self._cut is not None or self.delivered)

    def look_after(self) -> None:
        """For a lingering stream: cut it if a peer has gone without taking everything.

        epoll reports that too, but a socket that was reset also looks as if everything had been acknowledged.
        """
        for side, end in self.ends.items():
            if number := take_error(end.sock):
                self.cut = StreamCut(side, OSError(number, None))

    def ready(self, side: Side, events: int) -> bool:
        """Remember what epoll says about one side's socket; False if that is nothing new.

        A unix socket reports each time that its peer has read something, and usually there was room anyway.
        """
        reader, writer = (self.up, self.down) if side is Side.NEAR else (self.down, self.up)
        news = False
        if events & _READABLE and not reader.readable:
            reader.readable = news = True
        if events & select.EPOLLPRI:
            reader.urgent = news = True
        if events & _WRITABLE and not writer.writable:
            writer.writable = news = True
        if events & select.EPOLLERR:
            self._note_failure(reader, side)
            news = True
        return news

    def _note_failure(self, reader: Flow, side: Side) -> None:
        """Look up an error at once: a flow that waits for a slow reader, or for nobody, would not notice it.

        No byte that came before a reset is lost. We do not wait for a peer that has vanished.
        """
        number = take_error(self.ends[side].sock)
        if number == errno.ECONNRESET and not reader.ended:
            reader.failure = OSError(number, None)
        elif number:
            self.cut = StreamCut(side, OSError(number, None))

    def reads(self, side: Side) -> bool:
        """Whether we have taken everything that this side's peer has sent, so that it may send more."""
        reader = self.up if side is Side.NEAR else self.down
        return reader.ended or not reader.readable

    def turn(self, budget: int = TURN_BUDGET) -> bool:
        """Let both directions move bytes; True if there is more to do at once."""
        try:
            more = self.up.turn(budget)
            more = self.down.turn(budget) or more
        except StreamCut as cut:
            self.cut = cut
            more = False
        if not self._well:
            self._well = True
            self.entry.tries = 0  # whatever brought down the daemon, it was not this stream
        return more

    def close_stores(self) -> None:
        """Free the stores of both directions; the sockets stay as they are."""
        for flow in (self.up, self.down):
            flow.close()

    def leave(self) -> None:
        """Close our copies of what the service manager keeps: nothing is sent, and no peer notices."""
        self.close_stores()
        for end in self.ends.values():
            end.sock.close()

    def close(self) -> None:
        """Close everything: properly after an orderly end, with a reset after a cut."""
        self.close_stores()
        for end in self.ends.values():
            if self.cut is None:
                end.sock.close()
            else:
                end.abort()
