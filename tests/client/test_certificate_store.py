"""A robot's pairs: which one is used, and what is left whenever the machine stops."""

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from shadow import events
from shadow.ca.signer import renew
from shadow.client import certificate_store
from shadow.client.certificate_store import CertificateStore, LoadedPair
from shadow.errors import ClockError, ConfigError, LocalError, PeerError
from shadow.pki import files
from shadow.pki.certificates import Credentials, Files, Purpose, load_certificates, validity
from shadow.pki.keys import new_key
from shadow.pki.request import make_request
from tests.support import Authority, now
from tests.support.log import Said
from tests.support.signer_socket import ca_folder

AGED = (-0.8, 0.2)  # days: past two thirds of its life


class Scene:
    """A robot with a certificate of its operator's, and a CA that renews it."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "own")
        self.ca = ca_folder(self.authority, folder / "ca")
        self.state = folder / "state"
        self.files = Files(self.authority.ca, *self.authority.robot("011", days=AGED))

    def certificates(self) -> CertificateStore:
        """As after a start."""
        made = CertificateStore(self.files, self.state, "011")
        made.load(now())
        return made

    def sign(self, key: ec.EllipticCurvePrivateKey, present: Credentials) -> bytes:
        return renew(self.ca, make_request("011", key, present), now()).public_bytes(Encoding.DER)

    def renewed(self, it: CertificateStore) -> LoadedPair:
        """Its next pair, stored."""
        assert it.current is not None
        return it.add(self.sign(it.key_to_ask_for(), it.current.credentials), now())

    def renew(self) -> None:
        """All steps at once."""
        it = self.certificates()
        it.accepted(self.renewed(it))

    @property
    def stored(self) -> set[str]:
        return {path.name for path in self.state.iterdir()} if self.state.exists() else set()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def used(it: CertificateStore) -> x509.Certificate:
    assert it.current is not None
    return it.current.certificate


def given(scene: Scene) -> x509.Certificate:
    return load_certificates(scene.files.crt, "certificate")[0]


def test_at_first_there_is_what_the_operator_gave(scene: Scene) -> None:
    it = scene.certificates()
    assert it.renews
    assert used(it) == given(scene)
    assert it.next is None
    assert scene.stored == set()


def test_without_a_place_nothing_is_renewed(scene: Scene) -> None:
    it = CertificateStore(scene.files, None, "011")
    it.load(now())
    assert not it.renews
    with pytest.raises(LocalError, match="no place for renewed certificates"):
        it.key_to_ask_for()
    assert it.current is not None
    it.accepted(it.current)  # as after each connection


def test_it_is_due_after_two_thirds_of_its_life(scene: Scene) -> None:
    it = scene.certificates()
    start = now() - dt.timedelta(days=0.8)
    assert it.current is not None
    assert dt.timedelta(days=2 / 3) <= it.current.due - start <= dt.timedelta(days=0.701)
    assert it.is_due(now())
    assert not it.is_due(start + dt.timedelta(days=0.66))
    assert not it.is_due(start - dt.timedelta(days=1000))  # a clock that has lost its battery


def test_robots_of_one_batch_do_not_come_at_once(scene: Scene) -> None:
    dues = set()
    for number in range(8):
        crt, key = scene.authority.issue(f"b{number}", "011", Purpose.ROBOT, days=(0, 730))
        it = CertificateStore(Files(scene.files.ca, crt, key), None, "011")
        it.load(now() + dt.timedelta(seconds=1))
        assert it.current is not None
        dues.add(it.current.due.date())
    assert len(dues) > 3


def test_the_key_is_stored_before_anybody_is_asked_and_stays_the_same(scene: Scene) -> None:
    key = scene.certificates().key_to_ask_for()
    assert scene.stored == {"next.key"}
    assert (scene.state / "next.key").stat().st_mode & 0o777 == 0o600
    again = scene.certificates().key_to_ask_for()
    assert again.private_numbers() == key.private_numbers()


def test_a_damaged_key_is_replaced(scene: Scene) -> None:
    key = scene.certificates().key_to_ask_for()
    (scene.state / "next.key").write_text("-----BEGIN PRIVATE KEY-----\n")
    assert scene.certificates().key_to_ask_for().private_numbers() != key.private_numbers()


def test_the_old_pair_is_used_until_the_new_one_was_accepted(scene: Scene) -> None:
    it = scene.certificates()
    pair = scene.renewed(it)
    assert scene.stored == {"next.key", "next.crt"}
    for each in (it, scene.certificates()):
        assert used(each) == given(scene)
        assert each.next is not None
        assert each.next.certificate == pair.certificate
        assert each.is_due(now() - dt.timedelta(days=0.5))  # it is to be tried out, whatever the time
    it.accepted(pair)
    assert scene.stored == {"pair.pem"}
    assert (scene.state / "pair.pem").stat().st_mode & 0o777 == 0o600
    for each in (it, scene.certificates()):
        assert used(each) == pair.certificate
        assert each.next is None
        assert not each.is_due(now())


def test_that_an_old_pair_is_accepted_says_nothing_of_the_next(scene: Scene) -> None:
    it = scene.certificates()
    pair = scene.renewed(it)
    assert it.current is not None
    it.accepted(it.current)
    assert it.next is pair
    assert scene.stored == {"next.key", "next.crt"}


def test_the_next_one_is_used_when_the_old_one_has_expired(scene: Scene) -> None:
    pair = scene.renewed(scene.certificates())
    it = CertificateStore(scene.files, scene.state, "011")
    it.load(now() + dt.timedelta(days=0.3))
    assert used(it) == pair.certificate
    assert it.next is None
    assert it.current is not None
    it.accepted(it.current)
    assert scene.stored == {"pair.pem"}


def test_a_next_one_that_was_not_accepted_is_asked_for_again_with_the_same_key(scene: Scene) -> None:
    it = scene.certificates()
    pair = scene.renewed(it)
    it.drop_next()
    assert it.next is None
    assert scene.stored == {"next.key"}
    assert scene.renewed(it).certificate == pair.certificate


def test_newer_files_of_the_operator_win(scene: Scene) -> None:
    it = scene.certificates()
    it.accepted(scene.renewed(it))
    scene.authority.issue("011", "011", Purpose.ROBOT, days=(0, 30))
    it = CertificateStore(scene.files, scene.state, "011")
    it.load(now() + dt.timedelta(seconds=2))
    assert used(it) == given(scene)


@pytest.mark.parametrize("spoil", [b"", b"-----BEGIN CERTIFICATE-----\n", None])
def test_a_stored_pair_that_is_of_no_use(scene: Scene, said: Said, spoil: bytes | None) -> None:
    it = scene.certificates()
    it.accepted(scene.renewed(it))
    if spoil is None:  # somebody else's
        crt, key = scene.authority.robot("012")
        spoil = crt.read_bytes() + key.read_bytes()
    (scene.state / "pair.pem").write_bytes(spoil)
    it = scene.certificates()
    assert used(it) == given(scene)
    it.load(now())
    assert [event for event, _text in said].count(events.RenewalFailed) == 1  # said once
    assert "robot 011: a renewed certificate cannot be used:" in said[-1][1]
    assert "pair.pem" in said[-1][1]


def test_a_renewed_pair_goes_on_when_the_operators_is_gone(scene: Scene) -> None:
    it = scene.certificates()
    pair = scene.renewed(it)
    it.accepted(pair)
    scene.files.crt.unlink()
    assert used(scene.certificates()) == pair.certificate


def test_without_any_good_pair_the_operators_is_complained_about(scene: Scene) -> None:
    scene.certificates()
    it = CertificateStore(scene.files, scene.state, "011")
    with pytest.raises(ConfigError, match=r"011\.crt expired on"):
        it.load(now() + dt.timedelta(days=1))
    with pytest.raises(ClockError, match="is the clock right"):
        it.load(now() - dt.timedelta(days=1))
    assert it.current is None
    assert not it.is_due(now())


def test_what_was_chosen_stays_if_nothing_is_good_any_more(scene: Scene) -> None:
    it = scene.certificates()
    scene.files.crt.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        it.load(now())
    assert it.current is not None


def test_a_certificate_for_another_key(scene: Scene) -> None:
    it = scene.certificates()
    it.key_to_ask_for()
    assert it.current is not None
    with pytest.raises(PeerError, match="for another key than was asked for"):
        it.add(scene.sign(new_key(), it.current.credentials), now())
    assert scene.stored == {"next.key"}


def test_a_certificate_that_is_damaged(scene: Scene) -> None:
    with pytest.raises(PeerError, match="damaged"):
        scene.certificates().add(b"\x30\x03abc", now())


def test_a_certificate_that_no_server_would_take(scene: Scene, tmp_path: Path) -> None:
    """Of a CA that the robot does not trust, though its server may."""
    other = Authority(tmp_path / "other", "Other CA")
    folder = ca_folder(other, tmp_path / "other-ca")
    (folder / "ca.crt").write_bytes(other.ca.read_bytes() + scene.authority.ca.read_bytes())
    it = scene.certificates()
    assert it.current is not None
    request = make_request("011", it.key_to_ask_for(), it.current.credentials)
    der = renew(folder, request, now()).public_bytes(Encoding.DER)
    with pytest.raises(PeerError, match=r"the new certificate cannot be used: .* was not issued by the CA"):
        it.add(der, now())
    assert it.next is None
    assert scene.stored == {"next.key"}


STEPS = ["next.key", "next.crt", "pair.pem", "-next.crt", "-next.key"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_machine_that_stops_at_any_step(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, step: str, *, done: bool
) -> None:
    """Whatever was reached, there is a pair to go on with, and the renewal ends well after the next start."""

    class Stopped(BaseException):
        pass

    write, remove = CertificateStore._write, CertificateStore._remove

    def writing(file: files.NewFile) -> None:
        if file.path.name == step and not done:
            raise Stopped
        write(file)
        if file.path.name == step:
            raise Stopped

    def removing(self: CertificateStore, name: str) -> None:
        if f"-{name}" == step and not done:
            raise Stopped
        remove(self, name)
        if f"-{name}" == step:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(CertificateStore, "_write", staticmethod(writing))
        patch.setattr(CertificateStore, "_remove", removing)
        with pytest.raises(Stopped):
            scene.renew()
    it = scene.certificates()
    if it.is_due(now()):
        assert used(it) == given(scene)
        it.accepted(it.next or scene.renewed(it))
    assert used(it) != given(scene)
    assert used(scene.certificates()) == used(it)
    assert scene.certificates().next is None


@pytest.mark.parametrize("step", ["next.key", "next.crt", "pair.pem"])
def test_a_disk_that_is_full(scene: Scene, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Nothing is lost, and when there is room again it goes on."""

    def full(new: list[files.NewFile], *, force: bool) -> None:
        if new[0].path.name == step:
            raise LocalError(f"cannot write {new[0].path}: No space left on device")
        files.write_files(new, force=force)

    with monkeypatch.context() as patch:
        patch.setattr(certificate_store, "write_files", full)
        with pytest.raises(LocalError, match="No space left"):
            scene.renew()
    again = scene.certificates()
    assert used(again) == given(scene)
    again.accepted(again.next or scene.renewed(again))
    assert used(scene.certificates()) != given(scene)


