"""Streams over userspace TLS: the same flows, with OpenSSL between them.

For kernels without TLS, and for the cipher suites that a kernel lacks: the other end may be a plain socket, a
link like this one, or one that the kernel encrypts.

Reads and writes are large, because at 16 KiB a record the system calls would otherwise cost as much as the
cipher. All streams of a thread share its two buffers; what a full sink does not take is kept as bytes, and
nothing more is read until it is gone.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from OpenSSL import SSL

from ..net.tcp import is_writable, shutdown_write
from ..transport.link import KernelLink, Link, UserspaceLink, renegotiating, tls_failure, truncated
from ..transport.openssl import Buffer
from .ends import End, Plain, Side
from .flow import CALL_COST, TURN_BUDGET, Flow, Pump
from .pipes import make_pipe
from .progress import Record, private_entry
from .splice import FromLink as FromKernel
from .splice import finish_link as finish_kernel_link

_CHUNK = 2**17  # bytes per system call: eight full records
_RECORDS = TURN_BUDGET // CALL_COST  # at a time; the bytes of one system call may hold thousands
_SIZE = _CHUNK + 2**15  # of a buffer: a chunk, its records' overhead, and a record begun in the chunk before


@dataclass(frozen=True, slots=True)
class Scratch:
    """The buffers of one thread. Their content is only valid until the next stream's turn."""

    plaintext: Buffer = field(default_factory=lambda: Buffer(_SIZE))
    ciphertext: Buffer = field(default_factory=lambda: Buffer(_SIZE))


class _MemoryFlow(Flow):
    """What all flows but one share: the store is what the sink has not taken."""

    __slots__ = ("_scratch", "_sink", "_source", "_store")
    _source: End
    _sink: End

    def __init__(
        self, sides: tuple[Side, Side], source: End, sink: End, scratch: Scratch, record: Record
    ) -> None:
        super().__init__(*sides, record)
        self._source = source
        self._sink = sink
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

    def _seal(self, size: int) -> memoryview:
        """What goes to the sink for the plaintext in the thread's buffer: most sinks take it as it is."""
        return self._scratch.plaintext.view[:size]

    def drain(self) -> None:
        """See ``Flow.drain``."""
        self._store = _send(self._sink.sock, self._store)
        self.writable = not self._store


class _FromPlain(_MemoryFlow):
    """The half that takes from a plain socket."""

    __slots__ = ()

    def fill(self) -> int:
        """See ``Flow.fill``."""
        try:
            taken = self._source.sock.recv_into(self._scratch.plaintext.view, _CHUNK)
        except BlockingIOError:
            self.readable = False
            return 0
        if taken == 0:
            self.end()
            return 0
        self._store = self._seal(taken)
        return taken


class _FromLink(_MemoryFlow):
    """The half that takes from a link that OpenSSL encrypts."""

    __slots__ = ()
    _source: UserspaceLink

    def fill(self) -> int:
        """See ``Flow.fill``.

        OpenSSL first: epoll does not know what is inside it.
        """
        self.calls = 1
        records = self._source.records
        if records.more and ((total := self._decrypt()) or self.ended):
            return total
        ciphertext = self._scratch.ciphertext
        try:
            taken = self._source.sock.recv_into(ciphertext.view, _CHUNK)
        except BlockingIOError:
            self.readable = False
            return 0
        if taken == 0:
            raise truncated()
        records.feed(ciphertext, taken)
        return self._decrypt()

    def _decrypt(self) -> int:
        records = self._source.records
        try:
            total, self.calls = records.decrypt_some(self._scratch.plaintext, _RECORDS)
        except SSL.ZeroReturnError:
            self.end()
            return 0
        except SSL.Error as error:
            raise tls_failure(error) from error
        if records.replies(self._scratch.ciphertext):
            raise renegotiating()
        self._store = self._seal(total)
        return total


class _ToPlain(_MemoryFlow):
    """The half that gives to a plain socket."""

    __slots__ = ()

    def finish(self) -> bool:
        """See ``Flow.finish``."""
        shutdown_write(self._sink.sock)
        return True


class _ToLink(_MemoryFlow):
    """The half that gives to a link that OpenSSL encrypts."""

    __slots__ = ()
    _sink: UserspaceLink

    def _seal(self, size: int) -> memoryview:
        return _encrypt(self._sink, self._scratch, size)

    def finish(self) -> bool:
        """See ``Flow.finish``."""
        return _finish_link(self._sink)


