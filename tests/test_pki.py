"""The CA's work, judged by OpenSSL's own command beside our reading of it."""

import datetime as dt
import os
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow import pki
from shadow.certificates import (
    Purpose,
    common_name,
    has_purpose,
    load_credentials,
    validity,
)
from shadow.errors import ClockError, ConfigError
from shadow.files import write_files

NOW = dt.datetime.now(dt.UTC)
CA = pki.create_authority("Test CA", 3650, NOW)
DAY = dt.timedelta(days=1)


def folder_with_ca(folder: Path, authority: pki.Pair = CA) -> Path:
    write_files(pki.authority_files(folder, authority), force=True)
    return folder


def openssl(*arguments: str | Path) -> str:
    """What openssl has to say, be it good or bad."""
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def verify(crt: Path, purpose: str, *more: str) -> str:
    return openssl(
        "verify", "-x509_strict", "-purpose", purpose, "-CAfile", crt.parent / "ca.crt", *more, crt
    )


def write_leaf(folder: Path, basename: str, leaf: pki.Pair) -> Path:
    write_files(pki.leaf_files(folder, folder, basename, leaf), force=False)
    return folder / f"{basename}.crt"


# --- profiles ---


def test_openssl_accepts_the_server(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    server = pki.issue_server(CA, ["tunnel.example.com", "192.0.2.7", "2001:db8::7"], 30, NOW)
    crt = write_leaf(tmp_path, "server", server)
    assert verify(crt, "sslserver") == f"{crt}: OK\n"
    for name in ("-verify_hostname=tunnel.example.com", "-verify_ip=192.0.2.7", "-verify_ip=2001:db8::7"):
        assert verify(crt, "sslserver", *name.split("=")).endswith(": OK\n")
    assert "ostname mismatch" in verify(crt, "sslserver", "-verify_hostname", "other.example.com")
    assert "nsupported certificate purpose" in verify(crt, "sslclient").replace("unsuitable", "unsupported")


def test_openssl_accepts_the_robot(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    crt = write_leaf(tmp_path, "011", pki.issue_robot(CA, "011", 30, NOW))
    assert verify(crt, "sslclient") == f"{crt}: OK\n"
    assert "certificate purpose" in verify(crt, "sslserver")


def test_openssl_refuses_what_a_leaf_has_issued(tmp_path: Path) -> None:
    """A stolen robot key must not be able to make robots."""
    folder_with_ca(tmp_path)
    thief = pki.issue_robot(CA, "011", 30, NOW)
    (tmp_path / "thief.pem").write_bytes(thief.certificate.public_bytes(serialization.Encoding.PEM))
    crt = write_leaf(tmp_path, "012", pki.issue_robot(thief, "012", 20, NOW))
    assert "OK" not in verify(crt, "sslclient", "-untrusted", str(tmp_path / "thief.pem"))


def test_shadow_accepts_what_it_has_made(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    write_leaf(tmp_path, "server", pki.issue_server(CA, ["::1"], 30, NOW))
    write_leaf(tmp_path, "011", pki.issue_robot(CA, "011", 30, NOW))
    for name, purpose in (("server", Purpose.SERVER), ("011", Purpose.ROBOT)):
        load_credentials(
            tmp_path / "ca.crt", tmp_path / f"{name}.crt", tmp_path / f"{name}.key", purpose, NOW
        )


def extension(
    certificate: x509.Certificate, kind: type[x509.ExtensionType]
) -> x509.Extension[x509.ExtensionType]:
    return certificate.extensions.get_extension_for_class(kind)


def test_profile_of_the_authority() -> None:
    certificate = CA.certificate
    assert common_name(certificate) == "Test CA"
    assert certificate.issuer == certificate.subject
    constraints = extension(certificate, x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    usage = extension(certificate, x509.KeyUsage)
    assert usage.critical
    assert isinstance(usage.value, x509.KeyUsage)
    assert usage.value.key_cert_sign
    assert usage.value.crl_sign
    assert not usage.value.digital_signature
    assert isinstance(CA.key, ec.EllipticCurvePrivateKey)
    assert isinstance(CA.key.curve, ec.SECP256R1)


@pytest.mark.parametrize(
    "leaf", [pki.issue_robot(CA, "011", 30, NOW), pki.issue_server(CA, ["localhost"], 30, NOW)]
)
def test_profile_of_the_leaves(leaf: pki.Pair) -> None:
    certificate = leaf.certificate
    constraints = extension(certificate, x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=False, path_length=None)
    assert certificate.issuer == CA.certificate.subject
    usage = extension(certificate, x509.KeyUsage)
    assert usage.critical
    assert isinstance(usage.value, x509.KeyUsage)
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert not usage.value.crl_sign
    assert has_purpose(certificate, Purpose.SERVER) is not has_purpose(certificate, Purpose.ROBOT)
    key_identifier = extension(CA.certificate, x509.SubjectKeyIdentifier).value
    issuer = extension(certificate, x509.AuthorityKeyIdentifier).value
    assert isinstance(key_identifier, x509.SubjectKeyIdentifier)
    assert isinstance(issuer, x509.AuthorityKeyIdentifier)
    assert issuer.key_identifier == key_identifier.digest
    assert extension(certificate, x509.SubjectKeyIdentifier).value != key_identifier
    assert isinstance(leaf.key, ec.EllipticCurvePrivateKey)
    assert isinstance(leaf.key.curve, ec.SECP256R1)
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)


def test_serials_and_keys_are_fresh() -> None:
    made = [pki.issue_robot(CA, "011", 30, NOW) for _ in range(20)]
    assert len({leaf.certificate.serial_number for leaf in made}) == 20
    assert all(leaf.certificate.serial_number.bit_length() > 100 for leaf in made)
    assert len({pki.fingerprint(leaf.certificate) for leaf in made}) == 20
    assert len({leaf.key.private_numbers() for leaf in made}) == 20


def test_fingerprint_is_that_of_openssl(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    shown = openssl("x509", "-in", tmp_path / "ca.crt", "-noout", "-fingerprint", "-sha256")
    assert shown.strip().partition("=")[2] == pki.fingerprint(CA.certificate)


# --- validity ---


@pytest.mark.parametrize("days", [1, 30, 3649])
def test_validity(days: int) -> None:
    later = NOW + dt.timedelta(minutes=1)
    start, end = validity(pki.issue_robot(CA, "011", days, later).certificate)
    assert start == (later - dt.timedelta(minutes=5)).replace(microsecond=0)
    assert end == (later + days * DAY).replace(microsecond=0)


def test_validity_in_another_time_zone() -> None:
    there = NOW.astimezone(dt.timezone(dt.timedelta(hours=9)))
    assert validity(pki.issue_robot(CA, "011", 5, there).certificate) == validity(
        pki.issue_robot(CA, "011", 5, NOW).certificate
    )


def test_a_century() -> None:
    """Beyond 2049 dates are written another way (RFC 5280, section 4.1.2.5.2)."""
    authority = pki.create_authority("Old", pki.DAYS_MAX, NOW)
    assert validity(authority.certificate)[1] == (NOW + pki.DAYS_MAX * DAY).replace(microsecond=0)


def test_no_leaf_outlives_its_authority() -> None:
    short = pki.create_authority("Short", 10, NOW)
    later = NOW + DAY / 2
    with pytest.raises(ConfigError, match=r"11 days go beyond the CA's own end on .* UTC: .* at most 9 with"):
        pki.issue_robot(short, "011", 11, later)
    pki.issue_robot(short, "011", 9, later)
    with pytest.raises(ConfigError, match="10 days go beyond"):
        pki.issue_server(short, ["localhost"], 10, later)
    with pytest.raises(ConfigError, match="time for a new CA"):
        pki.issue_robot(short, "011", 1, NOW + 9.5 * DAY)


# --- names ---


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\0b", "x" * 65, "x" * 200, "a b", "ü"])
def test_bad_robot_names(name: str) -> None:
    with pytest.raises(ConfigError, match="robot name"):
        pki.issue_robot(CA, name, 30, NOW)


@settings(max_examples=50)
@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True))
def test_any_robot_name(name: str) -> None:
    assert common_name(pki.issue_robot(CA, name, 30, NOW).certificate) == name


@pytest.mark.parametrize(
    "host",
    ["localhost", "a", "a-b.c9", "xn--bcher-kva.example", "3com.com", ".".join(["x" * 63] * 3 + ["y" * 61])],
)
def test_good_host_names(host: str) -> None:
    assert pki.parse_host(host) == x509.DNSName(host)
    assert pki.parse_host(host.upper()) == x509.DNSName(host)


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("", "neither"),
        (" ", "neither"),
        ("*.example.com", "neither"),
        ("*", "neither"),
        ("example.com.", "neither"),
        ("a..b", "neither"),
        ("-a.example", "neither"),
        ("a-.example", "neither"),
        ("a_b", "neither"),
        ("a/b", "neither"),
        ("a\0b.example", "neither"),
        ("a\n", "neither"),
        ("[::1]", "neither"),
        ("127.0.0.1:80", "neither"),
        ("127.0.0.256", "neither"),
        ("127.1", "neither"),
        ("1", "neither"),
        ("x" * 64, "neither"),
        (".".join(["x" * 63] * 3 + ["y" * 62]), "neither"),
        ("bücher.example", "xn--"),
        ("１２７.0.0.1", "xn--"),  # noqa: RUF001 - the point of it
        ("fe80::1%eth0", "zone"),
    ],
)
def test_bad_host_names(host: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        pki.issue_server(CA, ["localhost", host], 30, NOW)
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


@given(st.text(max_size=300))
def test_any_text_is_a_host_or_an_error(text: str) -> None:
    try:
        host = pki.parse_host(text)
    except ConfigError:
        return
    assert str(host.value).isascii()


@settings(max_examples=30)
@given(
    st.lists(
        st.one_of(
            st.ip_addresses(),
            st.from_regex(r"[a-z]([a-z0-9-]{0,28}[a-z])?(\.[a-z]{2,10}){0,3}", fullmatch=True),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_hosts(hosts: list[object]) -> None:
    texts = [str(host) for host in hosts]
    certificate = pki.issue_server(CA, texts, 30, NOW).certificate
    assert pki.alternative_names(certificate) == list(dict.fromkeys(texts))
    assert common_name(certificate) == texts[0]


def test_first_name_too_long_for_a_common_name() -> None:
    long = "x" * 63 + ".example"
    assert common_name(pki.issue_server(CA, [long, "short"], 30, NOW).certificate) == "short"
    certificate = pki.issue_server(CA, [long], 30, NOW).certificate
    assert common_name(certificate) == "server"
    assert pki.alternative_names(certificate) == [long]


def test_same_name_twice() -> None:
    certificate = pki.issue_server(CA, ["a", "A", "::1", "0::1"], 30, NOW).certificate
    assert pki.alternative_names(certificate) == ["a", "::1"]


def test_no_host() -> None:
    with pytest.raises(ConfigError, match="at least one host name"):
        pki.issue_server(CA, [], 30, NOW)


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "a\nb", "\x1b[31m"])
def test_bad_authority_names(name: str) -> None:
    with pytest.raises(ConfigError, match="CA name") as caught:
        pki.create_authority(name, 30, NOW)
    assert str(caught.value).isprintable()


def test_authority_name() -> None:
    assert common_name(pki.create_authority("Bücher & Co", 30, NOW).certificate) == "Bücher & Co"


# --- files ---


def test_load(tmp_path: Path) -> None:
    loaded = pki.load_authority(folder_with_ca(tmp_path), NOW)
    assert loaded.certificate == CA.certificate
    assert loaded.key.private_numbers() == CA.key.private_numbers()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o610])
