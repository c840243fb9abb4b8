"""The CA's list of revoked certificates: what goes on it, and that nothing is ever forgotten."""

import datetime as dt
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shadow import pki
from shadow.crl import load_revocations
from shadow.errors import ConfigError
from shadow.files import write_files
from shadow.pki import Pair
from shadow.revoking import CA_CRL, find_certificates, load_list, make_list, revocable
from tests.support import now

DAY = dt.timedelta(days=1)


@pytest.fixture
def authority(tmp_path: Path) -> Pair:
    made = pki.create_authority("Test CA", 100, now())
    write_files(pki.authority_files(tmp_path, made), force=False)
    return made


def issue(folder: Path, authority: Pair, name: str, days: int = 50, when: dt.datetime | None = None) -> Pair:
    leaf = pki.issue_robot(authority, name, days, when or now())
    write_files(pki.leaf_files(folder, folder / "out", name, leaf), force=True)
    return leaf


def test_each_list_repeats_the_one_before(authority: Pair, tmp_path: Path) -> None:
    assert load_list(tmp_path, authority.certificate) is None
    serials = set()
    for number, name in enumerate(("a", "b", "c"), start=1):
        leaf = issue(tmp_path, authority, name).certificate
        serials.add(leaf.serial_number)
        new = make_list(tmp_path, authority, [leaf], (now(), 30))
        assert (new.number, set(new.revoked)) == (number, serials)
        write_files([new.file], force=True)
        (read,) = load_revocations(tmp_path / CA_CRL, [authority.certificate]).lists
        assert (read.number, read.revoked) == (number, new.revoked)
        assert read.until == new.until
    again = make_list(tmp_path, authority, [], (now(), 30))
    assert (again.number, set(again.revoked)) == (4, serials)


def test_the_list_says_whose_it_is(authority: Pair, tmp_path: Path) -> None:
    write_files([make_list(tmp_path, authority, [], (now(), 30)).file], force=True)
    listed = load_list(tmp_path, authority.certificate)
    assert listed is not None
    key = authority.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert (listed.issuer, listed.key) == (authority.certificate.subject, key)


def test_all_certificates_of_a_name_or_one(authority: Pair, tmp_path: Path) -> None:
    first, second = (issue(tmp_path, authority, "011").certificate for _ in range(2))
    issue(tmp_path, authority, "012")
    found = find_certificates(tmp_path, "011", None)
    assert {one.serial_number for one in found} == {first.serial_number, second.serial_number}
    assert find_certificates(tmp_path, "011", second.serial_number) == [second]
    with pytest.raises(ConfigError, match="no certificate of '012' has the serial number"):
        find_certificates(tmp_path, "012", first.serial_number)


def test_a_name_that_nobody_has(authority: Pair, tmp_path: Path) -> None:
    issue(tmp_path, authority, "robot-011")
    with pytest.raises(ConfigError, match=r"issued nothing to 'robot-0111': did you mean robot-011\?"):
        find_certificates(tmp_path, "robot-0111", None)
    with pytest.raises(ConfigError, match="issued nothing to 'zzz': `shadow-ca list` shows all names"):
        find_certificates(tmp_path, "zzz", None)


def test_what_need_not_be_revoked(authority: Pair, tmp_path: Path) -> None:
    good = issue(tmp_path, authority, "good").certificate
    expired = issue(tmp_path, authority, "expired", 1, now() - 3 * DAY).certificate
    assert revocable([good, expired], None, now()) == [good]
    write_files([make_list(tmp_path, authority, [good], (now(), 30)).file], force=True)
    assert revocable([good], load_list(tmp_path, authority.certificate), now()) == []


@pytest.mark.parametrize("content", [b"", b"-----BEGIN X509 CRL-----\n"])
def test_a_damaged_list_is_not_replaced(authority: Pair, tmp_path: Path, content: bytes) -> None:
    """A new one would let everybody in again who was on it."""
    (tmp_path / CA_CRL).write_bytes(content)
    with pytest.raises(ConfigError, match="revocation list"):
        make_list(tmp_path, authority, [], (now(), 30))


def test_a_list_of_another_ca_is_not_replaced(authority: Pair, tmp_path: Path) -> None:
    other = pki.create_authority("Other CA", 100, now())
    write_files([make_list(tmp_path, other, [], (now(), 30)).file], force=True)
    with pytest.raises(ConfigError, match="not signed by a CA that we trust"):
        make_list(tmp_path, authority, [], (now(), 30))


def test_two_lists_in_the_file(authority: Pair, tmp_path: Path) -> None:
    pem = make_list(tmp_path, authority, [], (now(), 30)).file.data
    (tmp_path / CA_CRL).write_bytes(pem * 2)
    with pytest.raises(ConfigError, match="2 lists, and the CA writes one"):
        load_list(tmp_path, authority.certificate)