class _ToKernel(_MemoryFlow):
    """The half that gives to a link that the kernel encrypts."""

    __slots__ = ()

    def finish(self) -> bool:
        """See ``Flow.finish``."""
        return finish_kernel_link(self._sink.sock, self.record)


class PlainToLink(_FromPlain, _ToLink):
    """Plain socket to TLS."""

    __slots__ = ()


class LinkToPlain(_FromLink, _ToPlain):
    """TLS to plain socket."""

    __slots__ = ()


class LinkToLink(_FromLink, _ToLink):
    """TLS to TLS."""

    __slots__ = ()


class LinkToKernel(_FromLink, _ToKernel):
    """TLS to kernel TLS."""

    __slots__ = ()


class KernelToLink(FromKernel):
    """Kernel TLS to TLS.

    By way of a pipe: splice(2) takes one record at a time, while recv(2) may take thousands of one byte.
    """

    __slots__ = ("_link", "_scratch", "_store")

    def __init__(
        self,
        sides: tuple[Side, Side],
        source: End,
        sink: UserspaceLink,
        scratch: Scratch,
        record: Record,
    ) -> None:
        """Make its pipe, too.

        Raises:
            LocalError: no descriptors left for that.
        """
        super().__init__(sides, source.sock, sink.sock, make_pipe(self.pipe_size), record)
        self._link = sink
        self._scratch = scratch
        self._store = memoryview(b"")

    @property
    def holds(self) -> bool:
        """See ``Flow.holds``."""
        return len(self._store) > 0 or super().holds

    def drain(self) -> None:
        """See ``Flow.drain``."""
        pipe = self._pipe
        while self.writable and self.holds:
            if not self._store:
                taken = os.readv(pipe.reader, [self._scratch.plaintext.view[:_CHUNK]])
                pipe.held -= taken
                self._store = _encrypt(self._link, self._scratch, taken)
            self._store = _send(self._sink, self._store)
            self.writable = not self._store

    def finish(self) -> bool:
        """See ``Flow.finish``."""
        return _finish_link(self._link)


def _encrypt(link: UserspaceLink, scratch: Scratch, size: int) -> memoryview:
    """Records of the first ``size`` bytes of plaintext, in the thread's other buffer."""
    try:
        return scratch.ciphertext.view[: link.records.encrypt(scratch.plaintext, size, scratch.ciphertext)]
    except SSL.Error as error:
        raise tls_failure(error) from error


def _send(sock: socket.socket, store: memoryview) -> memoryview:
    """Give a socket as much as it takes; return the rest, in memory that is not the thread's."""
    try:
        while store:
            store = store[sock.send(store) :]
    except BlockingIOError:
        return store if store.readonly else memoryview(bytes(store))
    return store


def _finish_link(link: UserspaceLink) -> bool:
    """Pass on the end of file: close_notify, then FIN; False if there is no room for it yet."""
    if not is_writable(link.sock):
        return False
    link.send_close_notify()
    shutdown_write(link.sock)
    return True


_KINDS: dict[tuple[type, type], Callable[..., Flow]] = {
    (Plain, UserspaceLink): PlainToLink,
    (UserspaceLink, Plain): LinkToPlain,
    (UserspaceLink, UserspaceLink): LinkToLink,
    (UserspaceLink, KernelLink): LinkToKernel,
    (KernelLink, UserspaceLink): KernelToLink,
}


def make_pump(near: End, link: Link, scratch: Scratch) -> Pump:
    """The pump of a stream of which at least one end is encrypted by OpenSSL.

    Args:
        near: one end.
        link: the other.
        scratch: what all streams of one thread share.

    Raises:
        LocalError: no descriptors left; the sockets stay open and are the caller's.
    """
    entry = private_entry()  # a stream whose keys are in OpenSSL cannot outlive the process
    make_up, make_down = _KINDS[type(near), type(link)], _KINDS[type(link), type(near)]
    up = make_up((Side.NEAR, Side.LINK), near, link, scratch, entry.up)
    down = make_down((Side.LINK, Side.NEAR), link, near, scratch, entry.down)
    return Pump(near, link, up, down, entry)
