"""Who we are to the fleet's engine, and whom we take for it.

Whoever is a client of the engine can hide robots and misdirect visitors. So the engine has a CA of its own:
with that of the robots, every robot could be a client.
"""

import datetime as dt
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto

from ..errors import ConfigError
from ..pki.certificates import Credentials, Files, Purpose, has_usages, read_credentials
from ..pki.chains import make_store, verify_chain
from ..pki.expiry import Term, terms
from ..pki.files import read_file
from ..pki.keys import key_bytes, key_pem
from ..pki.presence import NOT_THERE, name_missing

_LOGIN_MAX = 1024  # bytes of the file
_SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True)
class Login:
    """A user of the engine. No ``repr`` shows the password."""

    user: str
    password: str

    def __repr__(self) -> str:
        return f"Login({self.user!r})"


@dataclass(frozen=True, slots=True)
class Identity:
    """What we show to the engine.

    Attributes:
        context: how to do handshakes with it.
        login: who to log in as; None where the certificate is enough.
        terms: what of it expires.
    """

    context: ssl.SSLContext
    login: Login | None
    terms: Sequence[Term]


def load_identity(
    files: Files, login: Path | None, robots: Sequence[x509.Certificate], now: dt.datetime
) -> Identity:
    """Read and check what we need to be a client of the engine.

    Args:
        files: the engine's CA, and our certificate and key from it.
        login: a file with ``USER:PASSWORD``, for an engine that others use, too; or None.
        robots: the CA certificates that robots are checked against.
        now: the time to judge by, aware.

    Raises:
        ConfigError: a file is missing or wrong, or the engine's CA is that of the robots.
        ClockError: a certificate is not valid yet.
    """
    named = name_missing(files.ca, files.crt, files.key, "engine's ")
    if named:
        raise ConfigError(
            f"{named}: No such file or directory; all three come from the engine's own CA, not the robots'"
        )
    credentials = read_credentials(files, now)
    _check_usage(credentials.chain[0], files.crt)
    _check_not_the_robots(credentials.ca, files.ca, robots)
    found = terms(credentials, files.crt, files.ca, "the CA of the fleet's engine")
    return Identity(_make_context(credentials), None if login is None else _load_login(login), found)


def _check_usage(certificate: x509.Certificate, path: Path) -> None:
    """As etcd does: one without an extended key usage is for everything."""
    try:
        certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return
    if not has_usages(certificate, Purpose.ROBOT):
        raise ConfigError(f"engine's certificate {path}: not for clients (extended key usage clientAuth)")


def _check_not_the_robots(
    authorities: Sequence[x509.Certificate], path: Path, robots: Sequence[x509.Certificate]
) -> None:
    """Check that no robot can show the engine a certificate that leads to its CA."""
    keys = {key_bytes(authority.public_key()) for authority in authorities}
    store = make_store(authorities)
    for robot_ca in robots:
        if key_bytes(robot_ca.public_key()) in keys or _leads_to(store, [robot_ca, *robots]):
            raise ConfigError(
                f"engine's CA certificate {path}: it is the robots' CA, or has issued it, so every robot "
                "could write to the engine; give the engine a CA of its own"
            )


def _leads_to(store: crypto.X509Store, chain: Sequence[x509.Certificate]) -> bool:
    try:
        verify_chain(store, chain)
    except crypto.X509StoreContextError:
        return False
    return True


def _make_context(credentials: Credentials) -> ssl.SSLContext:
    """For Python's own TLS, which wants files: they have been read and checked, so it gets a copy in memory.

    TLS 1.2, as everywhere else; and with TLS 1.3 we would learn that our certificate is refused only after
    the handshake, if at all.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks certificates and host names
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_SUITES)
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # see ``chains.trust``
    context.load_verify_locations(cadata=_pem(credentials.ca).decode())
    descriptor = os.memfd_create("engine", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(_pem(credentials.chain) + key_pem(credentials.key))
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    return context


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def _load_login(path: Path) -> Login | None:
    """None if the service manager has found none (see ``pki.presence``)."""
    data = read_file(path, "engine's login", _LOGIN_MAX).strip(b"\r\n")
    if data == NOT_THERE:
        return None
    try:
        user, colon, password = data.decode().partition(":")
    except UnicodeDecodeError as error:
        raise ConfigError(f"engine's login {path}: not UTF-8") from error
    if not (user and colon and password) or "\n" in data.decode():
        raise ConfigError(f"engine's login {path}: not one line of the form USER:PASSWORD")
    return Login(user, password)