def test_open_key(tmp_path: Path, mode: int) -> None:
    folder_with_ca(tmp_path)
    (tmp_path / "ca.key").chmod(mode)
    with pytest.raises(ConfigError, match=rf"ca.key is open to others .*mode {mode:04o}.*chmod 600 "):
        pki.load_authority(tmp_path, NOW)
    (tmp_path / "ca.key").chmod(0o400)
    pki.load_authority(tmp_path, NOW)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_key_of_another_user(tmp_path: Path) -> None:
    """In a folder that a group may write to, somebody else could have put it there."""
    folder_with_ca(tmp_path)
    os.chown(tmp_path / "ca.key", 65534, -1)
    with pytest.raises(ConfigError, match=r"ca.key belongs to another user \(uid 65534\)"):
        pki.load_authority(tmp_path, NOW)
    os.chown(tmp_path, 65534, -1)  # root may work in a user's CA
    pki.load_authority(tmp_path, NOW)


@pytest.mark.parametrize("name", ["ca.crt", "ca.key"])
def test_incomplete_authority(tmp_path: Path, name: str) -> None:
    folder_with_ca(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=f"{tmp_path / name}: No such file"):
        pki.load_authority(tmp_path, NOW)


def test_mixed_up_authority(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    other = pki.create_authority("Test CA", 30, NOW)
    write_files(pki.authority_files(tmp_path, other)[:1], force=True)
    with pytest.raises(ConfigError, match=r"private key .*ca\.key does not match certificate .*ca\.crt"):
        pki.load_authority(tmp_path, NOW)


def test_leaf_in_the_place_of_the_authority(tmp_path: Path) -> None:
    leaf = pki.issue_robot(CA, "011", 30, NOW)
    folder_with_ca(tmp_path, leaf)
    with pytest.raises(ConfigError, match="not a CA's certificate"):
        pki.load_authority(tmp_path, NOW)


def test_authority_out_of_time(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    with pytest.raises(ConfigError, match=r"ca\.crt expired on"):
        pki.load_authority(tmp_path, NOW + 4000 * DAY)
    with pytest.raises(ClockError, match=r"ca\.crt is not valid before"):
        pki.load_authority(tmp_path, NOW - DAY)


def test_no_leaf_takes_the_authority_s_place(tmp_path: Path) -> None:
    """A robot may be called ``ca``, and --force is not meant for this."""
    with pytest.raises(ConfigError, match=r"ca\.crt is the name of the CA's own file: .* --basename"):
        pki.leaf_files(tmp_path, tmp_path / "out", "ca", pki.issue_robot(CA, "ca", 30, NOW))


def test_the_copy_comes_first(tmp_path: Path) -> None:
    """A crash in between may leave a record without a certificate, not the other way round."""
    leaf = pki.issue_robot(CA, "011", 30, NOW)
    copy, key, crt = pki.leaf_files(tmp_path / "ca", tmp_path / "out", "011", leaf)
    assert copy.path == tmp_path / "ca" / "issued" / f"{leaf.certificate.serial_number:040x}.pem"
    assert copy.data == crt.data
    assert (key.path, key.mode) == (tmp_path / "out" / "011.key", 0o600)
    assert (crt.path, crt.mode) == (tmp_path / "out" / "011.crt", 0o644)
    assert b"PRIVATE" not in copy.data + crt.data


def test_issued(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    assert pki.load_issued(tmp_path) == []
    leaves = [
        pki.issue_robot(CA, "b", 30, NOW + 2 * DAY),
        pki.issue_server(CA, ["a"], 30, NOW + DAY),
        pki.issue_robot(CA, "c", 30, NOW),
    ]
    for number, leaf in enumerate(leaves):
        write_leaf(tmp_path, str(number), leaf)
    (tmp_path / "issued" / ".x.0123.new").write_bytes(b"left over by a crash")
    assert [common_name(found) for found in pki.load_issued(tmp_path)] == ["c", "a", "b"]


def test_issued_by_a_former_authority(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    write_leaf(tmp_path, "old", pki.issue_robot(CA, "old", 30, NOW))
    successor = pki.create_authority("Test CA", 30, NOW)
    folder_with_ca(tmp_path, successor)
    write_leaf(tmp_path, "new", pki.issue_robot(successor, "new", 20, NOW))
    assert [common_name(found) for found in pki.load_issued(tmp_path)] == ["new"]


def test_damaged_copy(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    (tmp_path / "issued").mkdir()
    (tmp_path / "issued" / "01.pem").write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match=r"issued certificate .*/01\.pem: it holds no certificate"):
        pki.load_issued(tmp_path)


def test_issued_without_an_authority(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca\.crt: No such file"):
        pki.load_issued(tmp_path)


def test_authority_made_by_other_tools(tmp_path: Path) -> None:
    """OpenSSL makes RSA by default, and leaves out the key identifier if told to."""
    config = tmp_path / "config"
    config.write_text(
        "[req]\ndistinguished_name=dn\nx509_extensions=v3\n[dn]\n"
        "[v3]\nbasicConstraints=critical,CA:TRUE\nsubjectKeyIdentifier=none\n"
    )
    openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "60", "-subj", "/CN=Foreign",
        "-config", config, "-keyout", tmp_path / "ca.key", "-out", tmp_path / "ca.crt",
    )  # fmt: skip
    (tmp_path / "ca.key").chmod(0o600)
    now = dt.datetime.now(dt.UTC)
    crt = write_leaf(tmp_path, "011", pki.issue_robot(pki.load_authority(tmp_path, now), "011", 30, now))
    load_credentials(tmp_path / "ca.crt", crt, tmp_path / "011.key", Purpose.ROBOT, now)
    assert len(pki.load_issued(tmp_path)) == 1


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
    assert pki.load_issued(tmp_path) == []
