"""Which certificates were made from which.

The signer makes a certificate from one that a robot has, and its serial number follows from that one. So the
signer can find again what it has made, and revoking a certificate finds what was made from it.
"""

import hashlib
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes

SUCCESSORS_MAX = 8  # of one certificate


def successors(issuer: x509.Certificate, present: x509.Certificate) -> list[int]:
    """The serial numbers of certificates made from ``present`` by the CA ``issuer``, in order.

    Each has 159 bits, as RFC 5280, section 4.1.2.2 allows, and no two of a CA are the same.
    """
    key = x509.SubjectKeyIdentifier.from_public_key(issuer.public_key()).digest
    before = key + present.fingerprint(hashes.SHA256())
    digests = (hashlib.sha256(before + bytes([number])).digest() for number in range(SUCCESSORS_MAX))
    return [int.from_bytes(digest[:20], "big") >> 1 for digest in digests]


def descendants(
    issuer: x509.Certificate, ancestors: Sequence[x509.Certificate], issued: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """Those of ``issued`` that were made from one of ``ancestors``, or from one of these, and so on."""
    by_serial = {certificate.serial_number: certificate for certificate in issued}
    found: list[x509.Certificate] = []
    generation = list(ancestors)
    while generation:
        numbers = [serial for parent in generation for serial in successors(issuer, parent)]
        # Each is taken once, so there are no endless loops, whatever the folder holds.
        generation = [by_serial.pop(serial) for serial in numbers if serial in by_serial]
        found += generation
    return found
