"""Chains of certificates, as OpenSSL shows and verifies them (RFC 5280, section 6)."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import OpenSSL
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import SSL, crypto

_PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_EVP_PKEY_RSA_PSS = 912  # <openssl/obj_mac.h>: NID_rassaPss


def make_store(authorities: Iterable[x509.Certificate]) -> crypto.X509Store:
    """The CAs to check peers against."""
    store = crypto.X509Store()
    for authority in authorities:
        store.add_cert(crypto.X509.from_cryptography(authority))
    return store


def verify_chain(store: crypto.X509Store, chain: Sequence[x509.Certificate]) -> None:
    """Check that a chain, own certificate first, leads to a CA of the store (RFC 5280, section 6).

    Raises:
        crypto.X509StoreContextError: it does not.
    """
    leaf, *intermediates = (crypto.X509.from_cryptography(certificate) for certificate in chain)
    crypto.X509StoreContext(store, leaf, intermediates).verify_certificate()


def present(
    context: SSL.Context,
    chain: Sequence[x509.Certificate],
    key: _PrivateKey,
) -> None:
    """Give OpenSSL our certificate, its intermediates and its key, to show to peers.

    Args:
        context: what connections are made with.
        chain: our own certificate first.
        key: its private key.

    Raises:
        SSL.Error, crypto.Error: it does not take them, which ``load_credentials`` has made sure of.
    """
    # pyOpenSSL up to 24.2 (Debian 12) wants its own objects; later ones warn of exactly those.
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

    cryptography reads it as any other RSA key, with which the certificate then does not match in OpenSSL.
    """
    return crypto.X509.from_cryptography(certificate).get_pubkey().type() == _EVP_PKEY_RSA_PSS
