"""Streams over userspace TLS, for kernels without TLS: the same flows, with OpenSSL between them.

Reads and writes are large, because at 16 KiB a record the system calls would otherwise cost as much as the
cipher. All streams of a thread share its two buffers; what a full sink does not take is kept as bytes, and
nothing more is read until it is gone.
"""

import socket
from dataclasses import dataclass, field

from OpenSSL import SSL

from ..net.tcp import is_writable, shutdown_write
from ..transport.link import UserspaceLink, renegotiating, tls_failure, truncated
from ..transport.openssl import Buffer
from .flow import CALL_COST, TURN_BUDGET, Flow, Pump, Side
from .progress import Record, private_entry

_CHUNK = 2**17  # bytes per system call: eight full records
_RECORDS = TURN_BUDGET // CALL_COST  # at a time; the bytes of one system call may hold thousands
_SIZE = _CHUNK + 2**15  # of a buffer: a chunk, its records' overhead, and a record begun in the chunk before


@dataclass(frozen=True, slots=True)
class Scratch:
    """The buffers of one thread. Their content is only valid until the next stream's turn."""

    plaintext: Buffer = field(default_factory=lambda: Buffer(_SIZE))
    ciphertext: Buffer = field(default_factory=lambda: Buffer(_SIZE))


class _UserspaceFlow(Flow):
    """What both directions share: the store is what the sink has not taken."""

    __slots__ = ("_link", "_plain", "_records", "_scratch", "_store")

    def __init__(
        self,
        sides: tuple[Side, Side],
        plain: socket.socket,
        link: UserspaceLink,
        scratch: Scratch,
        record: Record,
    ) -> None:
        super().__init__(*sides, record)
        self._plain = plain
        self._link = link
        self._records = link.records
        self._scratch = scratch
        self._store = memoryview(b"")

    @property
    def holds(self) -> bool:
        """See ``Flow.holds``."""
        return len(self._store) > 0

    @property
    def has_room(self) -> bool:
        """See ``Flow.has_room``.

        False while the sink is full: the content of the thread's buffer must go to the sink, or be kept, at
        once.
        """
        return not self._store and self.writable

    def drain(self) -> None:
        """See ``Flow.drain``."""
        sink = self._plain if self.sink is Side.PLAIN else self._link.sock
        try:
            while self._store:
                self._store = self._store[sink.send(self._store) :]
        except BlockingIOError:
            self.writable = False
            if not self._store.readonly:
                self._store = memoryview(bytes(self._store))  # the buffer is the next stream's


class UpFlow(_UserspaceFlow):
    """Plain socket to TLS."""

    __slots__ = ()

    def fill(self) -> int:
        """See ``Flow.fill``."""
        plaintext, ciphertext = self._scratch.plaintext, self._scratch.ciphertext
        try:
            taken = self._plain.recv_into(plaintext.view, _CHUNK)
        except BlockingIOError:
            self.readable = False
            return 0
        if taken == 0:
            self.end()
            return 0
        try:
            self._store = ciphertext.view[: self._records.encrypt(plaintext, taken, ciphertext)]
        except SSL.Error as error:
            raise tls_failure(error) from error
        return taken

    def finish(self) -> bool:
        """See ``Flow.finish``."""
        if not is_writable(self._link.sock):
            return False
        self._link.send_close_notify()
        shutdown_write(self._link.sock)
        return True


class DownFlow(_UserspaceFlow):
    """TLS to plain socket."""

    __slots__ = ()

    def fill(self) -> int:
        """See ``Flow.fill``.

        OpenSSL first: epoll does not know what is inside it.
        """
        self.calls = 1
        if self._records.more and ((total := self._decrypt()) or self.ended):
            return total
        ciphertext = self._scratch.ciphertext
        try:
            taken = self._link.sock.recv_into(ciphertext.view, _CHUNK)
        except BlockingIOError:
            self.readable = False
            return 0
        if taken == 0:
            raise truncated()
        self._records.feed(ciphertext, taken)
        return self._decrypt()

    def _decrypt(self) -> int:
        plaintext = self._scratch.plaintext
        try:
            total, self.calls = self._records.decrypt_some(plaintext, _RECORDS)
        except SSL.ZeroReturnError:
            self.end()
            return 0
        except SSL.Error as error:
            raise tls_failure(error) from error
        if self._records.replies(self._scratch.ciphertext):
            raise renegotiating()
        self._store = plaintext.view[:total]
        return total

    def finish(self) -> bool:
        """See ``Flow.finish``."""
        shutdown_write(self._plain)
        return True


def make_pump(plain: socket.socket, link: UserspaceLink, scratch: Scratch) -> Pump:
    """The pump of a stream over userspace TLS; all streams of one thread share ``scratch``."""
    entry = private_entry()  # a stream whose keys are in OpenSSL cannot outlive the process
    up = UpFlow((Side.PLAIN, Side.LINK), plain, link, scratch, entry.up)
    down = DownFlow((Side.LINK, Side.PLAIN), plain, link, scratch, entry.down)
    return Pump(plain, link, up, down, entry)
