"""The CA's list of revoked certificates: what goes on it, and that nothing is ever forgotten."""

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shadow.ca import authority as authorities
from shadow.ca import folder as folders
from shadow.ca import revocation
from shadow.ca.authority import Pair, Validity
from shadow.ca.folder import CA_CRL, load_issued
from shadow.ca.lineage import successors
from shadow.ca.revocation import NewList, _sign, alive, ending, find_certificates, load_list, make_list
from shadow.errors import ConfigError
from shadow.pki import keys
from shadow.pki.crl import LIST_MAX, load_revocations
from shadow.pki.files import write_files
from tests.support import now

DAY = dt.timedelta(days=1)


@pytest.fixture
def authority(tmp_path: Path) -> Pair:
    made = authorities.create_authority("Test CA", 100, now())
    write_files(folders.authority_files(tmp_path, made), force=False)
    return made


def issue(folder: Path, authority: Pair, name: str, days: int = 50, when: dt.datetime | None = None) -> Pair:
    leaf = authorities.issue_robot(authority, name, days, when or now())
    write_files(folders.leaf_files(folder, folder / "out", name, leaf), force=True)
    return leaf


def next_list(
    folder: Path,
    authority: Pair,
    *more: x509.Certificate,
    when: dt.datetime | None = None,
    write: bool = True,
) -> NewList:
    new = make_list(folder, authority, load_issued(folder), more, when or now(), 30)
    if write:
        write_files([new.file], force=True)
    return new


def find(folder: Path, authority: Pair, name: str, serial: int | None = None) -> list[x509.Certificate]:
    return find_certificates(load_issued(folder), authority.certificate, name, serial)


def test_each_list_repeats_the_one_before(authority: Pair, tmp_path: Path) -> None:
    assert load_list(tmp_path, authority.certificate) is None
    serials = set()
    for number, name in enumerate(("a", "b", "c"), start=1):
        leaf = issue(tmp_path, authority, name).certificate
        serials.add(leaf.serial_number)
        new = next_list(tmp_path, authority, leaf)
        assert (new.number, set(new.revoked), new.added) == (number, serials, [leaf])
        (read,) = load_revocations(tmp_path / CA_CRL, [authority.certificate]).lists
        assert (read.number, read.revoked) == (number, new.revoked)
        assert read.until == new.until
    again = next_list(tmp_path, authority)
    assert (again.number, set(again.revoked)) == (4, serials)


def test_the_list_says_whose_it_is(authority: Pair, tmp_path: Path) -> None:
    next_list(tmp_path, authority)
    listed = load_list(tmp_path, authority.certificate)
    assert listed is not None
    key = authority.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert (listed.issuer, listed.key) == (authority.certificate.subject, key)


def test_all_certificates_of_a_name_or_one(authority: Pair, tmp_path: Path) -> None:
    first, second = (issue(tmp_path, authority, "011").certificate for _ in range(2))
    issue(tmp_path, authority, "012")
    found = find(tmp_path, authority, "011")
    assert {one.serial_number for one in found} == {first.serial_number, second.serial_number}
    assert find(tmp_path, authority, "011", second.serial_number) == [second]
    with pytest.raises(ConfigError, match="no certificate of '012' has the serial number"):
        find(tmp_path, authority, "012", first.serial_number)


def test_one_certificate_and_what_was_made_from_it(authority: Pair, tmp_path: Path) -> None:
    """A thief of the one may have renewed it, and has the keys of the others."""
    first, other = (issue(tmp_path, authority, "011").certificate for _ in range(2))
    generation, made = first, []
    for number in (0, 5):
        serial = successors(authority.certificate, generation)[number]
        generation = authorities.renew_robot(
            authority, "011", keys.new_key().public_key(), serial, 50 * DAY, now()
        )
        write_files([folders.index_file(tmp_path, generation)], force=False)
        made.append(generation)
    assert find(tmp_path, authority, "011", first.serial_number) == [first, *made]
    assert find(tmp_path, authority, "011", made[0].serial_number) == made
    assert find(tmp_path, authority, "011", other.serial_number) == [other]


def test_a_name_that_nobody_has(authority: Pair, tmp_path: Path) -> None:
    issue(tmp_path, authority, "robot-011")
    with pytest.raises(ConfigError, match=r"issued nothing to 'robot-0111': did you mean robot-011\?"):
        find(tmp_path, authority, "robot-0111")
    with pytest.raises(ConfigError, match="issued nothing to 'zzz': `shadow-ca list` shows all names"):
        find(tmp_path, authority, "zzz")


