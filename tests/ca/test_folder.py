"""The CA's folder: which keys are taken, what is kept, and what is found again."""

import datetime as dt
import os
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shadow.ca import authority as authorities
from shadow.ca import folder as folders
from shadow.errors import ClockError, ConfigError
from shadow.pki.certificates import Purpose, common_name, load_credentials
from shadow.pki.files import write_files
from tests.support.ca_folder import CA, NOW, folder_with_ca, write_leaf

DAY = dt.timedelta(days=1)


def test_load(tmp_path: Path) -> None:
    loaded = folders.load_authority(folder_with_ca(tmp_path), NOW)
    assert loaded.certificate == CA.certificate
    assert loaded.key.private_numbers() == CA.key.private_numbers()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o610])
def test_open_key(tmp_path: Path, mode: int) -> None:
    folder_with_ca(tmp_path)
    (tmp_path / "ca.key").chmod(mode)
    with pytest.raises(ConfigError, match=rf"ca.key is open to others .*mode {mode:04o}.*chmod 600 "):
        folders.load_authority(tmp_path, NOW)
    (tmp_path / "ca.key").chmod(0o400)
    folders.load_authority(tmp_path, NOW)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_key_of_another_user(tmp_path: Path) -> None:
    """In a folder that a group may write to, somebody else could have put it there."""
    folder_with_ca(tmp_path)
    os.chown(tmp_path / "ca.key", 65534, -1)
    with pytest.raises(ConfigError, match=r"ca.key belongs to another user \(uid 65534\)"):
        folders.load_authority(tmp_path, NOW)
    os.chown(tmp_path, 65534, -1)  # root may work in a user's CA
    folders.load_authority(tmp_path, NOW)


@pytest.mark.parametrize("name", ["ca.crt", "ca.key"])
def test_incomplete_authority(tmp_path: Path, name: str) -> None:
    folder_with_ca(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=f"{tmp_path / name}: No such file"):
        folders.load_authority(tmp_path, NOW)


