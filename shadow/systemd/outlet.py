"""Where the log goes: a thread of its own, the only one that waits for the log's reader.

If a terminal is stopped, nobody reads a pipe, or journald is busy or dead, write(2) and sendto(2) wait;
nothing that carries bytes or answers peers may wait with them. So lines go into a queue of limited length.
Lines that do not fit are lost and counted, and the count is logged as soon as the reader takes lines again.
"""

import collections
import contextlib
import errno
import fcntl
import logging
import math
import os
import select
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TextIO

JOURNALD = Path("/run/systemd/journal/socket")
_LINES_MAX = 4096
_BYTES_MAX = 2**22
_LAST_WORDS = 1.0  # seconds that the process waits at its end for the last lines to be taken
_SNDBUF = 2**23  # bytes, as much as sd_journal_send(3) asks for; the kernel gives what it allows
_TOO_LONG = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Sink(ABC):
    """Takes lines, one at a time, in the log's own thread."""

    @abstractmethod
    def write(self, line: bytes) -> None:
        """Write one; may wait for as long as it likes, but must not hold the interpreter's lock."""

    @abstractmethod
    def close(self) -> None:
        """There will be no more."""


class Gate(Protocol):
    """Decides how often the same thing may be logged; times are a monotonic clock's."""

    def admit(self, record: logging.LogRecord, now: float) -> bool:
        """Whether a record may be written; if not, it is held back."""

    def due(self, now: float) -> Sequence[logging.LogRecord]:
        """What to log now about those held back."""

    def patience(self, now: float) -> float | None:
        """Seconds until something is due; None if nothing is held back."""


class Outlet(logging.Handler):
    """Takes lines, and never makes anybody wait.

    Attributes:
        lost: total number of lines lost because nobody took them.
    """

    def __init__(
        self,
        sink: Sink,
        encode: Callable[[logging.LogRecord], bytes],
        gate: Gate,
        tell_lost: Callable[[int], logging.LogRecord],
    ) -> None:
        """Start the thread.

        Args:
            sink: where lines go.
            encode: turns a record into the bytes to write.
            gate: decides what is written at all.
            tell_lost: makes a record that says how many lines were lost.
        """
        super().__init__()
        self.lost = 0
        self._sink = sink
        self._encode = encode
        self._gate = gate
        self._tell_lost = tell_lost
        self._lines: collections.deque[bytes] = collections.deque()
        self._bytes = 0
        self._untold = 0
        self._busy = self._closed = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record, in any thread."""
        with self._condition:
            if self._gate.admit(record, time.monotonic()):
                self._put(record)
            else:
                self._condition.notify_all()  # it may be due

    def flush(self) -> None:
        """Wait until everything has been taken, but not for long."""
        with self._condition:
            self._condition.wait_for(lambda: not (self._lines or self._busy), _LAST_WORDS)

    def close(self) -> None:
        """Log what was held back; end the thread when everything has been taken."""
        with self._condition:
            for record in self._gate.due(math.inf):
                self._put(record)
            self._closed = True
            self._condition.notify_all()
        self.flush()
        super().close()

    def _put(self, record: logging.LogRecord) -> None:
        try:
            line = self._encode(record)
        except Exception:  # noqa: BLE001 - like every handler of the standard library: logging never fails
            line = b""
        full = len(self._lines) >= _LINES_MAX or self._bytes + len(line) > _BYTES_MAX
        if full or not line:
            self._lose()
            return
        self._lines.append(line)
        self._bytes += len(line)
        self._condition.notify_all()

    def _lose(self) -> None:
        self.lost += 1
        self._untold += 1

    # Everything below runs in the thread.

    def _run(self) -> None:
        while (line := self._next()) is not None:
            try:
                self._sink.write(line)
            except Exception:  # noqa: BLE001 - a log that is broken: nobody could be told
                with self._condition:
                    self._lose()
            else:
                self._written()
        self._sink.close()

    def _next(self) -> bytes | None:
        """Wait for the next line; None: there will be none."""
        with self._condition:
            self._busy = False
            while True:
                now = time.monotonic()
                for record in self._gate.due(now):
                    self._put(record)
                if self._lines:
                    self._busy = True
                    line = self._lines.popleft()
                    self._bytes -= len(line)
                    return line
                self._condition.notify_all()
                if self._closed:
                    return None
                self._condition.wait(self._gate.patience(now))

    def _written(self) -> None:
        """A line was written: lines are taken again, and the lost ones come after those that wait now."""
        with self._condition:
            if self._untold:
                # Even past the limit, which the queue may be at; else the number itself would be lost.
                line = self._encode(self._tell_lost(self._untold))
                self._untold = 0
                self._lines.append(line)
                self._bytes += len(line)


class Terminal(Sink):
    """A file, a pipe or a terminal, even if somebody has made it non-blocking."""

    def __init__(self, stream: TextIO | None) -> None:
        """Without a stream (None) every line is lost and counted."""
        self._stream = stream
        self._descriptor: int | None = -1
        if stream is not None:
            try:
                self._descriptor = stream.fileno()
            except (OSError, ValueError):  # not a file of the kernel's
                self._descriptor = None

    def write(self, line: bytes) -> None:
        """See ``Sink.write``."""
        if self._descriptor is None:
            print(line.decode(), end="", file=self._stream, flush=True)
            return
        view = memoryview(line)
        while view:
            # Not through the stream: others who write to it at the end need its lock.
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                ready = select.poll()
                ready.register(self._descriptor, select.POLLOUT)
                ready.poll()

    def close(self) -> None:
        """The stream is its owner's."""


class Journald(Sink):
    """journald, by the protocol that https://systemd.io/JOURNAL_NATIVE_PROTOCOL/ describes."""

    def __init__(self, path: Path) -> None:
        """``path`` of its socket."""
        self._address = os.fspath(path)
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SNDBUF)

    def write(self, line: bytes) -> None:
        """See ``Sink.write``."""
        try:
            # By path, each time: after a restart of journald a new socket listens there.
            self._sock.sendto(line, self._address)
        except OSError as error:
            if error.errno not in _TOO_LONG:
                raise
            _send_sealed(self._sock, line, self._address)

    def close(self) -> None:
        """See ``Sink.close``."""
        self._sock.close()


def _send_sealed(sock: socket.socket, line: bytes, address: str) -> None:
    """Send a line that is too long for a datagram as a sealed file, which nobody can change any more."""
    descriptor = os.memfd_create("shadow-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        file.write(line)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", descriptor))
        sock.sendmsg([], [rights], 0, address)


def native(fields: Mapping[str, str]) -> bytes:
    """Fields in journald's format: ``NAME=value``, or with the length before a value of several lines."""
    parts = []
    for name, value in fields.items():
        data = value.encode(errors="replace")
        if b"\n" in data:
            parts.append(b"%s\n%s%s\n" % (name.encode(), len(data).to_bytes(8, "little"), data))
        else:
            parts.append(b"%s=%s\n" % (name.encode(), data))
    return b"".join(parts)
