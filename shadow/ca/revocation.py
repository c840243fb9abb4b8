"""The CA's list of revoked certificates: ``ca.crl`` in its folder, the only place where they are recorded.

Each new list repeats the entries of the previous one, with a larger number (RFC 5280, section 5.2.3).
"""

import datetime as dt
import difflib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import ConfigError
from ..pki.certificates import common_name, validity
from ..pki.crl import LIST_MAX, RevocationList, load_revocations
from ..pki.files import PUBLIC, NewFile, is_there
from ..pki.grace import renewable_until
from ..text import shorten
from .authority import Pair, Validity, key_identifier
from .folder import CA_CRL
from .lineage import descendants

_SIZE_MAX = LIST_MAX // 2  # bytes, some 150,000 entries: a server's file may hold the lists of two CAs
_KEPT = dt.timedelta(days=30)  # for which an entry stays on the list after the certificate has expired


@dataclass(frozen=True, slots=True)
class NewList:
    """A list that has not been written yet.

    Attributes:
        number: its number.
        until: when the next one is due.
        revoked: when each certificate was revoked, by serial number.
        added: the certificates that the previous list did not have.
        file: the file to write.
    """

    number: int
    until: dt.datetime
    revoked: Mapping[int, dt.datetime]
    added: Sequence[x509.Certificate]
    file: NewFile


def load_list(folder: Path, ca: x509.Certificate) -> RevocationList | None:
    """The list in the CA's folder, or None if nothing has ever been revoked.

    Raises:
        ConfigError: it is damaged, or another CA's.
    """
    path = folder / CA_CRL
    if not is_there(path, "revocation list"):
        return None
    lists = load_revocations(path, [ca]).lists
    if len(lists) > 1:
        raise ConfigError(f"revocation list {path}: {len(lists)} lists, and the CA writes one")
    return lists[0]


def find_certificates(
    issued: Sequence[x509.Certificate], ca: x509.Certificate, name: str, serial: int | None
) -> list[x509.Certificate]:
    """What the CA has issued to ``name``.

    With a ``serial``, only the certificate that has it, and what was made from that: anyone who has the key
    of the one may have renewed it, and then has the keys of the others, too.

    Raises:
        ConfigError: it has issued nothing like that.
    """
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
    return found + descendants(ca, found, issued)


def alive(
    certificates: Sequence[x509.Certificate], revoked: Container[int], now: dt.datetime
) -> list[x509.Certificate]:
    """Those that are not revoked and can still be used, if only for renewal."""
    return [
        certificate
        for certificate in certificates
        if renewable_until(certificate) > now and certificate.serial_number not in revoked
    ]


def ending(
    certificates: Sequence[x509.Certificate], revoked: Container[int], now: dt.datetime, within: dt.timedelta
) -> list[x509.Certificate]:
    """For each name the valid certificate that expires last, if it expires ``within`` that time from now."""
    last: dict[str, x509.Certificate] = {}
    for certificate in alive(certificates, revoked, now):
        name = common_name(certificate)
        if validity(certificate)[1] <= now:
            continue
        if name not in last or validity(certificate)[1] > validity(last[name])[1]:
            last[name] = certificate
    return [certificate for certificate in last.values() if validity(certificate)[1] - now <= within]


def make_list(
    folder: Path,
    authority: Pair,
    issued: Sequence[x509.Certificate],
    more: Sequence[x509.Certificate],
    now: dt.datetime,
    days: int,
) -> NewList:
    """The next list: the entries of the previous one, and ``more``.

    Call this, and write the list, under the lock on the folder: two lists made at the same time would each
    lack what is new on the other.

    Args:
        folder: the CA's.
        authority: the CA.
        issued: what it has issued; those of them that expired long ago are left out of the list.
        more: certificates to revoke, unless they are revoked already or have expired.
        now: the present, aware.
        days: until the next list is due.

    Raises:
        ConfigError: the previous list is damaged, or the new one would be too long.
    """
    before = load_list(folder, authority.certificate)
    now = now.replace(microsecond=0)
    revoked = _still_needed(before, issued, now) if before else {}
    added = alive(more, revoked, now)
    revoked |= {certificate.serial_number: now for certificate in added}
    number = before.number + 1 if before else 1
    dates = Validity(now, now + dt.timedelta(days=days))
    pem = _sign(authority, number, dates, revoked)
    if len(pem) > _SIZE_MAX:
        raise ConfigError(
            f"the list would have {len(revoked)} entries, {len(pem) // 1024} KiB, and may have "
            f"{_SIZE_MAX // 1024} KiB; nothing was revoked; see CA ROLL-OVER in shadow-ca(1)"
        )
    return NewList(number, dates.end, revoked, added, NewFile(folder / CA_CRL, pem, PUBLIC, folder))


def _still_needed(
    before: RevocationList, issued: Sequence[x509.Certificate], now: dt.datetime
) -> dict[int, dt.datetime]:
    """The entries of a list, without certificates that nobody accepts any more.

    Such an entry was on a list that was made after the certificate expired (RFC 5280, section 3.3), and some
    time has passed since then, to allow for wrong clocks. A certificate that we do not know stays.
    """
    last = min(before.since, now - _KEPT)
    gone = {one.serial_number for one in issued if validity(one)[1] < last}
    return {serial: when for serial, when in before.revoked.items() if serial not in gone}


def _sign(authority: Pair, number: int, dates: Validity, revoked: Mapping[int, dt.datetime]) -> bytes:
    entries = [
        x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
        for serial, when in revoked.items()
    ]
    # All at once: add_revoked_certificate() copies the whole list each time.
    builder = (
        x509.CertificateRevocationListBuilder(revoked_certificates=entries)
        .issuer_name(authority.certificate.subject)
        .last_update(dates.start)
        .next_update(dates.end)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(key_identifier(authority.certificate), critical=False)
    )
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(Encoding.PEM)
