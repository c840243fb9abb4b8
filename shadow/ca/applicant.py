"""Who requests a certificate from the CA's signer, and the proof of that."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import crypto

from ..errors import ConfigError, IdentityError, Refused
from ..names import check_robot_name
from ..pki.certificates import Purpose, common_name, has_purpose, parse_certificate
from ..pki.chains import make_store, verify_chain
from ..pki.grace import judged_at
from ..pki.request import check_proof, new_key_of
from ..wire.frames import Sign


@dataclass(frozen=True, slots=True)
class Applicant:
    """A robot that has proved who it is.

    Attributes:
        name: the robot's.
        chain: its present certificate, and those that vouch for it.
        key: the key that it wants the next certificate for.
    """

    name: str
    chain: list[x509.Certificate]
    key: ec.EllipticCurvePublicKey

    @property
    def present(self) -> x509.Certificate:
        """Its present certificate."""
        return self.chain[0]


def identify(request: Sign, authorities: Sequence[x509.Certificate], now: dt.datetime) -> Applicant:
    """Identify the requester, by its present certificate and the key of that.

    Args:
        request: the robot's.
        authorities: CAs that its present certificate may be from.
        now: the present, aware.

    Raises:
        Refused: the signer does not know it; the message is for the robot.
    """
    try:
        present = parse_certificate(request.certificate)
        name = check_robot_name(common_name(present))
    except (ConfigError, IdentityError) as error:
        raise Refused("bad-request", str(error)) from error
    if not has_purpose(present, Purpose.ROBOT):
        raise Refused("bad-request", "the certificate is not a robot's")
    store = make_store(authorities)
    store.set_time(judged_at(present, now))
    try:
        chain = verify_chain(store, [present])
    except crypto.X509StoreContextError as error:
        raise Refused("untrusted", f"the present certificate is not good here: {error}") from error
    check_proof(request, present)
    return Applicant(name, chain, new_key_of(request, name))
