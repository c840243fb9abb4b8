"""Kernel TLS: from the end of an OpenSSL handshake to a socket that the kernel encrypts.

Many builds of OpenSSL lack kernel TLS (PyPI's wheels among them), so we do not use its own switch. Instead
we run the TLS 1.2 key schedule (RFC 5246, section 6.3) on the master secret that the handshake agreed on, and
give the keys to the kernel with setsockopt(2): ``TCP_ULP``, then ``TLS_TX`` and ``TLS_RX`` (kernel:
``Documentation/networking/tls.rst``, ``include/uapi/linux/tls.h``).

After that the socket speaks plaintext to us. For anything but application data (alerts, above all
close_notify), ancillary data of sendmsg(2) and recvmsg(2) gives the record's type.
"""

import errno
import hmac
import socket
import struct
from dataclasses import dataclass

from ..errors import HandshakeError

# include/uapi/linux/tcp.h, include/linux/socket.h, include/uapi/linux/tls.h
TCP_ULP = 31
SOL_TLS = 282
TLS_TX = 1
TLS_RX = 2
TLS_SET_RECORD_TYPE = 1
TLS_GET_RECORD_TYPE = 2
TLS_1_2_VERSION = 0x0303

RECORD_ALERT = 21  # RFC 5246, section 6.2.1
RECORD_HANDSHAKE = 22
RECORD_DATA = 23
ALERT_CLOSE_NOTIFY = b"\x01\x00"  # level warning, description close_notify (RFC 5246, section 7.2)

RECORD_MAX = 2**14  # bytes of plaintext in one record (RFC 5246, section 6.2.1)
_FIRST_SEQUENCE = 1  # record 0 of each direction was the Finished message


@dataclass(frozen=True, slots=True)
class Suite:
    """What the kernel must know about a cipher suite.

    Attributes:
        digest: hash of the PRF (RFC 5246, section 5; RFC 5288, section 3).
        cipher_type: ``TLS_CIPHER_*`` number.
        key_length: bytes of the write key.
        iv_length: bytes of the fixed part of the nonce: 4 for GCM (RFC 5288), 12 for ChaCha20 (RFC 7905).
    """

    digest: str
    cipher_type: int
    key_length: int
    iv_length: int

    @property
    def is_gcm(self) -> bool:
        """True if records carry an explicit nonce of eight bytes (RFC 5288, section 3)."""
        return self.iv_length == 4


_AES_128_GCM = Suite("sha256", 51, 16, 4)
_AES_256_GCM = Suite("sha384", 52, 32, 4)
_CHACHA20_POLY1305 = Suite("sha256", 54, 32, 12)

SUITES = {
    f"ECDHE-{auth}-{name}": suite
    for auth in ("ECDSA", "RSA")
    for name, suite in (
        ("AES128-GCM-SHA256", _AES_128_GCM),
        ("AES256-GCM-SHA384", _AES_256_GCM),
        ("CHACHA20-POLY1305", _CHACHA20_POLY1305),
    )
}
"""Every cipher suite that Shadow offers, by OpenSSL's name, in order of preference within a kind of key."""


@dataclass(frozen=True, slots=True, repr=False)  # no repr: keys must not end up in a log
class Secrets:
    """What both ends of a finished handshake share (RFC 5246, section 8.1)."""

    master_secret: bytes
    client_random: bytes
    server_random: bytes


@dataclass(frozen=True, slots=True, repr=False)
class KeyBlock:
    """The key block, split up (RFC 5246, section 6.3); AEAD suites have no MAC keys."""

    client_key: bytes
    server_key: bytes
    client_iv: bytes
    server_iv: bytes


def prf(secret: bytes, label: bytes, seed: bytes, length: int, digest: str) -> bytes:
    """The TLS 1.2 pseudo-random function, P_hash of label and seed (RFC 5246, section 5)."""
    seed = label + seed
    output, link = b"", seed
    while len(output) < length:
        link = hmac.digest(secret, link, digest)
        output += hmac.digest(secret, link + seed, digest)
    return output[:length]


