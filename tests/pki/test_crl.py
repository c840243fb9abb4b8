"""Lists of revoked certificates: who is on them, and which lists are refused."""

import base64
import contextlib
import datetime as dt
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.errors import ConfigError
from shadow.pki import crl
from shadow.pki.certificates import load_certificates
from shadow.pki.crl import LIST_MAX, Revocations, load_revocations, read_list
from tests.support import Authority, make_list, now

KEY = ec.generate_private_key(ec.SECP256R1())
WHEN = dt.datetime(2026, 5, 4, 3, 2, 1, tzinfo=dt.UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def certificate(authority: Authority, name: str) -> x509.Certificate:
    return load_certificates(authority.robot(name)[0], "robot")[0]


def trusted(*authorities: Authority) -> list[x509.Certificate]:
    return [load_certificates(authority.ca, "CA")[0] for authority in authorities]


def load(path: Path, *authorities: Authority) -> Revocations:
    return load_revocations(path, trusted(*authorities))


def test_who_is_on_the_list(authority: Authority) -> None:
    gone, other = certificate(authority, "gone"), certificate(authority, "other")
    revocations = load(make_list(authority, gone.serial_number, when=WHEN), authority)
    assert revocations.reason([gone]) == (
        f"certificate {gone.serial_number:040x} was revoked on 2026-05-04 03:02:01 UTC"
    )
    assert revocations.reason([other]) is None
    assert len(revocations) == 1


def test_an_intermediate_counts_too(authority: Authority) -> None:
    gone, other = certificate(authority, "gone"), certificate(authority, "other")
    revocations = load(make_list(authority, gone.serial_number), authority)
    assert revocations.reason([other, gone]) is not None


def test_a_number_of_another_ca_is_another_certificate(authority: Authority, tmp_path: Path) -> None:
    stranger = certificate(Authority(tmp_path / "other", "Other CA"), "011")
    assert load(make_list(authority, stranger.serial_number), authority).reason([stranger]) is None


def test_lists_of_two_cas_in_one_file(authority: Authority, tmp_path: Path) -> None:
    new = Authority(tmp_path / "new", "New CA")
    gone = [certificate(one, "gone") for one in (authority, new)]
    path = tmp_path / "both.crl"
    path.write_bytes(
        b"".join(
            make_list(one, it.serial_number).read_bytes()
            for one, it in zip((authority, new), gone, strict=True)
        )
    )
    revocations = load(path, new, authority)
    assert [bool(revocations.reason([it])) for it in gone] == [True, True]


def test_two_cas_of_one_name_are_told_apart_by_their_keys(authority: Authority, tmp_path: Path) -> None:
    new = Authority(tmp_path / "new")
    gone = certificate(new, "gone")
    revocations = load(make_list(new, gone.serial_number), authority, new)
    assert revocations.reason([gone]) is not None
    assert not revocations.lists[0].is_older_than(load(make_list(authority, number=7), authority).lists[0])


def test_when_the_first_is_due(authority: Authority, tmp_path: Path) -> None:
    assert Revocations().first is None
    new = Authority(tmp_path / "new", "New CA")
    soon = make_list(authority, days=3).read_bytes()
    path = tmp_path / "both.crl"
    path.write_bytes(make_list(new, days=9).read_bytes() + soon)
    first = load(path, authority, new).first
    assert first is not None
    until = first.until
    assert until.replace(microsecond=0) == until
    assert abs(until - now() - dt.timedelta(days=3)) < dt.timedelta(minutes=1)


def test_an_overdue_list_still_counts(authority: Authority) -> None:
    gone = certificate(authority, "gone")
    revocations = load(make_list(authority, gone.serial_number, days=-1), authority)
    assert revocations.reason([gone]) is not None


@pytest.mark.parametrize(("older", "newer"), [((1, 0), (2, 0)), ((1, 5), (2, 0)), ((0, 0), (0, 5))])
def test_there_is_no_way_back(
    authority: Authority, older: tuple[int, float], newer: tuple[int, float]
) -> None:
    gone = certificate(authority, "gone")
    old = load(make_list(authority, number=older[0], age=1 - older[1] / 10), authority)
    new = load(make_list(authority, gone.serial_number, number=newer[0], age=1 - newer[1] / 10), authority)
    ca = [authority.certificate]
    assert old.without_going_back(new, ca) == (new, list(new.lists))
    assert new.without_going_back(old, ca) == (new, [])
    assert old.without_going_back(Revocations(), ca) == (old, [])
    assert new.without_going_back(new, ca) == (new, [])


def test_the_list_of_one_ca_does_not_undo_that_of_another(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "Other CA")
    gone = certificate(authority, "gone")
    old = load(make_list(authority, gone.serial_number), authority)
    new = load(make_list(other), other)
    both = [authority.certificate, other.certificate]
    now_, kept = new.without_going_back(old, both)
    assert (now_.reason([gone]) is not None, kept) == (True, list(old.lists))
    # A CA that is trusted no more needs none.
    assert new.without_going_back(old, [other.certificate]) == (new, [])


def test_a_list_that_openssl_has_made(authority: Authority, tmp_path: Path) -> None:
    gone = certificate(authority, "gone")
    config, index = tmp_path / "ca.cnf", tmp_path / "index.txt"
    index.write_text(f"R\t350101000000Z\t260504030201Z\t{gone.serial_number:040X}\tunknown\t/CN=gone\n")
    config.write_text(f"[ca]\ndefault_ca=x\n[x]\ndatabase={index}\ndefault_md=sha256\ndefault_crl_days=3\n")
    key = tmp_path / "ca.key"
    key.write_bytes(authority.key_pem)
    path = tmp_path / "openssl.crl"
    subprocess.run(
        ["openssl", "ca", "-gencrl", "-config", config, "-keyfile", key, "-cert", authority.ca, "-out", path],
        check=True, capture_output=True,
    )  # fmt: skip
    revocations = load(path, authority)
    assert revocations.lists[0].number == 0  # its default, without extensions
    reason = revocations.reason([gone])
    assert reason is not None
    assert "2026-05-04 03:02:01 UTC" in reason


DAYS = st.datetimes(dt.datetime(1950, 1, 1), dt.datetime(2200, 1, 1))  # noqa: DTZ001 - it adds none
ENTRIES = st.tuples(st.integers(1, 2**159 - 1), DAYS, st.sampled_from([None, *list(x509.ReasonFlags)[1:7]]))


@settings(max_examples=100)
@given(st.lists(ENTRIES, max_size=8, unique_by=lambda entry: entry[0]))
def test_entries_are_those_that_the_library_finds(entries: list[tuple[int, dt.datetime, object]]) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")])
    builder = x509.CertificateRevocationListBuilder().issuer_name(name)
    builder = builder.last_update(WHEN).next_update(WHEN + dt.timedelta(days=1))
    for serial, when, flag in entries:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when)
        if isinstance(flag, x509.ReasonFlags):
            entry = entry.add_extension(x509.CRLReason(flag), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    parsed = builder.sign(KEY, hashes.SHA256())
    found = crl._Entries(parsed)
    assert found == {serial: when.replace(microsecond=0, tzinfo=dt.UTC) for serial, when, _flag in entries}
    assert list(found) == [entry.serial_number for entry in parsed]
    for serial, _when, _flag in entries:
        assert serial in found
        assert serial + 2**159 not in found
        assert -serial not in found


def test_one_who_is_on_the_list_twice(authority: Authority) -> None:
    assert len(load(make_list(authority, 5, 6, 5), authority)) == 2


def test_a_file_that_is_too_large(authority: Authority) -> None:
    path = make_list(authority)
    path.write_bytes(path.read_bytes().ljust(LIST_MAX, b"\n"))
    assert len(load(path, authority)) == 0
    with path.open("ab") as file:
        file.write(b"\n")
    with pytest.raises(ConfigError, match="larger than 16384 KiB"):
        load(path, authority)


def _rewritten(change: Callable[[bytes], bytes]) -> Callable[[Authority, Path], object]:
    return lambda authority, path: path.write_bytes(change(make_list(authority).read_bytes()))


def _of_another(authority: Authority, path: Path) -> None:
    shutil.copy(make_list(Authority(authority.folder / "other", "Other CA")), path)


def _forged(authority: Authority, path: Path) -> None:
    shutil.copy(make_list(Authority(authority.folder / "other")), path)


def _partial(authority: Authority, path: Path) -> None:
    point = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
    path.write_bytes(_signed(authority, _builder(authority).add_extension(point, critical=True)))


def _builder(authority: Authority) -> x509.CertificateRevocationListBuilder:
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.name)
    return builder.last_update(WHEN).next_update(WHEN + dt.timedelta(days=1))


