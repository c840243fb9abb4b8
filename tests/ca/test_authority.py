"""The CA's work, judged by OpenSSL's own command beside our reading of it."""

import datetime as dt
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.ca import authority as authorities
from shadow.errors import ConfigError
from shadow.pki import certificates
from shadow.pki.certificates import Purpose, common_name, has_purpose, load_credentials, validity
from tests.support.ca_folder import CA, NOW, folder_with_ca, write_leaf

DAY = dt.timedelta(days=1)


def openssl(*arguments: str | Path) -> str:
    """What openssl has to say, be it good or bad."""
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def verify(crt: Path, purpose: str, *more: str) -> str:
    return openssl(
        "verify", "-x509_strict", "-purpose", purpose, "-CAfile", crt.parent / "ca.crt", *more, crt
    )


# --- profiles ---


def test_openssl_accepts_the_server(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    server = authorities.issue_server(CA, ["tunnel.example.com", "192.0.2.7", "2001:db8::7"], 30, NOW)
    crt = write_leaf(tmp_path, "server", server)
    assert verify(crt, "sslserver") == f"{crt}: OK\n"
    for name in ("-verify_hostname=tunnel.example.com", "-verify_ip=192.0.2.7", "-verify_ip=2001:db8::7"):
        assert verify(crt, "sslserver", *name.split("=")).endswith(": OK\n")
    assert "ostname mismatch" in verify(crt, "sslserver", "-verify_hostname", "other.example.com")
    assert "nsupported certificate purpose" in verify(crt, "sslclient").replace("unsuitable", "unsupported")


def test_openssl_accepts_the_robot(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    crt = write_leaf(tmp_path, "011", authorities.issue_robot(CA, "011", 30, NOW))
    assert verify(crt, "sslclient") == f"{crt}: OK\n"
    assert "certificate purpose" in verify(crt, "sslserver")


def test_openssl_accepts_the_peer_in_either_part(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    crt = write_leaf(tmp_path, "peer", authorities.issue_peer(CA, "a", 30, NOW))
    for purpose in ("sslclient", "sslserver"):
        assert verify(crt, purpose) == f"{crt}: OK\n"
    assert "OK" not in verify(crt, "sslserver", "-verify_hostname", "a")


def test_a_peer_has_no_name_by_which_robots_could_dial_it() -> None:
    """It has serverAuth; this is what keeps robots of every version from taking it for their server."""
    peer = authorities.issue_peer(CA, "a" * 59, 30, NOW).certificate
    assert (common_name(peer), certificates.alternative_names(peer)) == ("peer:" + "a" * 59, [])
    for bad in ("a" * 60, "peer:a", "", "../a"):
        with pytest.raises(ConfigError, match="server id"):
            authorities.issue_peer(CA, bad, 30, NOW)


def test_openssl_refuses_what_a_leaf_has_issued(tmp_path: Path) -> None:
    """A stolen robot key must not be able to make robots."""
    folder_with_ca(tmp_path)
    thief = authorities.issue_robot(CA, "011", 30, NOW)
    (tmp_path / "thief.pem").write_bytes(thief.certificate.public_bytes(serialization.Encoding.PEM))
    crt = write_leaf(tmp_path, "012", authorities.issue_robot(thief, "012", 20, NOW))
    assert "OK" not in verify(crt, "sslclient", "-untrusted", str(tmp_path / "thief.pem"))


def test_shadow_accepts_what_it_has_made(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    write_leaf(tmp_path, "server", authorities.issue_server(CA, ["::1"], 30, NOW))
    write_leaf(tmp_path, "011", authorities.issue_robot(CA, "011", 30, NOW))
    write_leaf(tmp_path, "peer", authorities.issue_peer(CA, "a", 30, NOW))
    for name, purpose in (("server", Purpose.SERVER), ("011", Purpose.ROBOT), ("peer", Purpose.PEER)):
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
    "leaf",
    [
        authorities.issue_robot(CA, "011", 30, NOW),
        authorities.issue_server(CA, ["localhost"], 30, NOW),
        authorities.issue_peer(CA, "a", 30, NOW),
    ],
)
def test_profile_of_the_leaves(leaf: authorities.Pair) -> None:
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
    assert [has_purpose(certificate, purpose) for purpose in Purpose].count(True) == 1
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
    made = [authorities.issue_robot(CA, "011", 30, NOW) for _ in range(20)]
    assert len({leaf.certificate.serial_number for leaf in made}) == 20
    assert all(leaf.certificate.serial_number.bit_length() > 100 for leaf in made)
    assert len({authorities.fingerprint(leaf.certificate) for leaf in made}) == 20
    assert len({leaf.key.private_numbers() for leaf in made}) == 20


def test_fingerprint_is_that_of_openssl(tmp_path: Path) -> None:
    folder_with_ca(tmp_path)
    shown = openssl("x509", "-in", tmp_path / "ca.crt", "-noout", "-fingerprint", "-sha256")
    assert shown.strip().partition("=")[2] == authorities.fingerprint(CA.certificate)


# --- validity ---


@pytest.mark.parametrize("days", [1, 30, 3649])
def test_validity(days: int) -> None:
    later = NOW + dt.timedelta(minutes=1)
    start, end = validity(authorities.issue_robot(CA, "011", days, later).certificate)
    assert start == (later - dt.timedelta(minutes=5)).replace(microsecond=0)
    assert end == (later + days * DAY).replace(microsecond=0)


def test_validity_in_another_time_zone() -> None:
    there = NOW.astimezone(dt.timezone(dt.timedelta(hours=9)))
    assert validity(authorities.issue_robot(CA, "011", 5, there).certificate) == validity(
        authorities.issue_robot(CA, "011", 5, NOW).certificate
    )


def test_a_century() -> None:
    """Beyond 2049 dates are written another way (RFC 5280, section 4.1.2.5.2)."""
    authority = authorities.create_authority("Old", authorities.DAYS_MAX, NOW)
    assert validity(authority.certificate)[1] == (NOW + authorities.DAYS_MAX * DAY).replace(microsecond=0)


def test_no_leaf_outlives_its_authority() -> None:
    short = authorities.create_authority("Short", 10, NOW)
    later = NOW + DAY / 2
    with pytest.raises(ConfigError, match=r"11 days go beyond the CA's own end on .* UTC: .* at most 9 with"):
        authorities.issue_robot(short, "011", 11, later)
    authorities.issue_robot(short, "011", 9, later)
    with pytest.raises(ConfigError, match="10 days go beyond"):
        authorities.issue_server(short, ["localhost"], 10, later)
    with pytest.raises(ConfigError, match="time for a new CA"):
        authorities.issue_robot(short, "011", 1, NOW + 9.5 * DAY)


# --- names ---


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "a\0b", "x" * 65, "x" * 200, "a b", "ü"])
def test_bad_robot_names(name: str) -> None:
    with pytest.raises(ConfigError, match="robot name"):
        authorities.issue_robot(CA, name, 30, NOW)


@settings(max_examples=50)
@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True))
def test_any_robot_name(name: str) -> None:
    assert common_name(authorities.issue_robot(CA, name, 30, NOW).certificate) == name