def test_a_folder_that_may_not_be_written_to(scene: Scene) -> None:
    scene.state.write_text("not a folder")
    with pytest.raises(LocalError, match="cannot write"):
        scene.certificates().key_to_ask_for()


@pytest.mark.parametrize("renewed", [False, True])
def test_late_is_better_than_none(scene: Scene, *, renewed: bool) -> None:
    """By a third of the certificate's life; and only who says so is served late."""
    if renewed:
        scene.renew()
    it = CertificateStore(scene.files, scene.state, "011")
    latest = load_certificates(scene.state / "pair.pem", "certificate")[0] if renewed else given(scene)
    end = validity(latest)[1]
    then = end + dt.timedelta(days=0.3)
    with pytest.raises(ConfigError, match="expired"):
        it.load(then)
    it.load(then, late=True)
    assert used(it) == latest
    with pytest.raises(ConfigError, match="expired"):
        CertificateStore(scene.files, scene.state, "011").load(end + dt.timedelta(days=0.4), late=True)


def test_what_is_good_goes_before_what_is_late(scene: Scene) -> None:
    crt, key = scene.authority.issue("short", "011", Purpose.ROBOT, days=(-0.3, -0.01))
    scene.renew()
    it = CertificateStore(Files(scene.files.ca, crt, key), scene.state, "011")
    it.load(now(), late=True)
    assert used(it) == load_certificates(scene.state / "pair.pem", "certificate")[0]