def _signed(authority: Authority, builder: x509.CertificateRevocationListBuilder) -> bytes:
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda _authority, _path: None, "No such file or directory"),
        (lambda _authority, path: path.mkdir(), "Is a directory"),
        (lambda _authority, path: path.write_bytes(b""), "no list in PEM form; `shadow-ca crl` makes one"),
        (lambda authority, path: shutil.copy(authority.ca, path), "it holds no list in PEM form"),
        (_rewritten(lambda pem: pem[:200]), "damaged: a list has no end"),
        (_rewritten(lambda pem: pem + pem[:200]), "damaged: a list has no end"),
        (_rewritten(lambda pem: pem[:60] + b"AAAA" + pem[64:]), "damaged: not a revocation list"),
        (_rewritten(lambda pem: re.sub(rb"(?s)\n[^-].*\n", b"\nAAAA\n", pem, count=1)), "damaged"),
        (_of_another, "was not signed by a CA that we trust; take the list of the same CA"),
        (_forged, "was not signed by a CA that we trust"),
        (_partial, "is only a part of a list; give the complete one"),
    ],
)  # fmt: skip
def test_a_list_that_will_not_do(
    authority: Authority, tmp_path: Path, make: Callable[[Authority, Path], object], complaint: str
) -> None:
    path = tmp_path / "bad.crl"
    make(authority, path)
    with pytest.raises(ConfigError) as caught:
        load(path, authority)
    assert str(caught.value).startswith(f"revocation list {path}")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_of_a_version_that_there_is_not(authority: Authority, tmp_path: Path) -> None:
    """It would be read by guesswork; and cryptography has an error of its own for it."""
    der = x509.load_pem_x509_crl(make_list(authority).read_bytes()).public_bytes(Encoding.DER)
    start = der.index(b"\x02\x01\x01")  # TBSCertList begins with its version: 1 means v2
    path = tmp_path / "v8.crl"
    text = base64.encodebytes(der[:start] + b"\x02\x01\x07" + der[start + 3 :])
    path.write_bytes(b"-----BEGIN X509 CRL-----\n" + text + b"-----END X509 CRL-----\n")
    with pytest.raises(ConfigError, match="damaged: not a revocation list"):
        load(path, authority)


