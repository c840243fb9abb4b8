"""Certificate revocation lists (RFC 5280, section 5): reading them, and telling who is on them.

A file holds one list, or several while one CA replaces another. Each must be signed by a CA that we trust.
An outdated list still counts: to forget it because nobody has signed a newer one would let exactly those in
again whom it names.
"""

import datetime as dt
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import ConfigError
from ..text import shorten
from .certificates import DAMAGE, moment, serial_of
from .files import read_file
from .keys import key_bytes

LIST_MAX = 2**24  # bytes of a file: more than 300,000 entries, for two CAs while one replaces the other

_BEGIN = b"-----BEGIN X509 CRL-----"
_SEQUENCE, _UTC_TIME = 0x30, 0x17  # X.690, section 8
_ENTRIES = 2  # their place among the sequences of a list
_END = b"-----END X509 CRL-----"  # RFC 7468, section 6


@dataclass(frozen=True, slots=True)
class RevocationList:
    """One list.

    Attributes:
        issuer: subject of the CA that signed it.
        key: that CA's public key (SubjectPublicKeyInfo, DER): two CAs may have the same name.
        number: its CRL number, 0 if it has none; it grows with each list of a CA.
        since: when it was made, aware.
        until: when the next one is due, aware.
        revoked: when each certificate was revoked, by serial number.
        der: all of it, as it was signed; empty where nobody wants to pass it on.
    """

    issuer: x509.Name
    key: bytes
    number: int
    since: dt.datetime
    until: dt.datetime
    revoked: Mapping[int, dt.datetime]
    der: bytes = field(default=b"", compare=False, repr=False)

    @property
    def ca(self) -> str:
        """The CA's name, for a log line."""
        return shorten(self.issuer.rfc4514_string())

    def is_older_than(self, other: "RevocationList") -> bool:
        """True if ``other`` came later from the same CA."""
        return self.key == other.key and self.place < other.place

    @property
    def place(self) -> tuple[int, dt.datetime]:
        """Its place among the lists of its CA: a later one has a higher one."""
        return self.number, self.since


@dataclass(frozen=True, slots=True)
class Revocations:
    """All lists together."""

    lists: Sequence[RevocationList] = ()

    def reason(self, chain: Sequence[x509.Certificate]) -> str | None:
        """Why we must not let in a peer with these certificates, or None."""
        for certificate in chain:
            for listed in self.lists:
                when = listed.revoked.get(certificate.serial_number)
                if when is not None and listed.issuer == certificate.issuer:
                    return f"certificate {serial_of(certificate)} was revoked on {moment(when)}"
        return None

    def without_going_back(
        self, before: "Revocations", ca: Sequence[x509.Certificate]
    ) -> tuple["Revocations", list[RevocationList]]:
        """These lists, plus those of ``before`` that must stay; and which ones those are.

        Replacing a newer list by an old one must not let anybody in again. Nor must replacing the lists of
        two CAs by that of one: a list that is not there any more stays in use as long as we trust its CA.
        """
        trusted = {key_bytes(authority.public_key()) for authority in ca}
        here = {listed.key for listed in self.lists}
        latest = [_latest(listed, before.lists) for listed in self.lists]
        gone = [listed for listed in before.lists if listed.key in trusted - here]
        kept = [listed for listed in latest if listed not in self.lists]
        return Revocations([*latest, *gone]), [*kept, *gone]

    @property
    def first(self) -> RevocationList | None:
        """The list that is due to be replaced first; None without any list."""
        return min(self.lists, key=lambda listed: listed.until, default=None)

    def __len__(self) -> int:
        """How many certificates are revoked."""
        return sum(len(listed.revoked) for listed in self.lists)

    @property
    def numbers(self) -> str:
        """The numbers of the lists, for a log line; with the names of their CAs, if there are several."""
        if len(self.lists) == 1:
            return str(self.lists[0].number)
        return " and ".join(f"{listed.number} of {listed.ca}" for listed in self.lists)


def _latest(listed: RevocationList, others: Sequence[RevocationList]) -> RevocationList:
    for other in others:
        if listed.is_older_than(other):
            listed = other
    return listed


def find_revocations(
    path: Path, ca: Sequence[x509.Certificate], *, whole: bool = False
) -> Revocations | None:
    """Like ``load_revocations``; None if there is no such file, while its folder is there.

    A CA that has never revoked anybody need not have made a list. A file that exists but cannot be read, a
    dangling link included, is an error.

    Raises:
        ConfigError: as for ``load_revocations``, or the folder is missing.
    """
    try:
        return load_revocations(path, ca, whole=whole)
    except ConfigError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        if os.path.lexists(path) or not path.parent.is_dir():
            raise
        return None


def load_revocations(path: Path, ca: Sequence[x509.Certificate], *, whole: bool = False) -> Revocations:
    """The lists in a PEM file.

    Args:
        path: the file.
        ca: the CAs that may have signed them.
        whole: keep the lists themselves, too.

    Raises:
        ConfigError: it cannot be read, holds no list or a damaged or a partial one, or one of another CA.
    """
    pem = read_file(path, "revocation list", LIST_MAX)
    blocks = _blocks(pem)
    if not blocks or len(blocks) != pem.count(_BEGIN):
        what = "damaged: a list has no end" if blocks or _BEGIN in pem else "it holds no list in PEM form"
        raise ConfigError(f"revocation list {path}: {what}; `shadow-ca crl` makes one")
    what = f"revocation list {path}"
    return Revocations([_checked(block, x509.load_pem_x509_crl, what, ca, whole=whole) for block in blocks])