def test_what_need_not_be_revoked(authority: Pair, tmp_path: Path) -> None:
    good = issue(tmp_path, authority, "good").certificate
    expired = issue(tmp_path, authority, "expired", 1, now() - 3 * DAY).certificate
    lately = issue(tmp_path, authority, "lately", 30, now() - 33 * DAY).certificate
    assert alive([good, expired, lately], (), now()) == [good, lately]
    assert ending([good, expired, lately], (), now(), 60 * DAY) == [good]
    assert next_list(tmp_path, authority, good, expired).added == [good]
    again = next_list(tmp_path, authority, good, expired)
    assert (again.added, set(again.revoked)) == ([], {good.serial_number})


def test_who_has_ended_leaves_the_list(authority: Pair, tmp_path: Path) -> None:
    """Not at once: clocks may be wrong. Not before a list was made after the end (RFC 5280, section 3.3)."""
    ends, stays = (issue(tmp_path, authority, "x", days).certificate for days in (5, 80))
    gone = issue(tmp_path, authority, "gone", 5).certificate
    next_list(tmp_path, authority, ends, stays, gone)
    folders.index_path(tmp_path, gone.serial_number).unlink()  # nobody knows when it ends
    assert len(next_list(tmp_path, authority, when=now() + 34 * DAY, write=False).revoked) == 3
    assert len(next_list(tmp_path, authority, when=now() + 36 * DAY).revoked) == 3
    left = next_list(tmp_path, authority, when=now() + 36.1 * DAY)
    assert set(left.revoked) == {stays.serial_number, gone.serial_number}
    assert len(next_list(tmp_path, authority, when=now() + 37 * DAY).revoked) == 2


@pytest.mark.long
def test_a_hundred_thousand_entries(authority: Pair, tmp_path: Path) -> None:
    known = {serial << 130: now().replace(microsecond=0) for serial in range(1, 100_001)}
    fleet = _sign(authority, 1, Validity(now(), now() + DAY), known)
    (tmp_path / CA_CRL).write_bytes(fleet)
    one = issue(tmp_path, authority, "another").certificate
    assert len(next_list(tmp_path, authority, one).revoked) == 100_001
    (read,) = load_revocations(tmp_path / CA_CRL, [authority.certificate]).lists
    assert read.revoked.items() > known.items()
    assert one.serial_number in read.revoked


def test_a_list_that_nobody_could_read_is_not_written(
    authority: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revocation, "_SIZE_MAX", 1024)
    fleet = [issue(tmp_path, authority, str(number)).certificate for number in range(20)]
    next_list(tmp_path, authority, *fleet[:3])
    before = (tmp_path / CA_CRL).read_bytes()
    why = "the list would have 20 entries, 1 KiB, and may have 1 KiB; nothing was revoked"
    with pytest.raises(ConfigError, match=why):
        next_list(tmp_path, authority, *fleet)
    assert (tmp_path / CA_CRL).read_bytes() == before


def test_a_server_can_read_the_longest_lists_of_two_cas() -> None:
    assert 2 * revocation._SIZE_MAX <= LIST_MAX


@pytest.mark.parametrize("content", [b"", b"-----BEGIN X509 CRL-----\n"])
def test_a_damaged_list_is_not_replaced(authority: Pair, tmp_path: Path, content: bytes) -> None:
    """A new one would let everybody in again who was on it."""
    (tmp_path / CA_CRL).write_bytes(content)
    with pytest.raises(ConfigError, match="revocation list"):
        next_list(tmp_path, authority)


def test_a_link_to_a_list_that_is_gone_is_not_replaced(authority: Pair, tmp_path: Path) -> None:
    """Nor taken for no list at all."""
    (tmp_path / CA_CRL).symlink_to("elsewhere.crl")
    with pytest.raises(ConfigError, match=r"revocation list .*ca\.crl: No such file"):
        next_list(tmp_path, authority)


def test_a_list_of_another_ca_is_not_replaced(authority: Pair, tmp_path: Path) -> None:
    other = authorities.create_authority("Other CA", 100, now())
    next_list(tmp_path, other)
    with pytest.raises(ConfigError, match="not signed by a CA that we trust"):
        next_list(tmp_path, authority)


def test_two_lists_in_the_file(authority: Pair, tmp_path: Path) -> None:
    pem = next_list(tmp_path, authority, write=False).file.data
    (tmp_path / CA_CRL).write_bytes(pem * 2)
    with pytest.raises(ConfigError, match="2 lists, and the CA writes one"):
        load_list(tmp_path, authority.certificate)
