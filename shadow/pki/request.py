"""Renewing a robot's certificate: the robot's request, and how it proves its identity to the signer.

The request is a PKCS #10 of the new key (RFC 2986). It comes with the present certificate and a signature of
the request by the present key, so the signer need not trust the server that relays all this: a compromised
server cannot obtain a certificate.
"""

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import IdentityError, LocalError, Refused
from ..wire.frames import BLOB_MAX, Sign
from .certificates import DAMAGE, Credentials, common_name, subject

# Put in front of the signed data: a signature made for this is valid for nothing else, and none made for
# something else, such as TLS (RFC 5246, section 7.4.8), is valid for this.
_CONTEXT = b"shadow-tunnel renewal 1\0"

BAD_REQUEST = "bad-request"

CODES = frozenset(
    {
        *("early", "revoked", "untrusted", "proof", "name-mismatch", "limit", "ca-ends", BAD_REQUEST),
        *("ca", "no-signer", "timeout", "busy", "damaged", "internal"),
    }
)
"""Why a robot is refused a certificate, in one word; ``docs/PROTOCOL.md`` lists them, too."""


def known_code(code: str) -> str:
    """A peer's code if we know it, else ``other``: peers must not choose the labels of our counters."""
    return code if code in CODES else "other"


def make_request(robot: str, new_key: ec.EllipticCurvePrivateKey, present: Credentials) -> Sign:
    """What a robot sends to get a certificate for ``new_key``.

    Raises:
        LocalError: its present certificate is too large for a frame.
    """
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject(robot))
    request = builder.sign(new_key, hashes.SHA256()).public_bytes(Encoding.DER)
    certificate = present.chain[0].public_bytes(Encoding.DER)
    if len(certificate) > BLOB_MAX:
        raise LocalError(f"the certificate has {len(certificate)} bytes, and {BLOB_MAX} can be renewed")
    return Sign(request, certificate, prove(request, present))


def prove(request: bytes, present: Credentials) -> bytes:
    """Sign a request with the key of the present certificate: ECDSA, or RSASSA-PSS, with SHA-256."""
    message = _CONTEXT + request
    if isinstance(present.key, rsa.RSAPrivateKey):
        return present.key.sign(message, _pss(), hashes.SHA256())
    return present.key.sign(message, ec.ECDSA(hashes.SHA256()))


def _pss() -> padding.PSS:
    return padding.PSS(padding.MGF1(hashes.SHA256()), hashes.SHA256.digest_size)


def check_proof(request: Sign, present: x509.Certificate) -> None:
    """Make sure that the requester has the key of the present certificate.

    Raises:
        Refused: it does not.
    """
    key, message = present.public_key(), _CONTEXT + request.request
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(request.proof, message, _pss(), hashes.SHA256())
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(request.proof, message, ec.ECDSA(hashes.SHA256()))
        else:
            raise Refused("proof", "the present certificate has neither an EC nor an RSA key")
    except InvalidSignature as error:
        raise Refused("proof", "the request is not signed with the key of the present certificate") from error


def new_key_of(request: Sign, robot: str) -> ec.EllipticCurvePublicKey:
    """The key that a request asks a certificate for.

    Raises:
        Refused: the request is damaged, for another robot, or for a kind of key that we do not certify.
    """
    try:
        parsed = x509.load_der_x509_csr(request.request)
        genuine, name, key = parsed.is_signature_valid, common_name(parsed), parsed.public_key()
    except (*DAMAGE, IdentityError) as error:
        raise Refused(BAD_REQUEST, "the request for a certificate is damaged") from error
    if not genuine:
        raise Refused(BAD_REQUEST, "the request was not signed with the new key")
    if name != robot:
        raise Refused("name-mismatch", f"the request is for {name!r}, and the certificate of {robot!r}")
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)):
        raise Refused(BAD_REQUEST, "the new key is not an EC key on the curve P-256")
    return key
