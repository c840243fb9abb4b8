"""The CA's signer: whom it gives a certificate, and whom not."""

import datetime as dt
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from shadow import events
from shadow.ca import revocation, signer
from shadow.ca.folder import load_authority, load_issued
from shadow.ca.lineage import SUCCESSORS_MAX
from shadow.ca.locking import locked
from shadow.ca.signer import renew
from shadow.errors import ConfigError, LocalError, Refused
from shadow.pki.certificates import (
    Credentials,
    Purpose,
    common_name,
    has_purpose,
    load_credentials,
    validity,
)
from shadow.pki.keys import new_key
from shadow.pki.request import make_request
from tests.support import Authority, make_list, now
from tests.support.log import Said
from tests.support.signer_socket import AGED, ca_folder, credentials, request


@pytest.fixture
def folder(own: Authority, tmp_path: Path) -> Path:
    return ca_folder(own, tmp_path / "ca")


def test_a_robot_gets_its_next_certificate(own: Authority, folder: Path, said: Said) -> None:
    present, key = credentials(own), new_key()
    certificate = renew(folder, make_request("011", key, present), now())
    assert certificate.public_key().public_numbers() == key.public_key().public_numbers()  # type: ignore[union-attr]
    assert common_name(certificate) == "011"
    assert has_purpose(certificate, Purpose.ROBOT)
    assert not has_purpose(certificate, Purpose.SERVER)
    start, end = validity(certificate)
    assert end - start == dt.timedelta(days=30)  # as long as the one before
    assert dt.timedelta(minutes=4) < now() - start < dt.timedelta(minutes=6)
    assert load_issued(folder) == [certificate]
    assert [event for event, _text in said] == [events.CertificateIssued]
    assert f"robot 011: certificate {certificate.serial_number:040x} issued, valid until" in said[0][1]


def test_a_server_among_its_peers_gets_none(own: Authority, folder: Path) -> None:
    crt, key = own.issue("aged", "peer:a", Purpose.PEER, days=AGED)
    peer = load_credentials(own.ca, crt, key, Purpose.PEER, now())
    for name in ("peer:a", "011"):
        with pytest.raises(Refused, match=r"\(bad-request\)"):
            renew(folder, make_request(name, new_key(), peer), now())
    assert load_issued(folder) == []


def test_it_can_renew_the_new_one_in_turn(own: Authority, folder: Path) -> None:
    key = new_key()
    first = renew(folder, make_request("011", key, credentials(own)), now())
    ca = x509.load_pem_x509_certificate(own.ca.read_bytes())
    again = make_request("011", new_key(), Credentials([ca], [first], key))
    later = now() + dt.timedelta(days=20)
    second = renew(folder, again, later)
    assert second.serial_number != first.serial_number
    assert validity(second)[1] > validity(first)[1]


def test_who_asks_again_for_the_same_key_is_given_the_same(own: Authority, folder: Path) -> None:
    asked = request(own)
    first = renew(folder, asked, now())
    assert renew(folder, asked, now() + dt.timedelta(hours=1)) == first
    assert len(load_issued(folder)) == 1


def test_a_certificate_has_so_many_successors(own: Authority, folder: Path) -> None:
    present = credentials(own)
    for _ in range(SUCCESSORS_MAX):
        renew(folder, make_request("011", new_key(), present), now())
    with pytest.raises(Refused, match=r"\(limit\): 8 certificates were made from this one"):
        renew(folder, make_request("011", new_key(), present), now())
    assert len(load_issued(folder)) == SUCCESSORS_MAX


def test_it_is_not_to_be_renewed_in_the_first_half_of_its_life(own: Authority, folder: Path) -> None:
    with pytest.raises(Refused, match=r"\(early\): the present certificate cannot be renewed before 20"):
        renew(folder, request(own, days=(-14, 16)), now())
    renew(folder, request(own, days=(-16, 14)), now())


def test_a_clock_that_was_set_back_renews_nothing(own: Authority, folder: Path) -> None:
    asked = request(own, days=(-0.5, 1))
    with pytest.raises(Refused, match=r"\(untrusted\): the present certificate is not good here: .*not yet"):
        renew(folder, asked, now() - dt.timedelta(days=0.8))
    with pytest.raises(Refused, match="expired"):
        renew(folder, asked, now() + dt.timedelta(days=2))
    assert load_issued(folder) == []


@pytest.mark.parametrize(
    ("life", "late", "good"),
    [(30, 6.9, True), (30, 7.1, False), (9, 2.9, True), (9, 3.1, False), (730, 6.9, True), (730, 7.1, False)],
)
def test_who_comes_late(own: Authority, folder: Path, *, life: float, late: float, good: bool) -> None:
    """By a third of the certificate's life, and a week at most (days)."""
    asked = request(own, days=(-life + 1, 1))
    then = now() + dt.timedelta(days=1 + late)
    if good:
        assert validity(renew(folder, asked, then))[1] > then
    else:
        with pytest.raises(Refused, match=r"\(untrusted\): .*expired"):
            renew(folder, asked, then)


