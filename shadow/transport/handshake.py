"""The handshake of TLS 1.2 with certificates on both sides, and who the peer is.

OpenSSL works between two memory BIOs; the socket is ours. That lets us read record by record, and so
never a byte past the peer's Finished: what follows belongs to the kernel if it takes over. It also shows
us the alert that OpenSSL sends, which says why a certificate was refused. No Python callback is
registered anywhere, because cffi cannot create one under ``MemoryDenyWriteExecute=``.
"""

import asyncio
import contextlib
import datetime as dt
import functools
import socket
from collections.abc import Sequence

from cryptography import x509
from OpenSSL import SSL, crypto

from ..errors import CertificateRefused, HandshakeError, IdentityError, LocalError, PeerError, reason_of
from ..events import STEPS
from ..net.address import is_ip_address
from ..net.liveness import watch_for_death
from ..pki.certificates import (
    DAMAGE,
    Purpose,
    alternative_names,
    has_purpose,
    has_usages,
    host_names,
    is_named_peer,
)
from ..pki.chains import SHOWN_MAX, make_store, openssl_reason, verified_chain, verify_chain
from ..pki.grace import judged_at
from ..pki.peers import peer_of
from . import ktls as kernel_tls
from .context import Ktls, Settings
from .hostnames import is_for
from .link import KernelLink, Link, UserspaceLink

_RECORD_HEADER = 5  # bytes: type, version, length (RFC 5246, section 6.2.1)
_CIPHERTEXT_MAX = 2**14 + 2048  # bytes (RFC 5246, section 6.2.3)
_HANDSHAKE_TYPES = frozenset({20, 21, 22})  # change_cipher_spec, alert, handshake
_FLIGHT_MAX = 2**16  # bytes of one flight that we send
_PARTING = 1.0  # seconds for a refused peer to hear the reason
_PART = 4096  # bytes of what it still sends, read at once
_HANDSHAKE_MAX = 2**15  # bytes that a peer may send in all: OpenSSL keeps them before it knows who that is


class NotTls(HandshakeError):
    """The peer speaks something else.

    Attributes:
        start: its first bytes.
    """

    def __init__(self, start: bytes) -> None:
        super().__init__(f"the peer does not speak TLS; it began with {start!r}")
        self.start = start


async def handshake(sock: socket.socket, settings: Settings) -> Link:
    """Do the handshake on a connected, non-blocking socket and check who the peer is.

    The caller sets the deadline, and closes the socket if this raises.

    Raises:
        HandshakeError: TLS failed; the message says whose certificate or what else was wrong.
        IdentityError: the peer's certificate is good, but not for this use.
        OSError: the connection broke.
    """
    connection = SSL.Connection(settings.context, None)
    if settings.dials:
        connection.set_connect_state()
        name = settings.server_names[0]
        # RFC 6066, section 3: literal addresses not permitted; and the id of a server is no host name
        if settings.purpose is Purpose.ROBOT and not is_ip_address(name):
            connection.set_tlsext_host_name(name.encode("ascii"))
    else:
        connection.set_accept_state()
    last_flight, chain = await _run(sock, connection, settings)
    link = _hand_over(sock, connection, settings, chain, last_flight)
    STEPS.debug("%r after a handshake as %s", link, settings.purpose.name.lower())
    return link


async def secure(sock: socket.socket, settings: Settings, interval: float, within: float) -> Link:
    """Make a link of a connection that we have dialled; if that fails, the socket is closed.

    Args:
        sock: the connection, non-blocking.
        settings: how to do the handshake.
        interval: keepalive in seconds; see ``watch_for_death``.
        within: seconds for the handshake.

    Raises:
        PeerError: TLS failed, the peer is somebody else, or the connection broke; or it took too long.
    """
    try:
        watch_for_death(sock, interval)
        async with asyncio.timeout(within):
            return await handshake(sock, settings)
    except TimeoutError:
        sock.close()
        raise PeerError(f"no handshake within {within:g} s") from None
    except OSError as error:
        sock.close()
        raise PeerError(f"connection lost: {reason_of(error)}") from error
    except BaseException:
        sock.close()
        raise


def check_again(link: Link, settings: Settings, *, renews: bool = False) -> None:
    """Make sure that we would still let in a peer that we let in before, and verify its chain anew.

    Args:
        link: the connection to the peer.
        settings: the present ones.
        renews: the peer can renew its certificate, so it may have expired a little while ago, see
            ``judged_at``.

    Raises:
        IdentityError: we would not; the message says why.
        LocalError: the kernel must not encrypt any more.
    """
    if settings.ktls is Ktls.OFF:
        raise LocalError("--ktls=off, and it is encrypted by the kernel")
    now = dt.datetime.now(dt.UTC)
    at = judged_at(link.certificate, now) if renews else now
    store = _store(tuple(settings.ca))
    if at < now:  # in a separate store: once set, the time stays
        store = make_store(settings.ca)
        store.set_time(at)
    try:
        link.chain = verify_chain(store, link.chain)
    except crypto.X509StoreContextError as error:
        raise IdentityError(f"its certificate is not good any more: {error}") from error
    _check_identity(link.certificate, settings)


