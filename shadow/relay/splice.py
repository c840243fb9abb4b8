"""Streams over kernel TLS: splice(2) from socket to pipe to socket, no byte ever in this process.

A flow has two halves: how it takes from its source, and how it gives to its sink. Each is a class, for a
plain socket and for a link, and each flow is one of both.

How the kernel behaves, which the code has to respect (``net/tls/tls_sw.c``, ``tls_sw_splice_read``):

* One splice from a TLS socket yields at most one record, and only ``SPLICE_F_NONBLOCK`` keeps it from
  blocking; the kernel ignores ``O_NONBLOCK``.
* If the pipe is short of slots the rest of the record is dropped *silently*. So we splice only while the
  pipe is sure to have room for a whole one: ``RECORD_SLOTS``.
* A record that is not application data makes splice fail with EINVAL and stays in the queue.
* The return value 0 means either end of file, which without close_notify is a truncation, or a record of
  length zero.
* A record that went only partly into the TCP socket counts as sent; SHUT_WR would lose its rest. A
  socket that polls writable takes that rest before close_notify, hence: writable, close_notify, SHUT_WR.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Sequence
from typing import ClassVar

from ..net.tcp import is_writable, shutdown_write, written
from ..transport import ktls as kernel_tls
from ..transport.link import Link, check_close_notify, truncated
from .ends import End, Plain, Side
from .flow import Flow, Pump
from .pipes import PAGE, RECORD_SLOTS, RECORDS_SIZE, Pipe, make_pipe, retake
from .progress import MARK, STAGE, Entry, Record, Stage

_CHUNK = 2**18  # bytes asked of a plain socket, which gives what it has, or what the pipe has slots for
_FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


class PipeFlow(Flow):
    """What all of them share: the pipe.

    Attributes:
        pipe_size: bytes of a new one; None for the kernel's default.
    """

    __slots__ = ("_pipe", "_sink", "_sink_descriptor", "_source", "_source_descriptor")
    pipe_size: ClassVar[int | None] = None

    def __init__(
        self,
        sides: tuple[Side, Side],
        source: socket.socket,
        sink: socket.socket,
        pipe: Pipe,
        record: Record,
    ) -> None:
        super().__init__(*sides, record)
        self._source = source
        self._sink = sink
        self._pipe = pipe
        self._source_descriptor, self._sink_descriptor = source.fileno(), sink.fileno()

    @property
    def descriptors(self) -> list[int]:
        """See ``Flow.descriptors``."""
        return [self._pipe.reader, self._pipe.writer]

    @property
    def holds(self) -> bool:
        """See ``Flow.holds``."""
        return self._pipe.held > 0

    def drain(self) -> None:
        """See ``Flow.drain``."""
        pipe, sink = self._pipe, self._sink_descriptor
        try:
            while pipe.held:
                pipe.held -= os.splice(pipe.reader, sink, pipe.held, None, None, _FLAGS)
        except BlockingIOError:
            self.writable = False

    def close(self) -> None:
        """Close the pipe."""
        self._pipe.close()


class FromPlain(PipeFlow):
    """The half that takes from a plain socket."""

    __slots__ = ()

    @property
    def has_room(self) -> bool:
        """See ``Flow.has_room``: a plain socket keeps what the pipe has no slot for."""
        return self._pipe.held == 0

    def fill(self) -> int:
        """See ``Flow.fill``."""
        pipe = self._pipe
        try:
            taken = os.splice(self._source_descriptor, pipe.writer, _CHUNK, None, None, _FLAGS)
        except BlockingIOError:
            if self.urgent:
                return self._pass_mark()
            self.readable = False
            return 0
        pipe.held += taken
        if taken == 0:
            self.end()
        elif taken * 2 > pipe.slots * PAGE:
            pipe.grow()
        return taken

    def _pass_mark(self) -> int:
        """Take one byte through this process: splice(2) stops before urgent data, for good.

        See ``tcp_read_sock`` (net/ipv4/tcp.c). The pipe is empty, so it takes the byte.
        """
        self.urgent = False
        try:
            byte = self._source.recv(1)
        except BlockingIOError:
            self.readable = False
            return 0
        if not byte:
            self.end()
            return 0
        self._pipe.held += os.write(self._pipe.writer, byte)
        return 1


class FromLink(PipeFlow):
    """The half that takes from a TLS socket."""

    __slots__ = ()
    pipe_size = RECORDS_SIZE

    @property
    def has_room(self) -> bool:
        """See ``Flow.has_room``."""
        return self._pipe.held == 0 or self._pipe.room > 0

    def fill(self) -> int:
        """See ``Flow.fill``: as many records as are sure to fit into the pipe."""
        pipe, source, request = self._pipe, self._source_descriptor, self._request()
        if pipe.held == 0:
            pipe.records = 0
        room = max(1, pipe.room)  # a pipe too small for one takes a part
        total = 0
        for self.calls in range(1, room + 1):
            try:
                taken = os.splice(source, pipe.writer, request, None, None, _FLAGS)
            except BlockingIOError:
                self.readable = False
                break
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._control_record()
                break
            if taken == 0:
                self._nothing_came()
                break
            pipe.records += 1
            pipe.held += taken
            total += taken
        if total * 2 > room * kernel_tls.RECORD_MAX:
            pipe.grow()
        return total

    def _request(self) -> int:
        """Bytes to ask for: a record, or what is sure to fit into a pipe too small for one.

        The kernel decrypts into fresh pages, so n bytes lie on at most n / PAGE + 1 of them.
        """
        return kernel_tls.RECORD_MAX if self._pipe.slots >= RECORD_SLOTS else (self._pipe.slots - 1) * PAGE

    def _control_record(self) -> None:
        """Take close_notify from the queue, after recording it: only a FIN comes after it.

        Otherwise, if the daemon died in between, its successor would find only the FIN, a truncation.
        """
        check_close_notify(*kernel_tls.read_control_record(self._source, socket.MSG_PEEK))
        self.end()
        kernel_tls.read_control_record(self._source)

    def resume(self) -> None:
        """See ``Flow.resume``."""
        if self.ended:
            with contextlib.suppress(OSError):  # that process may or may not have taken it from the queue
                kernel_tls.read_control_record(self._source)

    def _nothing_came(self) -> None:
        """Tell the end from a record of length zero; splice returns 0 for both.

        Peek: every record, even an empty one, comes with its type as ancillary data, the end of the
        connection with none. POLLRDHUP would not do: it is also set while records are queued before the FIN.
        """
        try:
            data, ancillary, _flags, _address = self._source.recvmsg(
                1, socket.CMSG_SPACE(1), socket.MSG_PEEK | socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            self.readable = False
            return
        if not data and not ancillary:
            raise truncated()


class ToPlain(PipeFlow):
    """The half that gives to a plain socket."""

    __slots__ = ()

    def finish(self) -> bool:
        """See ``Flow.finish``."""
        shutdown_write(self._sink)
        return True


class ToLink(PipeFlow):
    """The half that gives to a TLS socket."""

    __slots__ = ()

    def drain(self) -> None:
        """See ``Flow.drain``: for all records but the last, tell the kernel that more will follow.

        The kernel then hands TCP segments of several records. It never holds back the last one: for what is
        in the pipe, or in a record still open, a call without ``SPLICE_F_MORE`` always follows.
        """
        pipe, sink = self._pipe, self._sink_descriptor
        try:
            while pipe.held > kernel_tls.RECORD_MAX:
                whole = (pipe.held - 1) // kernel_tls.RECORD_MAX * kernel_tls.RECORD_MAX
                pipe.held -= os.splice(pipe.reader, sink, whole, None, None, _FLAGS | os.SPLICE_F_MORE)
        except BlockingIOError:
            self.writable = False
        else:
            super().drain()

    def finish(self) -> bool:
        """See ``Flow.finish``."""
        return finish_link(self._sink, self.record)


class PlainToLink(FromPlain, ToLink):
    """Plain socket to TLS socket."""

    __slots__ = ()


class LinkToPlain(FromLink, ToPlain):
    """TLS socket to plain socket."""

    __slots__ = ()


class LinkToLink(FromLink, ToLink):
    """TLS socket to TLS socket."""

    __slots__ = ()


def finish_link(sock: socket.socket, record: Record) -> bool:
    """Pass on the end of file to a TLS socket: close_notify, then FIN; False if there is no room for it yet.

    The daemon may die between any two of these lines, and its successor must not send a second close_notify:
    the peer would answer with a reset. So we first record the number of bytes ever written; if it has grown,
    close_notify is among them.
    """
    if not is_writable(sock):
        return False
    if record[STAGE] != Stage.FINISHING:
        record[MARK] = written(sock)
        record[STAGE] = Stage.FINISHING
    if written(sock) == record[MARK]:
        try:
            kernel_tls.send_alert(sock, kernel_tls.ALERT_CLOSE_NOTIFY)
        except BlockingIOError:
            return False
    shutdown_write(sock)
    return True


def make_pump(near: End, link: Link, entry: Entry) -> Pump:
    """The pump of a stream over kernel TLS.

    Raises:
        LocalError: no descriptors left for its pipes; the sockets stay open and are the caller's.
    """
    kinds = _kinds(near)
    up = make_pipe(kinds[0].pipe_size)
    try:
        down = make_pipe(kinds[1].pipe_size)
    except BaseException:
        up.close()
        raise
    return _pump(near, link, (up, down), entry)


def resume_pump(near: End, link: Link, pipe_ends: Sequence[int], entry: Entry) -> Pump:
    """The pump of a stream that another process has left; its pipes as ``Pump.descriptors`` lists them.

    Raises:
        LocalError: they are not pipes; all descriptors are still the caller's.
    """
    pump = _pump(near, link, retake(pipe_ends), entry)
    for flow in (pump.up, pump.down):
        flow.resume()
    return pump


def _kinds(near: End) -> tuple[type[PipeFlow], type[PipeFlow]]:
    """Those of the flows up and down."""
    return (PlainToLink, LinkToPlain) if isinstance(near, Plain) else (LinkToLink, LinkToLink)


def _pump(near: End, link: Link, pipes: tuple[Pipe, Pipe], entry: Entry) -> Pump:
    up, down = _kinds(near)
    return Pump(
        near,
        link,
        up((Side.NEAR, Side.LINK), near.sock, link.sock, pipes[0], entry.up),
        down((Side.LINK, Side.NEAR), link.sock, near.sock, pipes[1], entry.down),
        entry,
    )
