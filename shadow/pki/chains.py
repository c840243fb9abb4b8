"""Chains of certificates, as OpenSSL presents and verifies them (RFC 5280, section 6)."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import OpenSSL
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import SSL, crypto

_PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

SHOWN_MAX = 10
"""Certificates that one side may show the other."""
SHOWN_BYTES_MAX = 2**14
"""Their total size in DER, in bytes."""

_EVP_PKEY_RSA_PSS = 912  # <openssl/obj_mac.h>: NID_rassaPss


def make_store(authorities: Iterable[x509.Certificate]) -> crypto.X509Store:
    """The CAs to check certificates against; see ``trust``."""
    store = crypto.X509Store()
    trust(store, authorities)
    return store


def trust(store: crypto.X509Store, authorities: Iterable[x509.Certificate]) -> None:
    """Make each of these CAs one that a chain may end with, whether it is a root or was issued by another.

    If only an intermediate is named, we trust what that one has issued, and nothing else under its root.
    """
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)  # X509_VERIFY_PARAM_set_flags(3)
    for authority in authorities:
        store.add_cert(crypto.X509.from_cryptography(authority))


def verify_chain(store: crypto.X509Store, chain: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """Check that a chain, own certificate first, leads to a CA of the store.

    Returns:
        The chain as it was verified: own certificate, the intermediates that were needed, whether they are
        in the chain or in the store, and the CA. This is the chain that counts, also for revocation.

    Raises:
        crypto.X509StoreContextError: it does not.
    """
    leaf, *others = (crypto.X509.from_cryptography(certificate) for certificate in chain)
    return _read(crypto.X509StoreContext(store, leaf, others).get_verified_chain())


def verified_chain(connection: SSL.Connection) -> list[x509.Certificate]:
    """The peer's chain as OpenSSL has verified it in the handshake; see ``verify_chain``.

    Raises:
        ValueError, or another of ``certificates.DAMAGE``: cryptography cannot read what OpenSSL can.
    """
    return _read(connection.get_verified_chain() or [])


def _read(chain: Sequence[crypto.X509]) -> list[x509.Certificate]:
    """The chain in cryptography's form; all but the leaf is shared by thousands of robots, once in memory."""
    if not chain:
        return []
    others = (crypto.dump_certificate(crypto.FILETYPE_ASN1, other) for other in chain[1:])
    return [chain[0].to_cryptography(), *map(_read_issuer, others)]


@functools.lru_cache(maxsize=64)
def _read_issuer(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


def present(
    context: SSL.Context,
    chain: Sequence[x509.Certificate],
    key: _PrivateKey,
) -> None:
    """Give OpenSSL our certificate, its intermediates and its key, to show to peers.

    Args:
        context: what connections are made from.
        chain: our own certificate first.
        key: its private key.

    Raises:
        SSL.Error, crypto.Error: it does not accept them; ``load_credentials`` has made sure that it does.
    """
    # pyOpenSSL up to 24.2 (Debian 12) wants its own objects; later versions warn about exactly those.
    own_certificate: Callable[[x509.Certificate], Any] = crypto.X509.from_cryptography
    own_key: Callable[[Any], Any] = crypto.PKey.from_cryptography_key
    if tuple(map(int, OpenSSL.__version__.split(".")[:2])) >= (24, 3):
        own_certificate = own_key = _unchanged
    leaf, *intermediates = chain
    context.use_certificate(own_certificate(leaf))
    for intermediate in intermediates:
        context.add_extra_chain_cert(own_certificate(intermediate))
    context.use_privatekey(own_key(key))
    context.check_privatekey()


def _unchanged(value: Any) -> Any:
    return value


def is_for_pss_only(certificate: x509.Certificate) -> bool:
    """Whether a certificate's key is restricted to RSASSA-PSS (RFC 4055, section 1.2).

    cryptography reads it like any other RSA key, which OpenSSL then finds not to match the certificate.
    """
    return crypto.X509.from_cryptography(certificate).get_pubkey().type() == _EVP_PKEY_RSA_PSS


def openssl_reason(error: Exception) -> str:
    """OpenSSL's own words for the last entry of its error queue: the outermost function's.

    ``error`` is pyOpenSSL's: ``SSL.Error`` or ``crypto.Error``.
    """
    queue = error.args[0] if error.args else None
    if isinstance(queue, list) and queue:
        return str(queue[-1][2])
    return "unexpected end" if isinstance(error, SSL.SysCallError) else "unknown error"