@functools.lru_cache(maxsize=2)
def _store(authorities: tuple[x509.Certificate, ...]) -> crypto.X509Store:
    return make_store(authorities)


async def _run(
    sock: socket.socket, connection: SSL.Connection, settings: Settings
) -> tuple[bytes, list[x509.Certificate]]:
    """Drive OpenSSL through the handshake; return the last bytes we sent, and the peer's chain."""
    loop = asyncio.get_running_loop()
    flight, received = b"", 0
    chain: list[x509.Certificate] = []
    while True:
        failure: SSL.Error | None = None
        finished = False
        try:
            connection.do_handshake()
            finished = True
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            failure = error
        output = _output(connection)
        if failure is not None:
            await _part(sock, output)
            raise _explain(failure, output) from failure
        if not chain and (finished or (output and connection.get_peer_certificate() is not None)):
            # Before our Finished is sent: nothing is encrypted yet, so we can tell the peer why.
            chain = await _identified(sock, connection, settings)
        if output:
            await loop.sock_sendall(sock, output)
            flight = output
        if finished:
            return flight, chain
        record = await _read_record(loop, sock)
        received += len(record)
        if received > _HANDSHAKE_MAX:
            raise HandshakeError(f"the peer's handshake takes more than {_HANDSHAKE_MAX} bytes")
        connection.bio_write(record)


async def _identified(
    sock: socket.socket, connection: SSL.Connection, settings: Settings
) -> list[x509.Certificate]:
    """The peer's chain, if it is a peer that we want to talk to; else tell it why not.

    Raises:
        IdentityError: it is not.
    """
    try:
        chain = _peer_chain(connection, dialled=settings.dials)
    except IdentityError:
        await _part(sock, _alert(_BAD_CERTIFICATE))
        raise
    fault = _fault(chain[0], settings)
    if fault is not None:
        await _part(sock, _alert(fault[0]))
        raise IdentityError(fault[1])
    return chain


def _alert(number: int) -> bytes:
    """A fatal alert, not encrypted (RFC 5246, section 7.2)."""
    return bytes([kernel_tls.RECORD_ALERT, 3, 3, 0, 2, _FATAL, number])


