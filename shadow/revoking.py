"""The CA's list of revoked certificates: ``ca.crl`` in its folder, the only place where they are noted down.

Each new list repeats what the one before says, with a larger number (RFC 5280, section 5.2.3).
"""

import datetime as dt
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from .certificates import common_name, validity
from .crl import RevocationList, load_revocations
from .errors import ConfigError
from .files import PUBLIC, NewFile
from .names import shorten
from .pki import Pair, key_identifier, load_issued

CA_CRL = "ca.crl"


@dataclass(frozen=True, slots=True)
class NewList:
    """A list that is yet to be written.

    Attributes:
        number: its number.
        until: when the next one is due.
        revoked: when each certificate was revoked, by serial number.
        file: what is to be written.
    """

    number: int
    until: dt.datetime
    revoked: Mapping[int, dt.datetime]
    file: NewFile


def load_list(folder: Path, ca: x509.Certificate) -> RevocationList | None:
    """The list in the CA's folder, or None if nothing has ever been revoked.

    Raises:
        ConfigError: it is damaged, or another CA's.
    """
    path = folder / CA_CRL
    if not path.exists():
        return None
    lists = load_revocations(path, [ca]).lists
    if len(lists) > 1:
        raise ConfigError(f"revocation list {path}: {len(lists)} lists, and the CA writes one")
    return lists[0]


def find_certificates(folder: Path, name: str, serial: int | None) -> list[x509.Certificate]:
    """What the CA has issued to ``name``; with a ``serial``, only the certificate that has it.

    Raises:
        ConfigError: nothing, or the CA's records are damaged.
    """
    issued = load_issued(folder)
    named = [certificate for certificate in issued if common_name(certificate) == name]
    if not named:
        known = {common_name(certificate) for certificate in issued}
        near = ", ".join(difflib.get_close_matches(name, known, n=3))
        hint = f"did you mean {near}?" if near else "`shadow-ca list` shows all names"
        raise ConfigError(f"the CA has issued nothing to {shorten(name)}: {hint}")
    if serial is None:
        return named
    found = [certificate for certificate in named if certificate.serial_number == serial]
    if not found:
        raise ConfigError(f"no certificate of {shorten(name)} has the serial number {serial:040x}")
    return found


def revocable(
    certificates: Sequence[x509.Certificate], known: RevocationList | None, now: dt.datetime
) -> list[x509.Certificate]:
    """Those that have neither expired nor been revoked."""
    revoked = known.revoked if known else {}
    return [
        certificate
        for certificate in certificates
        if validity(certificate)[1] > now and certificate.serial_number not in revoked
    ]


def make_list(
    folder: Path,
    authority: Pair,
    more: Sequence[x509.Certificate],
    term: tuple[dt.datetime, int],
) -> NewList:
    """The next list: what the one before says, and ``more``.

    Args:
        folder: the CA's.
        authority: it.
        more: certificates to be revoked.
        term: the present, aware, and the days until the next list is due.

    Raises:
        ConfigError: the list before is damaged.
    """
    before = load_list(folder, authority.certificate)
    now, days = term[0].replace(microsecond=0), term[1]
    revoked = dict(before.revoked) if before else {}
    revoked |= {certificate.serial_number: now for certificate in more}
    number = before.number + 1 if before else 1
    until = now + dt.timedelta(days=days)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now)
        .next_update(until)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(key_identifier(authority.certificate), critical=False)
    )
    for serial, when in revoked.items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when)
        builder = builder.add_revoked_certificate(entry.build())
    pem = builder.sign(authority.key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return NewList(number, until, revoked, NewFile(folder / CA_CRL, pem, PUBLIC))
