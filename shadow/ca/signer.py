"""What the CA's signer does: renews the certificate of a robot that proves who it is, and nothing else.

Its only memory is the CA's folder. A certificate has at most ``SUCCESSORS_MAX`` successors, and their serial
numbers follow from its own (``lineage``). So a robot that asks again for the same key because the answer got
lost gets the same certificate again, whenever that is; and anyone who floods the signer with keys soon has no
successor left.
"""

import datetime as dt
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from .. import events
from ..errors import Refused
from ..pki.certificates import (
    common_name,
    load_certificates,
    moment,
    serial_of,
    validity,
)
from ..pki.crl import Revocations, load_revocations
from ..pki.files import find_files, is_there, write_files
from ..pki.keys import key_bytes
from ..wire.frames import Sign
from .applicant import Applicant, identify
from .authority import Pair, renew_robot
from .folder import CA_CRT, index_file, index_path, load_authority
from .lineage import SUCCESSORS_MAX, successors
from .locking import locked

_PATIENCE = 5.0  # seconds for our turn in the CA's folder: systemd ends a process that takes 15


@dataclass(frozen=True, slots=True)
class _Place:
    """The serial number of a certificate, and the certificate itself if it was made before."""

    serial: int
    found: x509.Certificate | None


def renew(folder: Path, request: Sign, now: dt.datetime) -> x509.Certificate:
    """The next certificate of the requesting robot.

    It is on disk when this returns.

    Args:
        folder: the CA's. The first certificate in ``ca.crt`` issues; robots of the others, former CAs, may
            ask as well. Every ``*.crl`` there counts.
        request: the robot's.
        now: the present, aware.

    Raises:
        Refused: the robot may not have one; the message is for the robot.
        ShadowError: the CA cannot issue any.
    """
    authority = load_authority(folder, now)
    authorities = load_certificates(folder / CA_CRT, "CA certificate")
    applicant = identify(request, authorities, now)
    # Under the lock nobody can be revoked between the check of the lists and the new certificate: a later
    # revocation will find it.
    with locked(folder, _PATIENCE):
        revocations = _revocations(folder, authorities)
        if why := revocations.reason(applicant.chain):
            raise Refused("revoked", why)
        place = _place(folder, authority, applicant)
        if place.found is None:
            return _issue(folder, authority, applicant, place, now)
    if why := revocations.reason([place.found]):
        raise Refused("revoked", f"{why}; it was made from the present one")
    _log(place.found, "given out again")
    return place.found


def _place(folder: Path, authority: Pair, applicant: Applicant) -> _Place:
    """Where the certificate for the applicant's key belongs, and the certificate if it was made before.

    Raises:
        Refused: all successors of its present certificate were made for other keys.
    """
    for serial in successors(authority.certificate, applicant.present):
        path = index_path(folder, serial)
        if not is_there(path, "issued certificate"):
            return _Place(serial, None)
        found = load_certificates(path, "issued certificate")[0]
        if key_bytes(found.public_key()) == key_bytes(applicant.key):
            return _Place(serial, found)
    raise Refused("limit", f"{SUCCESSORS_MAX} certificates were made from this one; see `shadow-ca list`")


def _revocations(folder: Path, authorities: Sequence[x509.Certificate]) -> Revocations:
    paths = find_files(folder, ".crl", "CA folder")
    return Revocations([each for path in paths for each in load_revocations(path, authorities).lists])


def _issue(
    folder: Path, authority: Pair, applicant: Applicant, place: _Place, now: dt.datetime
) -> x509.Certificate:
    """Issue the next one.

    Raises:
        Refused: it is too early for that, or the CA itself expires.
    """
    start, end = validity(applicant.present)
    half = start + (end - start) / 2
    if now < half:
        raise Refused("early", f"the present certificate cannot be renewed before {moment(half)}")
    certificate = renew_robot(authority, applicant.name, applicant.key, place.serial, end - start, now)
    if validity(certificate)[1] <= end:
        last = validity(authority.certificate)[1]
        raise Refused("ca-ends", f"the CA expires on {moment(last)}: it is time for a new one")
    write_files([index_file(folder, certificate)], force=False)
    _log(certificate, "issued")
    return certificate


def _log(certificate: x509.Certificate, verb: str) -> None:
    name, serial = common_name(certificate), serial_of(certificate)
    end = validity(certificate)[1]
    text = f"robot {name}: certificate {serial} {verb}, valid until {moment(end)}"
    expires = end.isoformat()
    events.log(events.CertificateIssued(robot=name, serial=serial, expires=expires), logging.INFO, text)
