"""Certificates and keys in PEM files: reading them, and reporting what is wrong before a peer does.

A peer that rejects our certificate answers with a bare TLS alert. So we check everything here first that a
peer will check, against our own CA, and report it in one line that names the file and what to do about it.
"""

import datetime as dt
import enum
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, SignatureAlgorithmOID
from OpenSSL import SSL, crypto

from ..errors import ClockError, ConfigError, IdentityError
from ..names import PEER
from .chains import (
    SHOWN_BYTES_MAX,
    SHOWN_MAX,
    is_for_pss_only,
    make_store,
    openssl_reason,
    present,
    verify_chain,
)
from .files import read_file
from .keys import PrivateKey, check_curve, check_length, key_bytes, load_private_key
from .presence import check_presence

_BEGIN = b"-----BEGIN CERTIFICATE-----"
_PEM = re.compile(_BEGIN + rb".*?-----END CERTIFICATE-----", re.DOTALL)  # RFC 7468, section 5

DAMAGE = (
    ValueError,
    TypeError,
    KeyError,  # a string type that cryptography has no name for
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What cryptography raises on damaged DER, which it parses piece by piece, each when we ask for it."""

_WEAK_SIGNATURES = frozenset(
    {
        SignatureAlgorithmOID.RSA_WITH_MD5,
        SignatureAlgorithmOID.RSA_WITH_SHA1,
        SignatureAlgorithmOID.ECDSA_WITH_SHA1,
    }
)

# <openssl/x509_vfy.h>
_X509_V_ERR_CERT_NOT_YET_VALID = 9
_X509_V_ERR_CERT_HAS_EXPIRED = 10


class Purpose(enum.Enum):
    """What a leaf certificate is for: the two sides of the tunnel, or servers of a fleet among themselves."""

    SERVER = "server"
    ROBOT = "robot"
    PEER = "peer"

    @property
    def usages(self) -> Sequence[x509.ObjectIdentifier]:
        """The extended key usages that a certificate of this purpose holds (RFC 5280, section 4.2.1.12)."""
        return _USAGES[self]

    @property
    def advice(self) -> str:
        """The command that makes a certificate of this purpose."""
        return _ADVICE[self]


_USAGES = {
    Purpose.SERVER: (ExtendedKeyUsageOID.SERVER_AUTH,),
    Purpose.ROBOT: (ExtendedKeyUsageOID.CLIENT_AUTH,),
    # A peer both dials and is dialled, and TLS libraries want to see the usage of that side.
    Purpose.PEER: (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
}
_ADVICE = {
    Purpose.SERVER: "`shadow-ca server HOST`",
    Purpose.ROBOT: "`shadow-ca robot NAME`",
    Purpose.PEER: "`shadow-ca peer NAME`",
}


@dataclass(frozen=True)
class Credentials:
    """What one side of the tunnel presents and what it trusts; checked by ``load_credentials``.

    Attributes:
        ca: the CA certificates that peers are checked against, at least one.
        chain: our own certificate first, then intermediates, if any.
        key: the private key of ``chain[0]``.
    """

    ca: list[x509.Certificate]
    chain: list[x509.Certificate]
    key: PrivateKey

    @property
    def fingerprint(self) -> str:
        """SHA-256 of our own certificate, in hexadecimal."""
        return self.chain[0].fingerprint(hashes.SHA256()).hex()


def validity(certificate: x509.Certificate) -> tuple[dt.datetime, dt.datetime]:
    """First and last moment of a certificate, as aware UTC (RFC 5280, section 4.1.2.5)."""
    if hasattr(certificate, "not_valid_before_utc"):  # cryptography 42
        return certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return (
        certificate.not_valid_before.replace(tzinfo=dt.UTC),
        certificate.not_valid_after.replace(tzinfo=dt.UTC),
    )


def serial_of(certificate: x509.Certificate) -> str:
    """The serial number in the form that our logs, lists and file names use."""
    return f"{certificate.serial_number:040x}"


def common_name(certificate: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """The subject's one common name, as it is: the caller checks its content.

    Raises:
        IdentityError: none, more than one, or a damaged subject.
    """
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except DAMAGE as error:
        raise IdentityError("the certificate's subject is damaged") from error
    if len(names) != 1:
        raise IdentityError(f"the certificate has {len(names) or 'no'} common names, not one")
    return str(names[0].value)


def has_usages(certificate: x509.Certificate, purpose: Purpose) -> bool:
    """Whether a certificate has the extended key usages of ``purpose``, whatever its name is.

    Stricter than RFC 5280, section 4.2.1.12: neither a missing extended key usage nor
    ``anyExtendedKeyUsage`` counts, because either would let a stolen robot key impersonate the server.
    """
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, *DAMAGE):
        return False
    return all(usage in usages for usage in purpose.usages)


def has_purpose(certificate: x509.Certificate, purpose: Purpose) -> bool:
    """Like ``has_usages``; and a peer's, which has those of the others, too, is kept apart by its name."""
    return has_usages(certificate, purpose) and is_named_peer(certificate) is (purpose is Purpose.PEER)


def is_named_peer(certificate: x509.Certificate) -> bool:
    """Whether a certificate's name is that of a fleet's server among its peers, ``peer:SERVER``."""
    try:
        return common_name(certificate).startswith(PEER)
    except IdentityError:
        return False


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether a certificate may issue others (RFC 5280, section 4.2.1.9)."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, *DAMAGE):
        return False


def alternative_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """The names that a certificate is for; none if they are damaged."""
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except (x509.ExtensionNotFound, *DAMAGE):
        return []


def host_names(certificate: x509.Certificate) -> list[str]:
    """The host names and addresses that a certificate is for, as text."""
    return [str(getattr(name, "value", name)) for name in alternative_names(certificate)]


def load_certificates(path: Path, what: str) -> list[x509.Certificate]:
    """The certificates of a PEM file, in the file's order, at least one.

    Args:
        path: the file; text around the certificates is ignored.
        what: what the file is to the reader of an error message, e.g. ``CA certificate``.

    Raises:
        ConfigError: the file cannot be read, or holds no certificate, or a damaged one.
    """
    return parse_certificates(read_file(path, what), path, what)


def parse_certificates(pem: bytes, path: Path, what: str) -> list[x509.Certificate]:
    """Like ``load_certificates``, for a file that has been read already.

    Raises:
        ConfigError: no certificate, or a damaged one.
    """
    blocks = _PEM.findall(pem)
    if not blocks:
        found = "a private key and no" if b"PRIVATE KEY-----" in pem else "no"
        raise ConfigError(f"{what} {path}: it holds {found} certificate in PEM form")
    if len(blocks) != pem.count(_BEGIN):
        raise ConfigError(f"{what} {path}: damaged: a certificate has no end")
    try:
        return [_complete(x509.load_pem_x509_certificate, block) for block in blocks]
    except DAMAGE as error:
        raise ConfigError(f"{what} {path}: damaged: not a certificate") from error


def parse_certificate(der: bytes) -> x509.Certificate:
    """A certificate that a peer has sent.

    Raises:
        IdentityError: it is damaged.
    """
    try:
        return _complete(x509.load_der_x509_certificate, der)
    except DAMAGE as error:
        raise IdentityError("the certificate is damaged") from error


def _complete(load: Callable[[bytes], x509.Certificate], data: bytes) -> x509.Certificate:
    with warnings.catch_warnings():
        # Oddities that it tolerates, such as a serial number of zero, do not belong in the log.
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        certificate = load(data)
        # Parsed only when asked for: ask here, where the file is known.
        _ = certificate.extensions, certificate.subject, certificate.issuer, certificate.public_key()
    return certificate


def load_credentials(
    ca_path: Path, crt_path: Path, key_path: Path, purpose: Purpose, now: dt.datetime
) -> Credentials:
    """Read and check everything that one side of the tunnel needs.

    Args:
        ca_path: PEM file with the CA's certificate, or with several while one CA replaces another.
        crt_path: PEM file with our certificate, then intermediates, if any.
        key_path: PEM file with our private key.
        purpose: what we are.
        now: the time to judge by, aware.

    Raises:
        ConfigError: a file is missing, unreadable or damaged; they do not belong together; a
            certificate has expired or is for something else.
        ClockError: a certificate is not valid yet.
    """
    check_presence(ca_path, crt_path, key_path, purpose.advice)
    credentials = read_credentials(Files(ca_path, crt_path, key_path), now)
    _check_purpose(credentials.chain[0], crt_path, purpose)
    return credentials


def read_credentials(files: "Files", now: dt.datetime) -> Credentials:
    """Like ``load_credentials``, errors included, whatever our certificate is for."""
    ca_path, crt_path, key_path = files.ca, files.crt, files.key
    ca = load_certificates(ca_path, "CA certificate")
    chain = load_certificates(crt_path, "certificate")
    key = load_private_key(key_path, "private key")
    for certificate in ca:
        check_authority(certificate, ca_path)
        check_length(certificate.public_key(), f"CA certificate {ca_path}")
    check_pair(chain[0], crt_path, key, key_path)
    for certificate in chain:
        check_length(certificate.public_key(), f"certificate {crt_path}")
        _check_signature(certificate, f"certificate {crt_path}")
        check_validity(certificate, f"certificate {crt_path}", now)
    check_curve(chain[0].public_key(), f"certificate {crt_path}")
    _check_issued(chain, crt_path, ca, ca_path, now)
    credentials = Credentials(ca, chain, key)
    _check_presentable(credentials, crt_path)
    return credentials


def _check_presentable(credentials: Credentials, path: Path) -> None:
    """Check that OpenSSL accepts what cryptography has read, and that it is not too large for peers."""
    size = sum(len(certificate.public_bytes(Encoding.DER)) for certificate in credentials.chain)
    if len(credentials.chain) > SHOWN_MAX or size > SHOWN_BYTES_MAX:
        raise ConfigError(
            f"certificate {path}: {len(credentials.chain)} certificates of {size} bytes in all, and peers "
            f"take {SHOWN_MAX} of {SHOWN_BYTES_MAX}: leave only our own and its intermediates there"
        )
    try:
        present(SSL.Context(SSL.TLS_METHOD), credentials.chain, credentials.key)
    except (SSL.Error, crypto.Error) as error:
        raise ConfigError(
            f"certificate {path}: OpenSSL does not take it, or its key: {openssl_reason(error)}"
        ) from error


def check_pair(certificate: x509.Certificate, crt_path: Path, key: PrivateKey, key_path: Path) -> None:
    """Check that a certificate and a private key belong together.

    Raises:
        ConfigError: they do not, or the key may be used for RSASSA-PSS only.
    """
    if is_for_pss_only(certificate):
        raise ConfigError(
            f"{crt_path}: its key is for RSA-PSS only (id-RSASSA-PSS); "
            "take an EC key (P-256), or a plain RSA key"
        )
    if key_bytes(certificate.public_key()) != key_bytes(key.public_key()):
        raise ConfigError(
            f"private key {key_path} does not match certificate {crt_path} "
            "(in a chain our own certificate comes first)"
        )


def check_validity(certificate: x509.Certificate, what: str, now: dt.datetime) -> None:
    """Check that ``now`` lies within a certificate's validity.

    Raises:
        ConfigError: it has expired.
        ClockError: it is not valid yet: a robot without a battery-backed clock wakes up in the past.
    """
    start, end = validity(certificate)
    if now >= end:  # OpenSSL 3.0 refuses the last second, though RFC 5280 includes it
        raise ConfigError(f"{what} expired on {moment(end)}; make a new one with `shadow-ca`")
    if now < start:
        raise ClockError(
            f"{what} is not valid before {moment(start)}, and this machine's clock says {moment(now)}: "
            "is the clock right?"
        )


def moment(when: dt.datetime) -> str:
    """A point in time for humans, in UTC, to the second."""
    return f"{when.astimezone(dt.UTC):%Y-%m-%d %H:%M:%S} UTC"


def check_authority(certificate: x509.Certificate, path: Path) -> None:
    """Check that a certificate from a CA file is a CA's.

    Raises:
        ConfigError: it is not.
    """
    if not is_authority(certificate):
        raise ConfigError(f"CA certificate {path}: not a CA's certificate; `shadow-ca init` makes one")


def _check_signature(certificate: x509.Certificate, what: str) -> None:
    if certificate.signature_algorithm_oid in _WEAK_SIGNATURES:
        raise ConfigError(f"{what}: signed with MD5 or SHA-1; make a new one with `shadow-ca`")


def _check_purpose(certificate: x509.Certificate, path: Path, purpose: Purpose) -> None:
    if has_purpose(certificate, purpose):
        return
    kinds = (f"a {other.value}'s" for other in Purpose if has_purpose(certificate, other))
    kind = next(kinds, "neither a server's nor a robot's")
    raise ConfigError(f"{path} is {kind} certificate; a {purpose.value} needs one made by {purpose.advice}")


def _check_issued(
    chain: list[x509.Certificate], crt_path: Path, ca: list[x509.Certificate], ca_path: Path, now: dt.datetime
) -> None:
    """Check that a chain leads to one of the CAs (RFC 5280, section 6), as OpenSSL in a peer will do."""
    store = make_store(ca)
    store.set_time(now.astimezone(dt.UTC))
    try:
        verify_chain(store, chain)
    except crypto.X509StoreContextError as error:
        if error.errors[0] in {_X509_V_ERR_CERT_NOT_YET_VALID, _X509_V_ERR_CERT_HAS_EXPIRED}:
            # Those of the chain have been checked already, so it is one of those in the CA file.
            for certificate in ca:
                check_validity(certificate, f"CA certificate {ca_path}", now)
        raise ConfigError(
            f"certificate {crt_path} was not issued by the CA in {ca_path} ({error}); "
            "take both from the same CA"
        ) from error


@dataclass(frozen=True, slots=True)
class Files:
    """Where the certificates and the key are."""

    ca: Path
    crt: Path
    key: Path


def subject(common_name: str) -> x509.Name:
    """A certificate's owner."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
