"""Pipes between two splices: what they hold, how large they are, and how large all of them may grow.

Bytes wait in pipes rather than in buffers of ours because a pipe can outlive the process.
"""

import errno
import fcntl
import os
import stat
import struct
import termios
import threading
from collections.abc import Sequence

from ..errors import LocalError, reason

PAGE = os.sysconf("SC_PAGESIZE")
RECORD_SLOTS = 17  # pipe slots one record may take: MAX_SKB_FRAGS (include/linux/skbuff.h)
RECORDS_SIZE = 2**17  # bytes: room for at least one record, however many pages it is spread over
_BUSY_SIZE = 2**19  # bytes, for a pipe that was found full
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
        records: how many of a link have been put in since it was last empty; whoever does that counts them.
    """

    __slots__ = ("_grown", "_may_grow", "held", "reader", "records", "slots", "writer")

    def __init__(self, reader: int, writer: int) -> None:
        """Wrap the two ends of a pipe, new or not; bytes already inside count as held."""
        self.reader = reader
        self.writer = writer
        self.slots = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) // PAGE
        self.held: int
        (self.held,) = _INT.unpack(fcntl.ioctl(reader, termios.FIONREAD, bytes(_INT.size)))
        # Those that another process has left cannot be counted: the pipe counts as full until it is empty.
        self.records = self.slots
        # Another process may have made it larger.
        self._grown = max(0, self.slots - RECORDS_SIZE // PAGE)
        _allowance.give_back(-self._grown)
        self._may_grow = True

    @property
    def room(self) -> int:
        """Records that are sure to fit; none into a pipe that another process has left, until it is empty."""
        return self.slots // RECORD_SLOTS - self.records

    def grow(self) -> None:
        """Make it as large as a busy stream needs, if the kernel and our other pipes leave room for that."""
        more = _BUSY_SIZE // PAGE - self.slots
        if more <= 0 or not self._may_grow or not _allowance.take(more):
            return
        try:
            self.slots = fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, _BUSY_SIZE) // PAGE
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


def retake(ends: Sequence[int]) -> tuple[Pipe, Pipe]:
    """The two pipes that another process has left: reader and writer of each.

    Raises:
        LocalError: they are no pipes; all descriptors are still the caller's.
    """
    for one in (ends[:2], ends[2:]):
        _check(*one)
    return Pipe(*ends[:2]), Pipe(*ends[2:])


def _check(reader: int, writer: int) -> None:
    first, second = os.fstat(reader), os.fstat(writer)
    modes = [fcntl.fcntl(end, fcntl.F_GETFL) & os.O_ACCMODE for end in (reader, writer)]
    one_pipe = stat.S_ISFIFO(first.st_mode) and os.path.samestat(first, second)
    if not one_pipe or modes != [os.O_RDONLY, os.O_WRONLY]:
        raise LocalError("what should be a pipe is none")