def read_list(der: bytes, what: str, authority: x509.Certificate) -> RevocationList:
    """A list in DER, whoever has passed it on: only the CA's signature counts.

    Args:
        der: the list; it is kept.
        what: what it is to the reader of an error message.
        authority: the CA that must have signed it.

    Raises:
        ConfigError: it is damaged, only a part of a list, or of another CA.
    """
    listed = _checked(der, x509.load_der_x509_crl, what, [authority], whole=False)
    return replace(listed, der=der)  # as it has come: to encode it again takes a fifth of all this time


def _blocks(pem: bytes) -> list[bytes]:
    found, position = [], 0
    while (start := pem.find(_BEGIN, position)) >= 0 and (end := pem.find(_END, start)) >= 0:
        position = end + len(_END)
        found.append(pem[start:position])
    return found


def _checked(
    data: bytes,
    load: Callable[[bytes], x509.CertificateRevocationList],
    what: str,
    ca: Sequence[x509.Certificate],
    *,
    whole: bool,
) -> RevocationList:
    try:  # parse everything, to find damage here, where it is known what is damaged
        parsed = load(data)
        (since, until), number = _dates(parsed), _number(parsed)
        _ = parsed.issuer
        # Before the entries: of a list that nobody has signed, they are not worth the time.
        signer = next((authority for authority in ca if _has_signed(authority, parsed)), None)
        revoked = _Entries(parsed) if signer is not None else {}
    except (*DAMAGE, IndexError) as error:
        raise ConfigError(f"{what}: damaged: not a revocation list") from error
    if signer is None:
        raise ConfigError(f"{what} was not signed by a CA that we trust; take the list of the same CA")
    # A delta, or a list of some kinds of certificates only, has a critical extension (section 5.2).
    if any(extension.critical for extension in parsed.extensions):
        raise ConfigError(f"{what} is only a part of a list; give the complete one")
    if until is None:  # section 5.1.2.5: MUST be there
        raise ConfigError(f"{what} does not say when the next one is due")
    key, der = key_bytes(signer.public_key()), parsed.public_bytes(Encoding.DER) if whole else b""
    return RevocationList(signer.subject, key, number, since, until, revoked, der)


def _has_signed(authority: x509.Certificate, parsed: x509.CertificateRevocationList) -> bool:
    if authority.subject != parsed.issuer:
        return False
    try:
        return parsed.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except DAMAGE:  # a kind of key that signs no lists, or no signature at all
        return False


def _number(parsed: x509.CertificateRevocationList) -> int:
    """The CRL number (section 5.2.3), 0 if there is none."""
    try:
        return parsed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def _dates(parsed: x509.CertificateRevocationList) -> tuple[dt.datetime, dt.datetime | None]:
    """When a list was made and when the next one is due, as aware UTC."""
    if hasattr(parsed, "last_update_utc"):  # cryptography 42
        return parsed.last_update_utc, parsed.next_update_utc
    until = parsed.next_update
    return parsed.last_update.replace(tzinfo=dt.UTC), until and until.replace(tzinfo=dt.UTC)


class _Entries(Mapping[int, dt.datetime]):
    """When each certificate on a list was revoked, as aware UTC, by serial number.

    The reason does not matter: a certificate "on hold" is no more trustworthy than any other.

    The library has checked the grammar (section 5.1). Getting 100,000 entries out of it, one object after the
    other, takes 3.5 s in Debian 12, and a server that reloads would stand still meanwhile. So we keep entries
    as they are in the list: the number and the date, each in DER.
    """

    def __init__(self, parsed: x509.CertificateRevocationList) -> None:
        entries = list(_find_entries(parsed.tbs_certlist_bytes))
        self._found = dict(entries)  # in a list of another CA one may come twice
        if len(entries) != len(parsed):
            raise ValueError("not the entries that the library has found")

    def __getitem__(self, serial: int) -> dt.datetime:
        return _date(self._found[_integer(serial)])

    def __contains__(self, serial: object) -> bool:
        return isinstance(serial, int) and _integer(serial) in self._found

    def __iter__(self) -> Iterator[int]:
        return (int.from_bytes(number, "big", signed=True) for number in self._found)

    def __len__(self) -> int:
        return len(self._found)


def _integer(number: int) -> bytes:
    """The content of an INTEGER: as few bytes as can hold it with its sign (X.690, section 8.3)."""
    return number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)


def _find_entries(der: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Number and date of each entry of a list without its signature; the rest of an entry does not matter."""
    position, _end = _inside(der, 0)
    sequences = []  # signature, issuer, revokedCertificates; numbers and dates come between them
    while position < len(der):
        start, end = _inside(der, position)
        if der[position] == _SEQUENCE:
            sequences.append((start, end))
        position = end
    position, end = sequences[_ENTRIES] if len(sequences) > _ENTRIES else (0, 0)
    while position < end:
        position, after = _inside(der, position)
        start, middle = _inside(der, position)
        yield der[start:middle], der[middle : middle + 2 + der[middle + 1]]
        position = after


def _inside(der: bytes, position: int) -> tuple[int, int]:
    """Where the content of the element at ``position`` begins and ends (X.690, section 8.1.3)."""
    size = der[position + 1]
    if size < 0x80:
        return position + 2, position + 2 + size
    start = position + 2 + (size & 0x7F)
    return start, start + int.from_bytes(der[position + 2 : start], "big")


def _date(element: bytes) -> dt.datetime:
    """UTCTime, with two digits for a year from 1950 to 2049, or GeneralizedTime (section 5.1.2.4)."""
    digits = element[2:-1].decode("ascii")
    if element[0] == _UTC_TIME:
        digits = ("20" if digits < "5" else "19") + digits
    year, rest = int(digits[:4]), digits[4:]
    month, day, hour, minute, second = (int(rest[place : place + 2]) for place in range(0, 10, 2))
    return dt.datetime(year, month, day, hour, minute, second, tzinfo=dt.UTC)
