"""A live TLS connection after its handshake: plaintext in and out of a non-blocking socket.

There are two kinds behind one interface: ``KernelLink`` (the kernel encrypts, the socket speaks plaintext to
us) and ``UserspaceLink`` (OpenSSL encrypts between two memory BIOs). Frames are read and written through it;
the relay takes it over once a stream has started.

Reading follows the rules of RFC 5246, section 7.2.1: only close_notify ends a connection properly. A FIN
without it is a truncation, and reads as ``ConnectionAbortedError``, never as an end of file.
"""

import base64
import contextlib
import errno
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from ..net.address import describe
from ..net.lines import Line
from ..net.tcp import check_connection, reset
from ..pki.chains import openssl_reason
from . import ktls as kernel_tls
from .openssl import Buffer, Records

_CHUNK = 2**16  # bytes taken from a socket at once: four full records


class _Memory(threading.local):
    """Buffers of each thread, for data that no call keeps beyond its own return."""

    def __init__(self) -> None:
        self.plaintext = Buffer(_CHUNK)
        self.ciphertext = Buffer(_CHUNK)


_memory = _Memory()


class Link(ABC):
    """One TLS connection.

    Attributes:
        sock: the TCP socket, non-blocking.
        suite: the cipher suite, by OpenSSL's name.
        chain: the peer's certificate, then those that vouch for it, up to our CA's, as verified.
        in_kernel: True if the kernel encrypts.
        line: what it shares with other connections to the same peer, if known.
    """

    __slots__ = ("_unsent", "chain", "line", "sock", "suite")
    in_kernel: bool

    def __init__(self, sock: socket.socket, suite: str, chain: Sequence[x509.Certificate]) -> None:
        self.sock = sock
        self.suite = suite
        self.chain = chain
        self.line: Line | None = None
        self._unsent = b""

    def __repr__(self) -> str:
        unsent = f", {self.unsent} bytes unsent" if self._unsent else ""
        try:
            peer = f"with {describe(self.sock.getpeername())}"
        except OSError:
            peer = "that is gone"
        return f"<{type(self).__name__} {peer}{unsent}>"

    @property
    def certificate(self) -> x509.Certificate:
        """The peer's own."""
        return self.chain[0]

    @abstractmethod
    def read(self, size: int) -> bytes:
        """At most ``size`` bytes of plaintext; ``b""`` once the peer has sent close_notify.

        Raises:
            BlockingIOError: nothing there yet.
            ConnectionAbortedError: FIN without close_notify, a fatal alert, or an invalid record.
            OSError: the connection is gone.
        """

    @abstractmethod
    def _encrypt(self, data: bytes) -> bytes:
        """What to put into the socket so that ``data`` arrives."""

    @abstractmethod
    def send_close_notify(self) -> None:
        """Tell the peer that nothing more will come; best effort, nothing is raised."""

    @property
    def flushed(self) -> bool:
        """True if the socket has taken everything written."""
        return not self._unsent

    @property
    def unsent(self) -> int:
        """Bytes written that the socket has not taken yet."""
        return len(self._unsent)

    def write(self, data: bytes) -> None:
        """Send ``data``; what the socket does not take now waits for ``flush``.

        Raises:
            OSError: the connection is gone.
        """
        self._unsent += self._encrypt(data)
        self.flush()

    def flush(self) -> None:
        """Send what is waiting; see ``flushed`` for whether all of it went.

        Raises:
            OSError: the connection is gone.
        """
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]

    def close(self) -> None:
        """End the connection properly: close_notify, then close."""
        if not self._unsent:  # after half a record it would only be noise
            self.send_close_notify()
        self.sock.close()

    def abort(self) -> None:
        """Cut off the connection (RST), so that the peer cannot take it for an orderly end."""
        reset(self.sock)


class KernelLink(Link):
    """A connection whose keys are in the kernel."""

    __slots__ = ()
    in_kernel = True

    @property
    def record(self) -> dict[str, Any]:
        """What ``remembered`` needs besides the socket, fit for JSON."""
        chain = (certificate.public_bytes(Encoding.DER) for certificate in self.chain)
        return {"suite": self.suite, "chain": [base64.b64encode(der).decode() for der in chain]}

    def read(self, size: int) -> bytes:
        """See ``Link.read``."""
        try:
            data = self.sock.recv(size)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # Not application data: recvmsg() with room for the record's type is the only way to get it
            # (net/tls/tls_sw.c, tls_record_content_type).
            return check_close_notify(*kernel_tls.read_control_record(self.sock))
        if not data:
            raise truncated()
        return data

    def _encrypt(self, data: bytes) -> bytes:
        return data

    def send_close_notify(self) -> None:
        """See ``Link.send_close_notify``."""
        with contextlib.suppress(OSError):
            kernel_tls.send_alert(self.sock, kernel_tls.ALERT_CLOSE_NOTIFY)