async def _part(sock: socket.socket, last_words: bytes) -> None:
    """Say why we leave, as a courtesy, and give the peer time to hear it.

    If anything it has sent were still unread, the kernel would turn close(2) into a reset, which can overtake
    the alert.
    """
    if not last_words:
        return
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, TimeoutError):  # it may be gone, or not reading
        sock.send(last_words)
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(_PARTING):
            for _ in range(_HANDSHAKE_MAX // _PART):
                if not await loop.sock_recv(sock, _PART):
                    return


def _output(connection: SSL.Connection) -> bytes:
    try:
        return connection.bio_read(_FLIGHT_MAX)
    except SSL.WantReadError:
        return b""


async def _read_record(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    """Exactly one TLS record, header included."""
    header = await _read_exactly(loop, sock, _RECORD_HEADER)
    length = int.from_bytes(header[3:5], "big")
    if header[0] not in _HANDSHAKE_TYPES or header[1] != 3 or length > _CIPHERTEXT_MAX:
        raise NotTls(header)
    return header + await _read_exactly(loop, sock, length)


async def _read_exactly(loop: asyncio.AbstractEventLoop, sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = await loop.sock_recv(sock, size - len(data))
        if not part:
            raise HandshakeError("the peer hung up during the handshake")
        data += part
    return data


def _peer_chain(connection: SSL.Connection, *, dialled: bool) -> list[x509.Certificate]:
    """The peer's certificate and those that vouch for it, without anything else it showed."""
    # With the leaf on a client, without it on a server (SSL_get_peer_cert_chain(3)).
    if len(connection.get_peer_cert_chain() or []) + (not dialled) > SHOWN_MAX:
        raise IdentityError(f"the peer showed more than {SHOWN_MAX} certificates")
    try:
        chain = verified_chain(connection)
    except DAMAGE as error:
        raise IdentityError("the peer's certificate is damaged") from error
    if not chain:  # pragma: no cover - VERIFY_FAIL_IF_NO_PEER_CERT came first
        raise IdentityError("the peer showed no certificate")
    return chain


def _check_identity(certificate: x509.Certificate, settings: Settings) -> None:
    fault = _fault(certificate, settings)
    if fault is not None:
        raise IdentityError(fault[1])


def _fault(certificate: x509.Certificate, settings: Settings) -> tuple[int, str] | None:
    """Why a good certificate is not good for this use: an alert for the peer, words for us."""
    if settings.purpose is Purpose.PEER:
        return _fault_of_peer(certificate, settings.server_names)
    if settings.purpose is Purpose.SERVER:
        # OpenSSL lets a certificate without any extended key usage pass for both sides; we do not.
        # Whether its name is a robot's is for ``server.admission``, which says so to whoever has said HELLO.
        if not has_usages(certificate, Purpose.ROBOT):
            return _UNSUPPORTED_CERTIFICATE, "the peer's certificate is not a robot's (clientAuth)"
        return None
    if not has_purpose(certificate, Purpose.SERVER):
        what = (
            "that of a server among its peers"
            if is_named_peer(certificate)
            else "not a server's (serverAuth)"
        )
        return _UNSUPPORTED_CERTIFICATE, f"the peer's certificate is {what}"
    if any(is_for(name, alternative_names(certificate)) for name in settings.server_names):
        return None
    names = ", ".join(host_names(certificate)[:8]) or "no host at all"
    return _CERTIFICATE_UNKNOWN, (
        f"the server's certificate is not for {' or '.join(settings.server_names)} but for {names} "
        "(--server-name says which name to expect)"
    )


def _fault_of_peer(certificate: x509.Certificate, servers: Sequence[str]) -> tuple[int, str] | None:
    try:
        server = peer_of(certificate)
    except IdentityError as error:
        return _UNSUPPORTED_CERTIFICATE, str(error)
    if servers and server not in servers:
        return _CERTIFICATE_UNKNOWN, f"the peer is server {server}, not {' or '.join(servers)}"
    return None


def _hand_over(
    sock: socket.socket,
    connection: SSL.Connection,
    settings: Settings,
    chain: Sequence[x509.Certificate],
    last_flight: bytes,
) -> Link:
    suite = connection.get_cipher_name() or ""
    master, client, server = (
        connection.master_key(),
        connection.client_random(),
        connection.server_random(),
    )
    if settings.ktls is not Ktls.OFF and suite in kernel_tls.SUITES and master and client and server:
        if connection.pending():  # pragma: no cover - we read record by record
            raise HandshakeError("the peer sent data before the handshake was over")
        taken = kernel_tls.install(
            sock,
            kernel_tls.SUITES[suite],
            kernel_tls.Secrets(master, client, server),
            server=not settings.dials,
            explicit_nonce=next_explicit_nonce(last_flight),
        )
        if taken:
            return KernelLink(sock, suite, chain)
    if settings.ktls is Ktls.REQUIRE:
        raise HandshakeError(f"--ktls=require, but the kernel does not take {suite}")
    return UserspaceLink(sock, suite, chain, connection)


def next_explicit_nonce(flight: bytes) -> int:
    """The nonce that follows that of the last record in ``flight``, our Finished (RFC 5288, section 3).

    For ChaCha20-Poly1305 the number means nothing, and nobody uses it.
    """
    start, following = 0, 0
    while following + _RECORD_HEADER <= len(flight):
        start = following
        following = start + _RECORD_HEADER + int.from_bytes(flight[start + 3 : start + 5], "big")
    nonce = flight[start + _RECORD_HEADER : start + _RECORD_HEADER + 8]
    return (int.from_bytes(nonce, "big") + 1) % 2**64


_FATAL = 2
_BAD_CERTIFICATE = 42
_UNSUPPORTED_CERTIFICATE = 43
_CERTIFICATE_UNKNOWN = 46
_ABOUT_CERTIFICATES = {42, 43, 44, 45, 46, 48, 116}

# What an alert means to somebody who manages certificates (RFC 5246, section 7.2.2). OpenSSL chooses them
# in ssl/statem/statem_lib.c, ssl_x509err2alert().
_ALERTS = {
    40: "handshake_failure: no cipher suite or key type in common",
    _BAD_CERTIFICATE: "bad_certificate: not valid yet (a wrong clock?), or damaged",
    _UNSUPPORTED_CERTIFICATE: "unsupported_certificate: made for another purpose (server or client)",
    44: "certificate_revoked",
    45: "certificate_expired",
    _CERTIFICATE_UNKNOWN: "certificate_unknown: not for the name that was dialled",
    48: "unknown_ca: issued by another CA",
    51: "decrypt_error: a signature does not verify",
    70: "protocol_version: not TLS 1.2",
    71: "insufficient_security",
    80: "internal_error",
    116: "certificate_required",
}


def _explain(error: SSL.Error, sent: bytes) -> HandshakeError:
    """One line that says which side objected to what."""
    words = openssl_reason(error)
    if "alert" in words:  # OpenSSL's words for an alert that it received
        number = _received_alert(words)
        meaning = _ALERTS.get(number, words)
        if number in _ABOUT_CERTIFICATES:
            return CertificateRefused(f"the peer refused our certificate: {meaning}")
        return HandshakeError(f"the peer refused us: {meaning}")
    if words == "certificate verify failed" and len(sent) >= 7 and sent[0] == kernel_tls.RECORD_ALERT:
        return HandshakeError(f"the peer's certificate was refused: {_ALERTS.get(sent[6], words)}")
    if "did not return a certificate" in words:
        return HandshakeError("the peer showed no certificate")
    return HandshakeError(f"TLS: {words}")


def _received_alert(words: str) -> int:
    """The number of the alert that OpenSSL names, e.g. ``tlsv1 alert unknown ca``."""
    flat = words.replace(" ", "_")
    return next((number for number, text in _ALERTS.items() if flat.endswith(text.partition(":")[0])), -1)
