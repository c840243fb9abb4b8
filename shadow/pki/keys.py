"""Keys: reading private ones, and which kinds TLS can use."""

from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from ..errors import ConfigError
from .files import read_file

if TYPE_CHECKING:  # cryptography 38 has another name for it
    from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_DAMAGE = (ValueError, UnsupportedAlgorithm, InternalError)

# Below these OpenSSL's security level 2, the default of today's distributions, refuses to load a
# certificate (SSL_CTX_set_security_level(3): 112 bits).
_RSA_BITS_MIN = 2048
_EC_BITS_MIN = 224

# The curves on which OpenSSL accepts signatures by default (SSL_CTX_set1_groups_list(3)); with any other,
# every handshake fails, with "no shared cipher" on one side or "wrong curve" on the other.
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


def parse_private_key(pem: bytes, path: Path, what: str) -> PrivateKey:
    """A private key in PEM form, EC or RSA.

    Args:
        pem: the file.
        path: its name, for the error message.
        what: what it is to the reader of that message, e.g. ``CA key``.

    Raises:
        ConfigError: no private key, an encrypted or damaged one, or one of another kind.
    """
    if b"PRIVATE KEY-----" not in pem:
        raise ConfigError(f"{what} {path}: it holds no private key in PEM form")
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:  # how cryptography says that a password is needed
        raise ConfigError(
            f"{what} {path}: encrypted; decrypt it (`openssl pkey`), or hand it over "
            "with systemd's LoadCredentialEncrypted="
        ) from error
    except BaseException as error:
        # A secret longer than the curve's numbers causes an InternalError in cryptography 38, and a panic of
        # its Rust code in 43, which is no Exception and has no public name. Neither may end a daemon that
        # reloads.
        if not (isinstance(error, _DAMAGE) or type(error).__name__ == "PanicException"):
            raise
        raise ConfigError(f"{what} {path}: damaged: not a private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ConfigError(f"{what} {path}: neither an EC nor an RSA key")
    return key


def key_bytes(key: "CertificatePublicKeyTypes") -> bytes:
    """A public key in comparable form: SubjectPublicKeyInfo in DER (RFC 5280, section 4.1.2.7)."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def check_length(key: "CertificatePublicKeyTypes", what: str) -> None:
    """Check that a key is long enough for OpenSSL to load its certificate.

    Args:
        key: the key.
        what: the certificate that it is in, for the error message.

    Raises:
        ConfigError: it is too short.
    """
    if (isinstance(key, rsa.RSAPublicKey) and key.key_size < _RSA_BITS_MIN) or (
        isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size < _EC_BITS_MIN
    ):
        raise ConfigError(f"{what}: its key is too short; make a new one with `shadow-ca`")


def check_curve(key: "CertificatePublicKeyTypes", what: str) -> None:
    """Check that handshakes accept signatures by a key; those of a CA may be on any curve.

    Raises:
        ConfigError: it is an EC key on a curve that they do not accept.
    """
    if isinstance(key, ec.EllipticCurvePublicKey) and not isinstance(key.curve, _CURVES):
        raise ConfigError(
            f"{what}: its key is on the curve {key.curve.name}, which no handshake takes; "
            "take one on P-256 (prime256v1), as `shadow-ca` makes them, or on P-384 or P-521"
        )


def load_private_key(path: Path, what: str) -> PrivateKey:
    """The private key of a PEM file, EC or RSA.

    Raises:
        ConfigError: the file cannot be read, or holds no private key, an encrypted or damaged one, or one of
            another kind.
    """
    return parse_private_key(read_file(path, what), path, what)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A private key of the kind that all our certificates use."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: PrivateKey) -> bytes:
    """A private key as we write it: PKCS #8, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