def remembered(sock: socket.socket, record: Mapping[str, Any]) -> KernelLink:
    """The connection that another process has recorded.

    Raises:
        LocalError: the socket is not that of a TCP connection.
        KeyError, TypeError, ValueError: the record is not one of a connection.
    """
    check_connection(sock, socket.AF_INET, socket.AF_INET6)
    chain = [x509.load_der_x509_certificate(base64.b64decode(text)) for text in record["chain"]]
    if not chain:
        raise ValueError("a connection without the peer's certificate")
    return KernelLink(sock, str(record["suite"]), chain)


class UserspaceLink(Link):
    """A connection that OpenSSL encrypts, in this process.

    Attributes:
        ssl: OpenSSL's end of it, between two memory BIOs.
        records: what goes through it.
    """

    __slots__ = ("records", "ssl")
    in_kernel = False

    def __init__(
        self, sock: socket.socket, suite: str, chain: Sequence[x509.Certificate], ssl: SSL.Connection
    ) -> None:
        super().__init__(sock, suite, chain)
        self.ssl = ssl
        self.records = Records(ssl)

    def read(self, size: int) -> bytes:
        """See ``Link.read``."""
        plaintext, ciphertext = _memory.plaintext, _memory.ciphertext
        while True:
            try:
                taken = self.records.decrypt(plaintext, size) if self.records.more else 0
            except SSL.ZeroReturnError:
                return b""
            except SSL.Error as error:
                raise tls_failure(error) from error
            if taken:
                return bytes(plaintext.view[:taken])
            self.forbid_replies()
            taken = self.sock.recv_into(ciphertext.view)
            if not taken:
                raise truncated()
            self.records.feed(ciphertext, taken)

    def _encrypt(self, data: bytes) -> bytes:
        view = memoryview(data)
        try:
            while view:
                view = view[self.ssl.send(view) :]
        except SSL.Error as error:
            raise tls_failure(error) from error
        return self.pending_ciphertext()

    def pending_ciphertext(self) -> bytes:
        """Everything OpenSSL wants sent."""
        ciphertext, output = _memory.ciphertext, b""
        while size := self.records.replies(ciphertext):
            output += ciphertext.view[:size]
        return output

    def forbid_replies(self) -> None:
        """Call after reading: OpenSSL must not have found anything to answer.

        It answers an attempt to renegotiate with a warning alert and goes on; a peer that does nothing
        else would fill our memory with such answers. No honest peer does that.

        Raises:
            ConnectionAbortedError: the peer tried to renegotiate.
        """
        if self.pending_ciphertext():
            raise renegotiating()

    def send_close_notify(self) -> None:
        """See ``Link.send_close_notify``."""
        with contextlib.suppress(SSL.Error, OSError):
            self.ssl.shutdown()
            self.sock.send(self.pending_ciphertext())


def truncated() -> ConnectionAbortedError:
    """The error for a FIN without close_notify."""
    return ConnectionAbortedError(errno.ECONNABORTED, "connection cut off (no close_notify)")


def renegotiating() -> ConnectionAbortedError:
    """The error for a peer that wants another handshake."""
    return ConnectionAbortedError(errno.ECONNABORTED, "the peer tried to renegotiate")


def tls_failure(error: SSL.Error) -> ConnectionAbortedError:
    """The error for a record that OpenSSL does not understand, or for a fatal alert."""
    return ConnectionAbortedError(errno.ECONNABORTED, f"TLS: {openssl_reason(error)}")


def check_close_notify(content_type: int, payload: bytes) -> bytes:
    """``b""`` if the control record is a close_notify.

    Raises:
        ConnectionAbortedError: it is anything else: another alert, or a handshake message, which after
            the handshake can only be an attempt to renegotiate.
    """
    if content_type == kernel_tls.RECORD_ALERT:
        if payload == kernel_tls.ALERT_CLOSE_NOTIFY:
            return b""
        number = payload[1] if len(payload) == 2 else -1
        raise ConnectionAbortedError(errno.ECONNABORTED, f"the peer sent TLS alert {number}")
    what = "the peer tried to renegotiate" if content_type == kernel_tls.RECORD_HANDSHAKE else "unexpected"
    raise ConnectionAbortedError(errno.ECONNABORTED, f"{what}: TLS record of type {content_type}")
