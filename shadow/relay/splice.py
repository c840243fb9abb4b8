"""Streams over kernel TLS: splice(2) from socket to pipe to socket, no byte ever in this process.

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

Bytes wait in pipes rather than in buffers of ours because a pipe can outlive the process.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import termios
import threading
from collections.abc import Sequence

from ..errors import LocalError, reason
from ..net.tcp import is_writable, shutdown_write, written
from ..transport import ktls as kernel_tls
from ..transport.link import Link, check_close_notify, truncated
from .flow import Flow, Pump, Side
from .progress import MARK, STAGE, Entry, Record, Stage

PAGE = os.sysconf("SC_PAGESIZE")
RECORD_SLOTS = 17  # pipe slots one record may take: MAX_SKB_FRAGS (include/linux/skbuff.h)
_DOWN_PIPE = 2**17  # bytes: room for at least one record, however many pages it is spread over
_BUSY_PIPE = 2**19  # bytes, for a pipe that was found full
_CHUNK = 2**18  # bytes asked of a plain socket, which gives what it has, or what the pipe has slots for
_FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
_INT = struct.Struct("i")


class _Allowance:
    """Pages by which the pipes of this process may grow.

    An unprivileged user gets pipes of two slots once all its pipes together have more than
    ``fs.pipe-user-pages-soft`` pages (pipe(7)). Half of that is reserved for future streams.
    """

    def __init__(self, pages: int) -> None:
        self._pages = pages
        self._lock = threading.Lock()

    def take(self, pages: int) -> bool:
        with self._lock:
            if pages > self._pages:
                return False
            self._pages -= pages
        return True

    def give_back(self, pages: int) -> None:
        with self._lock:
            self._pages += pages


# Not read from /proc/sys, which the units hide (ProcSubset=pid): 16384 is the kernel's default.
_allowance = _Allowance(16384 // 2)


class Pipe:
    """A pipe between two splices.

    Attributes:
        reader: descriptor to splice from.
        writer: descriptor to splice to.
        held: bytes inside.
        slots: how many buffers it has, each of a page or a fragment of one.
    """

    __slots__ = ("_grown", "_may_grow", "held", "reader", "slots", "writer")

    def __init__(self, reader: int, writer: int) -> None:
        """Wrap the two ends of a pipe, new or not; bytes already inside count as held."""
        self.reader = reader
        self.writer = writer
        self.slots = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) // PAGE
        self.held: int
        (self.held,) = _INT.unpack(fcntl.ioctl(reader, termios.FIONREAD, bytes(_INT.size)))
        # Another process may have made it larger.
        self._grown = max(0, self.slots - _DOWN_PIPE // PAGE)
        _allowance.give_back(-self._grown)
        self._may_grow = True

    def grow(self) -> None:
        """Make it as large as a busy stream needs, if the kernel and our other pipes leave room for that."""
        more = _BUSY_PIPE // PAGE - self.slots
        if more <= 0 or not self._may_grow or not _allowance.take(more):
            return
        try:
            self.slots = fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, _BUSY_PIPE) // PAGE
            self._grown += more
        except OSError:  # EPERM: other processes of the user have pipes, too; the pipe works as it is
            _allowance.give_back(more)
            self._may_grow = False

    def close(self) -> None:
        """Close both ends."""
        os.close(self.reader)
        os.close(self.writer)
        _allowance.give_back(self._grown)


def make_pipe(size: int | None = None) -> Pipe:
    """A new pipe; of ``size`` bytes if the kernel grants them.

    Raises:
        LocalError: no descriptors left.
    """
    try:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise LocalError(f"no pipe for a stream: {reason(error)}") from error
    if size is not None:
        # Beyond fs.pipe-user-pages-soft an unprivileged process gets smaller pipes, and EPERM here
        # (pipe(7)). What counts is the size we end up with.
        try:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size)
        except OSError as error:
            if error.errno != errno.EPERM:
                os.close(reader)
                os.close(writer)
                raise LocalError(f"no pipe for a stream: {reason(error)}") from error
    return Pipe(reader, writer)


class _SpliceFlow(Flow):
    """What both directions share: the pipe, and draining it into the sink."""

    __slots__ = ("_link", "_pipe", "_plain", "_sink_descriptor", "_source_descriptor")

    def __init__(
        self, source: Side, sink: Side, plain: socket.socket, link: Link, pipe: Pipe, record: Record
    ) -> None:
        super().__init__(source, sink, record)
        self._plain = plain
        self._link = link
        self._pipe = pipe
        descriptors = {Side.PLAIN: plain.fileno(), Side.LINK: link.sock.fileno()}
        self._source_descriptor, self._sink_descriptor = descriptors[source], descriptors[sink]

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


class UpFlow(_SpliceFlow):
    """Plain socket to TLS socket."""

    __slots__ = ()

    def __init__(self, plain: socket.socket, link: Link, pipe: Pipe, record: Record) -> None:
        super().__init__(Side.PLAIN, Side.LINK, plain, link, pipe, record)

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
            byte = self._plain.recv(1)
        except BlockingIOError:
            self.readable = False
            return 0
        if not byte:
            self.end()
            return 0
        self._pipe.held += os.write(self._pipe.writer, byte)
        return 1

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
        """See ``Flow.finish``.

        The daemon may die between any two of these lines, and its successor must not send a second
        close_notify: the peer would answer with a reset. So we first record the number of bytes ever written;
        if it has grown, close_notify is among them.
        """
        sock, record = self._link.sock, self.record
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


class DownFlow(_SpliceFlow):
    """TLS socket to plain socket."""

    __slots__ = ("_records",)

    def __init__(self, plain: socket.socket, link: Link, pipe: Pipe, record: Record) -> None:
        super().__init__(Side.LINK, Side.PLAIN, plain, link, pipe, record)
        # Records spliced since the pipe was last empty. We cannot count those that another process has left:
        # then the pipe counts as full until it is empty.
        self._records = pipe.slots

    @property
    def has_room(self) -> bool:
        """See ``Flow.has_room``."""
        return self._pipe.held == 0 or self._room > 0

    @property
    def _room(self) -> int:
        """Records that are sure to fit; none into a pipe that another process has left, until it is empty."""
        return self._pipe.slots // RECORD_SLOTS - self._records

    def fill(self) -> int:
        """See ``Flow.fill``: as many records as are sure to fit into the pipe."""
        pipe, source, request = self._pipe, self._source_descriptor, self._request()
        if pipe.held == 0:
            self._records = 0
        room = max(1, self._room)  # a pipe too small for one takes a part
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
            self._records += 1
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
        check_close_notify(*kernel_tls.read_control_record(self._link.sock, socket.MSG_PEEK))
        self.end()
        kernel_tls.read_control_record(self._link.sock)

    def resume(self) -> None:
        """See ``Flow.resume``."""
        if self.ended:
            with contextlib.suppress(OSError):  # that process may or may not have taken it from the queue
                kernel_tls.read_control_record(self._link.sock)

    def _nothing_came(self) -> None:
        """Tell the end from a record of length zero; splice returns 0 for both.

        Peek: every record, even an empty one, comes with its type as ancillary data, the end of the
        connection with none. POLLRDHUP would not do: it is also set while records are queued before the FIN.
        """
        try:
            data, ancillary, _flags, _address = self._link.sock.recvmsg(
                1, socket.CMSG_SPACE(1), socket.MSG_PEEK | socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            self.readable = False
            return
        if not data and not ancillary:
            raise truncated()

    def finish(self) -> bool:
        """See ``Flow.finish``."""
        shutdown_write(self._plain)
        return True


def make_pump(plain: socket.socket, link: Link, entry: Entry) -> Pump:
    """The pump of a stream over kernel TLS.

    Raises:
        LocalError: no descriptors left for its pipes; the sockets stay open and are the caller's.
    """
    up = make_pipe()
    try:
        down = make_pipe(_DOWN_PIPE)
    except BaseException:
        up.close()
        raise
    return _pump(plain, link, up, down, entry)


def resume_pump(plain: socket.socket, link: Link, pipe_ends: Sequence[int], entry: Entry) -> Pump:
    """The pump of a stream that another process has left; its pipes as ``Pump.descriptors`` lists them.

    Raises:
        LocalError: they are not pipes; all descriptors are still the caller's.
    """
    for ends in (pipe_ends[:2], pipe_ends[2:]):
        _check_pipe(*ends)
    pump = _pump(plain, link, Pipe(*pipe_ends[:2]), Pipe(*pipe_ends[2:]), entry)
    pump.down.resume()
    return pump


def _check_pipe(reader: int, writer: int) -> None:
    first, second = os.fstat(reader), os.fstat(writer)
    modes = [fcntl.fcntl(end, fcntl.F_GETFL) & os.O_ACCMODE for end in (reader, writer)]
    one_pipe = stat.S_ISFIFO(first.st_mode) and os.path.samestat(first, second)
    if not one_pipe or modes != [os.O_RDONLY, os.O_WRONLY]:
        raise LocalError("what should be a pipe is none")


def _pump(plain: socket.socket, link: Link, up: Pipe, down: Pipe, entry: Entry) -> Pump:
    flows = UpFlow(plain, link, up, entry.up), DownFlow(plain, link, down, entry.down)
    return Pump(plain, link, *flows, entry)