@pytest.mark.parametrize(
    "host",
    ["localhost", "a", "a-b.c9", "xn--bcher-kva.example", "3com.com", ".".join(["x" * 63] * 3 + ["y" * 61])],
)
def test_good_host_names(host: str) -> None:
    assert authorities.parse_host(host) == x509.DNSName(host)
    assert authorities.parse_host(host.upper()) == x509.DNSName(host)


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
        authorities.issue_server(CA, ["localhost", host], 30, NOW)
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


@given(st.text(max_size=300))
def test_any_text_is_a_host_or_an_error(text: str) -> None:
    try:
        host = authorities.parse_host(text)
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
    certificate = authorities.issue_server(CA, texts, 30, NOW).certificate
    assert certificates.host_names(certificate) == list(dict.fromkeys(texts))
    assert common_name(certificate) == texts[0]


def test_first_name_too_long_for_a_common_name() -> None:
    long = "x" * 63 + ".example"
    assert common_name(authorities.issue_server(CA, [long, "short"], 30, NOW).certificate) == "short"
    certificate = authorities.issue_server(CA, [long], 30, NOW).certificate
    assert common_name(certificate) == "server"
    assert certificates.host_names(certificate) == [long]


def test_same_name_twice() -> None:
    certificate = authorities.issue_server(CA, ["a", "A", "::1", "0::1"], 30, NOW).certificate
    assert certificates.host_names(certificate) == ["a", "::1"]


def test_no_host() -> None:
    with pytest.raises(ConfigError, match="at least one host name"):
        authorities.issue_server(CA, [], 30, NOW)


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "a\nb", "\x1b[31m"])
def test_bad_authority_names(name: str) -> None:
    with pytest.raises(ConfigError, match="CA name") as caught:
        authorities.create_authority(name, 30, NOW)
    assert str(caught.value).isprintable()


def test_authority_name() -> None:
    assert common_name(authorities.create_authority("Bücher & Co", 30, NOW).certificate) == "Bücher & Co"