def test_who_comes_late_and_is_revoked(own: Authority, folder: Path) -> None:
    """Also one that is revoked after its end."""
    present = credentials(own, days=(-29, 1))
    then = now() + dt.timedelta(days=2)
    authority = load_authority(folder, then)
    made = revocation.make_list(folder, authority, present.chain, present.chain, then, 30)
    assert made.added == present.chain
    made.file.path.write_bytes(made.file.data)
    with pytest.raises(Refused, match=r"\(revoked\)"):
        renew(folder, make_request("011", new_key(), present), then)


def test_a_certificate_lives_no_longer_than_its_ca(own: Authority, folder: Path) -> None:
    asked = request(own, days=(-3000, 1000))
    at = now() + dt.timedelta(days=990)
    certificate = renew(folder, asked, at)
    ca = x509.load_pem_x509_certificate(own.ca.read_bytes())
    assert validity(certificate)[1] == validity(ca)[1]


def test_a_ca_at_its_end_renews_nothing(own: Authority, folder: Path) -> None:
    with pytest.raises(Refused, match=r"\(ca-ends\): the CA expires on .* it is time for a new one"):
        renew(folder, request(own, days=(-3000, 3650)), now() + dt.timedelta(days=3000))


def test_revoked_robots(own: Authority, folder: Path) -> None:
    present = credentials(own)
    (folder / "ca.crl").write_bytes(make_list(own, present.chain[0].serial_number).read_bytes())
    with pytest.raises(Refused, match=r"\(revoked\): certificate [0-9a-f]{40} was revoked on"):
        renew(folder, make_request("011", new_key(), present), now())
    renew(folder, request(own, name="012"), now())


def test_a_revoked_successor_is_not_given_out_again(own: Authority, folder: Path) -> None:
    present, key = credentials(own), new_key()
    first = renew(folder, make_request("011", key, present), now())
    (folder / "ca.crl").write_bytes(make_list(own, first.serial_number).read_bytes())
    why = rf"\(revoked\): certificate {first.serial_number:040x} was revoked on .*made from the present one"
    with pytest.raises(Refused, match=why):
        renew(folder, make_request("011", key, present), now())
    assert renew(folder, make_request("011", new_key(), present), now()) != first


def test_somebody_else_at_work_in_the_folder(
    own: Authority, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signer, "_PATIENCE", 0.1)
    with locked(folder), pytest.raises(LocalError, match=r"CA folder .*: another shadow-ca.* for 0\.1 s"):
        renew(folder, request(own), now())


def test_nonsense_does_not_even_wait_for_the_folder(own: Authority, folder: Path) -> None:
    with locked(folder), pytest.raises(Refused, match=r"\(bad-request\)"):
        renew(folder, replace(request(own), certificate=b"nonsense"), now())


def test_a_revoked_intermediate_renews_nobody(own: Authority, folder: Path) -> None:
    """The request has the robot's certificate only; the intermediate is a former CA here."""
    middle = Authority(own.folder / "middle", "Middle", own)
    (folder / "ca.crt").write_bytes(own.ca.read_bytes() + middle.ca.read_bytes())
    renew(folder, request(middle), now())
    (folder / "ca.crl").write_bytes(make_list(own, middle.certificate.serial_number).read_bytes())
    with pytest.raises(
        Refused, match=rf"\(revoked\): certificate {middle.certificate.serial_number:040x} was"
    ):
        renew(folder, request(middle, name="012"), now())


def test_a_list_that_is_damaged_stops_the_signer(own: Authority, folder: Path) -> None:
    (folder / "ca.crl").write_text("-----BEGIN X509 CRL-----\n")
    with pytest.raises(ConfigError, match="damaged"):
        renew(folder, request(own), now())


def test_robots_of_a_former_ca_get_certificates_of_the_new_one(
    own: Authority, folder: Path, tmp_path: Path
) -> None:
    former = Authority(tmp_path / "former", "Former CA")
    asked, revoked = request(former), credentials(former, name="012")
    with pytest.raises(Refused, match=r"\(untrusted\)"):
        renew(folder, asked, now())
    (folder / "ca.crt").write_bytes(own.ca.read_bytes() + former.ca.read_bytes())
    (folder / "former.crl").write_bytes(make_list(former, revoked.chain[0].serial_number).read_bytes())
    certificate = renew(folder, asked, now())
    assert certificate.issuer == own.name
    with pytest.raises(Refused, match=r"\(revoked\)"):
        renew(folder, make_request("012", new_key(), revoked), now())


def test_a_key_that_is_not_there(own: Authority, folder: Path) -> None:
    (folder / "ca.key").unlink()
    with pytest.raises(ConfigError, match=r"CA key .*ca\.key: No such file"):
        renew(folder, request(own), now())


def test_a_disk_that_takes_nothing(own: Authority, folder: Path) -> None:
    (folder / "issued").write_text("not a folder")
    with pytest.raises(ConfigError, match=r"issued certificate .*: Not a directory"):
        renew(folder, request(own), now())