def test_any_damage_of_a_list_is_a_config_error(authority: Authority, tmp_path: Path) -> None:
    path, ca = tmp_path / "some.crl", trusted(authority)
    good = make_list(authority, 1, 2).read_bytes()

    @given(st.integers(28, len(good) - 28), st.binary(min_size=1, max_size=4))
    def damaged(position: int, bytes_: bytes) -> None:
        path.write_bytes(good[:position] + bytes_ + good[position + len(bytes_) :])
        with contextlib.suppress(ConfigError):
            load_revocations(path, ca)

    damaged()


def test_a_list_without_a_date_for_the_next(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tool at hand makes one."""
    path = make_list(authority)
    monkeypatch.setattr(crl, "_dates", lambda _parsed: (WHEN, None))
    with pytest.raises(ConfigError, match="does not say when the next one is due"):
        load(path, authority)


def test_a_list_that_somebody_has_passed_on(authority: Authority, tmp_path: Path) -> None:
    """It is the CA's, or nothing."""
    made = x509.load_pem_x509_crl(make_list(authority, 7, number=3).read_bytes()).public_bytes(Encoding.DER)
    listed = read_list(made, "it", authority.certificate)
    assert (listed.number, set(listed.revoked), listed.der) == (3, {7}, made)
    (read,) = load_revocations(authority.folder / "ca.crl", trusted(authority), whole=True).lists
    assert read.der == made
    namesake = Authority(tmp_path / "namesake")
    with pytest.raises(ConfigError, match=r"^it was not signed by a CA that we trust"):
        read_list(made, "it", namesake.certificate)
    changed = made.replace(made[-3:], bytes(3))
    for damaged in (b"", b"x", made[:-1], changed):
        with pytest.raises(ConfigError, match=r"^it(: damaged| was not signed)"):
            read_list(damaged, "it", authority.certificate)


def test_the_entries_of_a_list_that_nobody_has_signed_are_not_read(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sends it decides how many there are."""
    made = x509.load_pem_x509_crl(make_list(authority, 7).read_bytes()).public_bytes(Encoding.DER)
    monkeypatch.setattr(crl, "_Entries", None)
    with pytest.raises(ConfigError, match="not signed"):
        read_list(made, "it", Authority(tmp_path / "other", "Other CA").certificate)
