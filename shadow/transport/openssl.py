"""Parts of OpenSSL that pyOpenSSL wraps but does not offer: records in our own memory, signature algorithms.

pyOpenSSL is made for handshakes: it returns each record as a new bytes object, through a buffer that it
allocates, and raises an exception when there are no more. That takes as long as the cipher, and twice as long
as everything else that is done for a record. So bulk data uses the four calls that pyOpenSSL itself makes for
``send``, ``recv``, ``bio_read`` and ``bio_write``; only the memory is ours.

We reach all of them by pyOpenSSL's own, private names, which are the same from version 23 (Debian 12) to 26.

See SSL_read(3), SSL_write(3), BIO_s_mem(3), SSL_CTX_set1_sigalgs_list(3).
"""

from typing import Any

from OpenSSL import SSL
from OpenSSL._util import ffi as _ffi
from OpenSSL._util import lib as _lib

from ..errors import LocalError

# OpenSSL's defaults also include SHA-1, SHA-224 and DSA (RFC 9155).
_SIGNATURES = ":".join(
    f"{algorithm}+{digest}"
    for algorithm in ("ECDSA", "RSA-PSS", "RSA")
    for digest in ("SHA256", "SHA384", "SHA512")
)


class Buffer:
    """Memory that both OpenSSL and system calls use.

    Attributes:
        view: all of it.
        start: a pointer to its start.
    """

    __slots__ = ("start", "view")

    def __init__(self, size: int) -> None:
        memory = bytearray(size)
        self.view = memoryview(memory)
        self.start: Any = _ffi.from_buffer(memory)


class Records:
    """What goes through one connection, both ways.

    Attributes:
        connection: pyOpenSSL's, between two memory BIOs, its handshake done.
        more: ``decrypt`` can return more without being fed.
    """

    __slots__ = ("_failure", "_from_ssl", "_into_ssl", "_ssl", "connection", "more")

    def __init__(self, connection: SSL.Connection) -> None:
        self.connection = connection
        self._ssl: Any = connection._ssl  # noqa: SLF001
        self._into_ssl: Any = connection._into_ssl  # noqa: SLF001
        self._from_ssl: Any = connection._from_ssl  # noqa: SLF001
        self._failure: SSL.Error | None = None
        self.more = True  # what came after the last record of the handshake, or after a frame

    def encrypt(self, plaintext: Buffer, size: int, output: Buffer) -> int:
        """Make records of the first ``size`` bytes; return how many bytes of ``output`` they take.

        Args:
            plaintext: what to send.
            size: how much of it.
            output: for the records: 64 bytes more than ``plaintext`` for each 16 KiB are enough.

        Raises:
            SSL.Error: the connection is broken.
        """
        done = 0
        while done < size:
            result = _lib.SSL_write(self._ssl, plaintext.start + done, size - done)
            if result <= 0:
                raise self._error(result)
            done += result
        return self.replies(output)

    def feed(self, ciphertext: Buffer, size: int) -> None:
        """Give OpenSSL what the peer has sent: the first ``size`` bytes."""
        self.more = True
        result = _lib.BIO_write(self._into_ssl, ciphertext.start, size)
        if result != size:
            raise MemoryError("OpenSSL's memory BIO")

    def decrypt(self, output: Buffer, size: int) -> int:
        """Plaintext of what OpenSSL was fed, ``size`` bytes at most; 0 if a record is not complete.

        Raises:
            SSL.ZeroReturnError: nothing more comes: close_notify.
            SSL.Error: the connection is broken.
        """
        return self._decrypt(output, min(len(output.view), size), size)[0]

    def decrypt_some(self, output: Buffer, records: int) -> tuple[int, int]:
        """Plaintext of what OpenSSL was fed, as much as fits, and how many records it came from.

        A record of one byte takes as much time as thousands of bytes in large ones, so we count records.

        Args:
            output: for the plaintext.
            records: the maximum number of records.

        Raises:
            SSL.ZeroReturnError: nothing more comes: close_notify.
            SSL.Error: the connection is broken.
        """
        return self._decrypt(output, len(output.view), records)

    def _decrypt(self, output: Buffer, room: int, records: int) -> tuple[int, int]:
        done = count = 0
        while done < room and count < records and self._failure is None:
            result = _lib.SSL_read(self._ssl, output.start + done, room - done)  # of one record at most
            count += 1
            if result > 0:
                done += result
            elif self._starves(result):
                self.more = False
                return done, count
        if self._failure is not None and not done:
            raise self._failure
        self.more = True
        return done, count

    def replies(self, output: Buffer) -> int:
        """How many bytes OpenSSL wants sent, now in ``output``; after reading, these are its own replies."""
        return max(0, int(_lib.BIO_read(self._from_ssl, output.start, len(output.view))))

    def _starves(self, result: int) -> bool:
        """Whether SSL_read failed only for lack of input.

        Call it at once, whatever came before: OpenSSL keeps one queue of errors for all connections of a
        thread, and errors left in it would be taken for the next connection's (SSL_get_error(3)).
        """
        if _lib.SSL_get_error(self._ssl, result) == _lib.SSL_ERROR_WANT_READ:
            return True
        self._failure = self._error(result)
        return False  # raised once everything that came before it has been returned

    def _error(self, result: int) -> SSL.Error:
        """What pyOpenSSL would raise; afterwards OpenSSL's queue of errors is empty."""
        try:
            self.connection._raise_ssl_error(self._ssl, result)  # noqa: SLF001
        except SSL.Error as error:
            return error
        return SSL.Error(f"unexpected result {result}")


def limit_signatures(context: SSL.Context) -> None:
    """Offer and accept signatures by ECDSA and RSA with SHA-2 of 256 bits or more, and no others.

    Raises:
        LocalError: OpenSSL was built without one of them.
    """
    if _lib.SSL_CTX_set1_sigalgs_list(context._context, _SIGNATURES.encode()) != 1:  # noqa: SLF001
        _lib.ERR_clear_error()
        raise LocalError(f"OpenSSL does not know all of these signatures: {_SIGNATURES}")