def key_block(suite: Suite, secrets: Secrets) -> KeyBlock:
    """The keys and fixed nonces of both directions (RFC 5246, section 6.3)."""
    seed = secrets.server_random + secrets.client_random
    key, iv = suite.key_length, suite.iv_length
    block = prf(secrets.master_secret, b"key expansion", seed, 2 * (key + iv), suite.digest)
    return KeyBlock(
        block[:key],
        block[key : 2 * key],
        block[2 * key : 2 * key + iv],
        block[2 * key + iv :],
    )


def crypto_info(suite: Suite, key: bytes, iv: bytes, explicit_nonce: int) -> bytes:
    """A ``struct tls12_crypto_info_*`` that continues a connection at its second record.

    GCM: ``iv`` is the salt, and the struct's iv is the explicit nonce of the next record.
    ChaCha20-Poly1305 has no explicit nonce (RFC 7905, section 2) and no salt.
    """
    header = struct.pack("=HH", TLS_1_2_VERSION, suite.cipher_type)
    sequence = struct.pack(">Q", _FIRST_SEQUENCE)
    if suite.is_gcm:
        return header + struct.pack(">Q", explicit_nonce) + key + iv + sequence
    return header + iv + key + sequence


def missing() -> str | None:
    """Why the kernel cannot do TLS, or None if it can.

    TCP_ULP on a socket that is not connected fails with ENOTCONN where the module is loaded and with
    ENOENT where it is not; without CAP_NET_ADMIN it is not loaded on demand (``net/ipv4/tcp_ulp.c``).
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                return None
            if error.errno == errno.ENOENT:
                return "the kernel module 'tls' is not loaded (try: modprobe tls)"
            return f"TCP_ULP: {error.strerror}"
    return None


def install(
    sock: socket.socket, suite: Suite, secrets: Secrets, *, server: bool, explicit_nonce: int = 1
) -> bool:
    """Hand the connection's keys to the kernel; True if it took them.

    Args:
        sock: an ESTABLISHED TCP socket of which nothing past the peer's Finished has been read.
        suite: the negotiated suite.
        secrets: the handshake's result.
        server: whether we are the server of the handshake.
        explicit_nonce: (GCM) the nonce of the first record we send. OpenSSL starts at a random number, so
            only continuing from there makes sure that no nonce is ever used twice.

    Returns:
        False if the kernel has no TLS, or not this cipher; the socket is still good for userspace TLS.

    Raises:
        HandshakeError: it took one direction but not the other: the connection is unusable.
    """
    block = key_block(suite, secrets)
    ours = (block.server_key, block.server_iv) if server else (block.client_key, block.client_iv)
    theirs = (block.client_key, block.client_iv) if server else (block.server_key, block.server_iv)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        sock.setsockopt(SOL_TLS, TLS_TX, crypto_info(suite, *ours, explicit_nonce))
    except OSError:
        return False
    try:
        sock.setsockopt(SOL_TLS, TLS_RX, crypto_info(suite, *theirs, _FIRST_SEQUENCE))
    except OSError as error:
        raise HandshakeError(f"the kernel encrypts but does not decrypt: {error.strerror}") from error
    return True


def send_alert(sock: socket.socket, alert: bytes) -> None:
    """Send one alert record.

    Raises:
        BlockingIOError: no room in the socket; try again when it is writable.
        OSError: the connection is gone.
    """
    sock.sendmsg([alert], [(SOL_TLS, TLS_SET_RECORD_TYPE, bytes([RECORD_ALERT]))], socket.MSG_DONTWAIT)


def read_control_record(sock: socket.socket, flags: int = 0) -> tuple[int, bytes]:
    """Read the record at the head of the queue if it is not application data: (content type, payload).

    With ``socket.MSG_PEEK`` in ``flags`` it stays there.

    A record of application data is returned as type ``RECORD_DATA`` with (a part of) its payload.

    Raises:
        BlockingIOError: no complete record is there.
        OSError: the connection is gone, or the record cannot be decrypted (EBADMSG).
    """
    flags |= socket.MSG_DONTWAIT
    data, ancillary, _flags, _address = sock.recvmsg(RECORD_MAX, socket.CMSG_SPACE(1), flags)
    for level, kind, value in ancillary:
        if level == SOL_TLS and kind == TLS_GET_RECORD_TYPE:
            return value[0], data
    return RECORD_DATA, data