def test_mixed_up_authority(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    other = authorities.create_authority("Test CA", 30, NOW)
    write_files(folders.authority_files(tmp_path, other)[:1], force=True)
    with pytest.raises(ConfigError, match=r"private key .*ca\.key does not match certificate .*ca\.crt"):
        folders.load_authority(tmp_path, NOW)


def test_leaf_in_the_place_of_the_authority(tmp_path: Path) -> None:
    leaf = authorities.issue_robot(CA, "011", 30, NOW)
    folder_with_ca(tmp_path, leaf)
    with pytest.raises(ConfigError, match="not a CA's certificate"):
        folders.load_authority(tmp_path, NOW)


def test_authority_out_of_time(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    with pytest.raises(ConfigError, match=r"ca\.crt expired on"):
        folders.load_authority(tmp_path, NOW + 4000 * DAY)
    with pytest.raises(ClockError, match=r"ca\.crt is not valid before"):
        folders.load_authority(tmp_path, NOW - DAY)


def test_no_leaf_takes_the_authority_s_place(tmp_path: Path) -> None:
    """A robot may be called ``ca``, and --force is not meant for this."""
    with pytest.raises(ConfigError, match=r"ca\.crt is the name of the CA's own file: .* --basename"):
        folders.leaf_files(tmp_path, tmp_path / "out", "ca", authorities.issue_robot(CA, "ca", 30, NOW))


def test_the_copy_comes_first(tmp_path: Path) -> None:
    """A crash in between may leave a record without a certificate, not the other way round."""
    leaf = authorities.issue_robot(CA, "011", 30, NOW)
    copy, key, crt = folders.leaf_files(tmp_path / "ca", tmp_path / "out", "011", leaf)
    assert copy.path == tmp_path / "ca" / "issued" / f"{leaf.certificate.serial_number:040x}.pem"
    assert copy.data == crt.data
    assert (key.path, key.mode) == (tmp_path / "out" / "011.key", 0o600)
    assert (crt.path, crt.mode) == (tmp_path / "out" / "011.crt", 0o644)
    assert b"PRIVATE" not in copy.data + crt.data


def test_many_of_one_second_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    names = [f"{number:03}" for number in range(20)]
    for name in reversed(names):
        write_leaf(tmp_path, name, authorities.issue_robot(CA, name, 30, NOW))
    assert [common_name(found) for found in folders.load_issued(tmp_path)] == names


def test_what_is_known_is_not_read_again(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    write_leaf(tmp_path, "a", authorities.issue_robot(CA, "a", 30, NOW))
    known = folders.load_issued(tmp_path)
    folders.index_path(tmp_path, known[0].serial_number).write_text("rubbish")
    write_leaf(tmp_path, "b", authorities.issue_robot(CA, "b", 30, NOW))
    assert [common_name(found) for found in folders.load_issued(tmp_path, known)] == ["a", "b"]


def test_a_copy_without_a_name(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    (tmp_path / "issued").mkdir()
    leaf = authorities.issue_robot(CA, "a", 30, NOW).certificate
    nameless = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(leaf.issuer)
        .public_key(leaf.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW)
        .sign(CA.key, hashes.SHA256())
    )
    (tmp_path / "issued" / "1.pem").write_bytes(nameless.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(ConfigError, match=r"^issued certificate .*/1\.pem: the certificate has no common"):
        folders.load_issued(tmp_path)


def test_what_cannot_be_read_is_not_empty(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    (tmp_path / "issued").write_text("not a folder")
    with pytest.raises(ConfigError, match=r"^folder of issued certificates .*/issued: Not a directory"):
        folders.load_issued(tmp_path)


def test_issued(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    assert folders.load_issued(tmp_path) == []
    leaves = [
        authorities.issue_robot(CA, "b", 30, NOW + 2 * DAY),
        authorities.issue_server(CA, ["a"], 30, NOW + DAY),
        authorities.issue_robot(CA, "c", 30, NOW),
    ]
    for number, leaf in enumerate(leaves):
        write_leaf(tmp_path, str(number), leaf)
    (tmp_path / "issued" / ".x.0123.new").write_bytes(b"left over by a crash")
    assert [common_name(found) for found in folders.load_issued(tmp_path)] == ["c", "a", "b"]


def test_issued_by_a_former_authority(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    write_leaf(tmp_path, "old", authorities.issue_robot(CA, "old", 30, NOW))
    successor = authorities.create_authority("Test CA", 30, NOW)
    folder_with_ca(tmp_path, successor)
    write_leaf(tmp_path, "new", authorities.issue_robot(successor, "new", 20, NOW))
    assert [common_name(found) for found in folders.load_issued(tmp_path)] == ["new"]


def test_damaged_copy(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    (tmp_path / "issued").mkdir()
    (tmp_path / "issued" / "01.pem").write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match=r"issued certificate .*/01\.pem: it holds no certificate"):
        folders.load_issued(tmp_path)


def test_issued_without_an_authority(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.crt: No such file"):
        folders.load_issued(tmp_path)


def test_authority_made_by_other_tools(tmp_path: Path) -> None:
    """OpenSSL makes RSA by default, and leaves out the key identifier if told to."""
    config = tmp_path / "config"
    config.write_text(
        "[req]\ndistinguished_name=dn\nx509_extensions=v3\n[dn]\n"
        "[v3]\nbasicConstraints=critical,CA:TRUE\nsubjectKeyIdentifier=none\n"
    )
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "60", "-subj", "/CN=Foreign",
        "-config", config, "-keyout", tmp_path / "ca.key", "-out", tmp_path / "ca.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    (tmp_path / "ca.key").chmod(0o600)
    now = dt.datetime.now(dt.UTC)
    crt = write_leaf(
        tmp_path, "011", authorities.issue_robot(folders.load_authority(tmp_path, now), "011", 30, now)
    )
    load_credentials(tmp_path / "ca.crt", crt, tmp_path / "011.key", Purpose.ROBOT, now)
    assert len(folders.load_issued(tmp_path)) == 1


def test_stray_certificate_without_an_issuer_s_key(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    key = ec.generate_private_key(ec.SECP256R1())
    stray = (
        x509.CertificateBuilder()
        .subject_name(CA.certificate.subject)
        .issuer_name(CA.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "issued").mkdir()
    (tmp_path / "issued" / "1.pem").write_bytes(stray.public_bytes(serialization.Encoding.PEM))
    assert folders.load_issued(tmp_path) == []
