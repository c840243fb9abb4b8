"""Streams over userspace TLS, for kernels without TLS: the same flows, with OpenSSL between them.

Reads and writes are large, since at 16 KiB a record the system calls would otherwise cost as much as the
cipher. What a full sink does not take is kept as bytes; nothing more is read until it is gone.
"""

import socket

from OpenSSL import SSL

from .flow import Flow, Pump, Side, is_writable, shutdown_write
from .ledger import Record, private_entry
from .link import UserspaceLink, tls_failure, truncated

_CHUNK = 2**17  # bytes per system call: eight full records
_RECORD = 2**14  # bytes OpenSSL returns at most at once


class UpFlow(Flow):
    """Plain socket to TLS."""

    __slots__ = ("_link", "_plain", "_scratch", "_store")

    def __init__(self, plain: socket.socket, link: UserspaceLink, scratch: bytearray, record: Record) -> None:
        super().__init__(Side.PLAIN, Side.LINK, record)
        self._plain = plain
        self._link = link
        self._scratch = memoryview(scratch)
        self._store = memoryview(b"")

    @property
    def holds(self) -> bool:
        """See ``Flow.holds``."""
        return len(self._store) > 0

    @property
    def has_room(self) -> bool:
        """See ``Flow.has_room``."""
        return not self._store

    def fill(self) -> int:
        """See ``Flow.fill``."""
        try:
            taken = self._plain.recv_into(self._scratch)
        except BlockingIOError:
            self.readable = False
            return 0
        if taken == 0:
            self.end()
        self._encrypt(self._scratch[:taken])
        return taken

    def _encrypt(self, plaintext: memoryview) -> None:
        sent = 0
        try:
            while sent < len(plaintext):
                sent += self._link.ssl.send(plaintext[sent:])
        except SSL.Error as error:
            raise tls_failure(error) from error
        self._store = memoryview(self._link.pending_ciphertext())

    def drain(self) -> None:
        """See ``Flow.drain``."""
        try:
            while self._store:
                self._store = self._store[self._link.sock.send(self._store) :]
        except BlockingIOError:
            self.writable = False

    def finish(self) -> bool:
        """See ``Flow.finish``."""
        if not is_writable(self._link.sock):
            return False
        self._link.send_close_notify()
        shutdown_write(self._link.sock)
        return True


class DownFlow(Flow):
    """TLS to plain socket."""

    __slots__ = ("_link", "_plain", "_scratch", "_store")

    def __init__(self, plain: socket.socket, link: UserspaceLink, scratch: bytearray, record: Record) -> None:
        super().__init__(Side.LINK, Side.PLAIN, record)
        self._plain = plain
        self._link = link
        self._scratch = memoryview(scratch)
        self._store: list[memoryview] = []

    @property
    def holds(self) -> bool:
        """See ``Flow.holds``."""
        return bool(self._store)

    @property
    def has_room(self) -> bool:
        """See ``Flow.has_room``."""
        return not self._store

    def fill(self) -> int:
        """See ``Flow.fill``.

        OpenSSL first: what came behind the last frame is still inside it, and epoll knows nothing of that.
        """
        total = self._decrypt()
        if total or self.ended:
            return total
        try:
            taken = self._link.sock.recv_into(self._scratch)
        except BlockingIOError:
            self.readable = False
            return 0
        if taken == 0:
            raise truncated()
        self._link.ssl.bio_write(self._scratch[:taken])
        return self._decrypt()

    def _decrypt(self) -> int:
        total = 0
        try:
            while True:
                plaintext = self._link.ssl.recv(_RECORD)
                total += len(plaintext)
                self._store.append(memoryview(plaintext))
        except SSL.WantReadError:
            self._link.forbid_replies()
        except SSL.ZeroReturnError:
            self.end()
        except SSL.Error as error:
            raise tls_failure(error) from error
        return total

    def drain(self) -> None:
        """See ``Flow.drain``."""
        try:
            while self._store:
                self._gave(self._plain.sendmsg(self._store))
        except BlockingIOError:
            self.writable = False

    def _gave(self, count: int) -> None:
        while self._store and count >= len(self._store[0]):
            count -= len(self._store.pop(0))
        if count:
            self._store[0] = self._store[0][count:]

    def finish(self) -> bool:
        """See ``Flow.finish``."""
        shutdown_write(self._plain)
        return True


def make_pump(plain: socket.socket, link: UserspaceLink, scratch: bytearray) -> Pump:
    """The pump of a stream over userspace TLS; ``scratch`` is shared by all streams of one thread."""
    entry = private_entry()  # a stream whose keys are in OpenSSL cannot outlive the process
    up, down = UpFlow(plain, link, scratch, entry.up), DownFlow(plain, link, scratch, entry.down)
    return Pump(plain, link, up, down, entry)


def make_scratch() -> bytearray:
    """A buffer for one thread."""
    return bytearray(_CHUNK)
