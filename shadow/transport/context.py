"""TLS contexts: what both sides set up before a handshake."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from OpenSSL import SSL

from ..errors import LocalError
from ..pki.certificates import Credentials, Purpose
from ..pki.chains import present, trust
from . import ktls as kernel_tls
from .openssl import limit_signatures

# <openssl/ssl.h>; pyOpenSSL 23 names none of them.
_SSL_OP_NO_RENEGOTIATION = 1 << 30
_SSL_MODE_RELEASE_BUFFERS = 0x10


class Ktls(enum.StrEnum):
    """Whether the kernel should encrypt."""

    AUTO = "auto"
    REQUIRE = "require"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Settings:
    """How to do handshakes.

    Attributes:
        context: made by ``make_context``.
        purpose: what we are.
        ktls: whether the kernel should encrypt.
        server_names: (who dials) whom the other side's certificate must be for, one of them: a robot has host
            names or IP addresses, a peer has ids of servers.
        ca: the CA certificates that peers are checked against, the same as in ``context``.
        fingerprint: of our own certificate.
    """

    context: SSL.Context
    purpose: Purpose
    ktls: Ktls
    server_names: tuple[str, ...] = ()
    ca: Sequence[x509.Certificate] = ()
    fingerprint: str = ""

    @property
    def dials(self) -> bool:
        """Whether we begin the handshake. Peers do both; the one that dials knows whom."""
        return bool(self.server_names) if self.purpose is Purpose.PEER else self.purpose is Purpose.ROBOT


def make_context(credentials: Credentials) -> SSL.Context:
    """An OpenSSL context for one side: TLS 1.2 only, AEAD suites with ephemeral keys, mutual certificates.

    No tickets and no session cache: each handshake proves both certificates anew, so a revoked or
    expired one cannot return with an old session.
    """
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(
        SSL.OP_NO_COMPRESSION | SSL.OP_NO_TICKET | SSL.OP_CIPHER_SERVER_PREFERENCE | _SSL_OP_NO_RENEGOTIATION
    )
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(_SSL_MODE_RELEASE_BUFFERS)  # an idle robot should not cost 34 KiB of empty buffers
    context.set_cipher_list(":".join(kernel_tls.SUITES).encode())
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    limit_signatures(context)
    store = context.get_cert_store()
    if store is None:  # pragma: no cover - only without memory
        raise LocalError("OpenSSL gave no certificate store")
    trust(store, credentials.ca)
    present(context, credentials.chain, credentials.key)
    return context


def check_kernel(mode: Ktls) -> str | None:
    """Why the kernel will not encrypt, or None if it will.

    Raises:
        LocalError: it cannot, and ``mode`` requires it.
    """
    if mode is Ktls.OFF:
        return "switched off by --ktls=off"
    why = kernel_tls.missing()
    if why is not None and mode is Ktls.REQUIRE:
        raise LocalError(f"--ktls=require, but {why}")
    return why
