"""What the CA's signer does: renews the certificate of a robot that proves who it is, and nothing else.

Its whole memory is the CA's folder. A certificate has at most ``SUCCESSORS_MAX`` successors, and their serial
numbers follow from its own (``lineage``). So a robot that asks again for the same key, since the answer got
lost, is given the same certificate again, whenever that is; and who floods the signer with keys soon has no
successor left.
"""

import datetime as dt
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import crypto

from .. import events
from ..errors import ConfigError, IdentityError, Refused
from ..names import check_robot_name
from ..pki.certificates import (
    Purpose,
    common_name,
    has_purpose,
    judged_at,
    load_certificates,
    moment,
    parse_certificate,
    serial_of,
    validity,
)
from ..pki.chains import make_store, verify_chain
from ..pki.crl import Revocations, load_revocations
from ..pki.files import find_files, is_there, write_files
from ..pki.keys import key_bytes
from ..pki.request import check_proof, new_key_of
from ..wire.frames import Sign
from .authority import Pair, renew_robot
from .folder import CA_CRT, index_file, index_path, load_authority
from .lineage import SUCCESSORS_MAX, successors
from .locking import locked

_PATIENCE = 5.0  # seconds for our turn in the CA's folder: systemd ends a process that takes 15


@dataclass(frozen=True, slots=True)
class _Asking:
    """A robot that has proved who it is: its certificate, with those that vouch for it, and its name."""

    chain: list[x509.Certificate]
    name: str

    @property
    def present(self) -> x509.Certificate:
        return self.chain[0]


@dataclass(frozen=True, slots=True)
class _Place:
    """What the certificate for a key is to be; or the certificate, if it was made before."""

    serial: int
    key: ec.EllipticCurvePublicKey
    found: x509.Certificate | None


def renew(folder: Path, request: Sign, now: dt.datetime) -> x509.Certificate:
    """The next certificate of the robot that asks.

    It is on the disk when this returns.

    Args:
        folder: the CA's. The first certificate in ``ca.crt`` issues; robots of the others, former CAs, may
            ask as well. Every ``*.crl`` there counts.
        request: the robot's.
        now: the present, aware.

    Raises:
        Refused: the robot may not have one; the message is for it.
        ShadowError: the CA cannot issue any.
    """
    authority = load_authority(folder, now)
    authorities = load_certificates(folder / CA_CRT, "CA certificate")
    asking = _identify(request, authorities, now)
    key = new_key_of(request, asking.name)
    # Nobody is revoked between the look at the lists and the certificate: who revokes will find it.
    with locked(folder, _PATIENCE):
        revocations = _revocations(folder, authorities)
        if why := revocations.reason(asking.chain):
            raise Refused("revoked", why)
        place = _place(folder, authority, asking.present, key)
        if place.found is None:
            return _issue(folder, authority, asking, place, now)
    if why := revocations.reason([place.found]):
        raise Refused("revoked", f"{why}; it was made from the present one")
    _log(place.found, "given out again")
    return place.found


def _place(
    folder: Path, authority: Pair, present: x509.Certificate, key: ec.EllipticCurvePublicKey
) -> _Place:
    """Where the certificate for ``key`` belongs, and it itself if it was made before.

    Raises:
        Refused: all successors of ``present`` were made for other keys.
    """
    for serial in successors(authority.certificate, present):
        path = index_path(folder, serial)
        if not is_there(path, "issued certificate"):
            return _Place(serial, key, None)
        found = load_certificates(path, "issued certificate")[0]
        if key_bytes(found.public_key()) == key_bytes(key):
            return _Place(serial, key, found)
    raise Refused("limit", f"{SUCCESSORS_MAX} certificates were made from this one; see `shadow-ca list`")


def _identify(request: Sign, authorities: Sequence[x509.Certificate], now: dt.datetime) -> _Asking:
    """Who asks, by the present certificate and its key."""
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
    return _Asking(chain, name)


def _revocations(folder: Path, authorities: Sequence[x509.Certificate]) -> Revocations:
    paths = find_files(folder, ".crl", "CA folder")
    return Revocations([each for path in paths for each in load_revocations(path, authorities).lists])


def _issue(
    folder: Path, authority: Pair, asking: _Asking, place: _Place, now: dt.datetime
) -> x509.Certificate:
    """Issue the next one.

    Raises:
        Refused: it is too early for that, or the CA itself ends.
    """
    start, end = validity(asking.present)
    half = start + (end - start) / 2
    if now < half:
        raise Refused("early", f"the present certificate is not to be renewed before {moment(half)}")
    certificate = renew_robot(authority, asking.name, place.key, place.serial, end - start, now)
    if validity(certificate)[1] <= end:
        last = validity(authority.certificate)[1]
        raise Refused("ca-ends", f"the CA ends on {moment(last)}: it is time for a new one")
    write_files([index_file(folder, certificate)], force=False)
    _log(certificate, "issued")
    return certificate


def _log(certificate: x509.Certificate, verb: str) -> None:
    name, serial = common_name(certificate), serial_of(certificate)
    end = validity(certificate)[1]
    text = f"robot {name}: certificate {serial} {verb}, valid until {moment(end)}"
    expires = end.isoformat()
    events.log(events.CertificateIssued(robot=name, serial=serial, expires=expires), logging.INFO, text)
