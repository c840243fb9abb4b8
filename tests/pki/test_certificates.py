"""Certificates and keys: what a peer would refuse is refused here first, with one line that says why."""

import base64
import datetime as dt
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from shadow.errors import ClockError, ConfigError, IdentityError, ShadowError
from shadow.pki import certificates as certificate_files
from shadow.pki.certificates import (
    Credentials,
    Purpose,
    common_name,
    has_purpose,
    is_authority,
    load_certificates,
    load_credentials,
    moment,
    parse_certificates,
    validity,
)

NOW = dt.datetime(2030, 6, 1, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
_RSA = rsa.generate_private_key(65537, 2048)
_RSA_SHORT = rsa.generate_private_key(65537, 1024)  # noqa: S505 - to be refused


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def name(*common_names: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text) for text in common_names])


def certify(
    subject: str,
    key: Any,
    issuer: tuple[str, Any] | None = None,
    *,
    authority: bool = False,
    usages: list[x509.ObjectIdentifier] | None = None,
    term: tuple[dt.datetime, dt.datetime] = (NOW - DAY, NOW + DAY),
    serial: int | None = None,
) -> x509.Certificate:
    """A certificate; self-signed without an issuer."""
    issuer_name, issuer_key = issuer or (subject, key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer_name))
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(term[0])
        .not_valid_after(term[1])
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if usages is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def key_pem(
    key: Any,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
    encryption: serialization.KeySerializationEncryption | None = None,
) -> bytes:
    encryption = encryption or serialization.NoEncryption()
    data: bytes = key.private_bytes(serialization.Encoding.PEM, form, encryption)
    return data


SERVER_AUTH, CLIENT_AUTH = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


class Setup:
    """A folder with ca.crt, own.crt and own.key of a robot, all good; tests spoil one of them."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.crt, self.key = folder / "ca.crt", folder / "own.crt", folder / "own.key"
        self.ca_key, self.own_key = ec_key(), ec_key()
        self.issuer: tuple[str, Any] = ("CA", self.ca_key)
        self.ca_certificate = certify("CA", self.ca_key, authority=True)
        self.ca.write_bytes(pem(self.ca_certificate))
        self.own()
        self.key.write_bytes(key_pem(self.own_key))

    def own(self, *usages: x509.ObjectIdentifier, subject: str = "011", **options: Any) -> x509.Certificate:
        certificate = certify(
            subject, self.own_key, self.issuer, usages=list(usages) or [CLIENT_AUTH], **options
        )
        self.crt.write_bytes(pem(certificate))
        return certificate

    def load(self, purpose: Purpose = Purpose.ROBOT, now: dt.datetime = NOW) -> Credentials:
        return load_credentials(self.ca, self.crt, self.key, purpose, now)

    def refusal(
        self,
        kind: type[ShadowError] = ConfigError,
        purpose: Purpose = Purpose.ROBOT,
        now: dt.datetime = NOW,
    ) -> str:
        """The one line that ``load`` fails with."""
        with pytest.raises(kind) as caught:
            self.load(purpose, now)
        line = str(caught.value)
        assert type(caught.value) is kind
        assert "\n" not in line
        return line


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


# --- what is good ---


def test_good(setup: Setup) -> None:
    own = setup.own()
    credentials = setup.load()
    assert credentials.ca == [setup.ca_certificate]
    assert credentials.chain == [own]
    assert key_pem(credentials.key) == key_pem(setup.own_key)


def test_good_server(setup: Setup) -> None:
    own = setup.own(SERVER_AUTH)
    assert setup.load(Purpose.SERVER).chain == [own]


def test_good_from_the_first_to_the_last_second(setup: Setup) -> None:
    assert validity(setup.own()) == (NOW - DAY, NOW + DAY)
    setup.load(now=NOW - DAY)
    last = NOW + DAY - dt.timedelta(seconds=1)
    setup.load(now=last)
    setup.load(now=last.astimezone(dt.timezone(dt.timedelta(hours=9))))


def test_rsa(setup: Setup) -> None:
    setup.ca.write_bytes(pem(certify("CA", _RSA, authority=True)))
    setup.issuer = ("CA", _RSA)
    setup.own_key = _RSA  # type: ignore[assignment]
    setup.own()
    setup.key.write_bytes(key_pem(_RSA, serialization.PrivateFormat.TraditionalOpenSSL))
    assert isinstance(setup.load().key, rsa.RSAPrivateKey)


def test_intermediate(setup: Setup) -> None:
    middle_key = ec_key()
    middle = certify("Middle", middle_key, setup.issuer, authority=True)
    setup.issuer = ("Middle", middle_key)
    own = setup.own()
    assert "not issued by" in setup.refusal()
    setup.crt.write_bytes(pem(own, middle))
    assert setup.load().chain == [own, middle]


def test_two_authorities_while_one_follows_the_other(setup: Setup) -> None:
    old = certify("Old", ec_key(), authority=True, term=(NOW - 2 * DAY, NOW - DAY))
    setup.ca.write_bytes(pem(old, setup.ca_certificate))
    assert setup.load().ca == [old, setup.ca_certificate]


def test_text_around_certificates(setup: Setup) -> None:
    setup.ca.write_bytes(b"Certificate:\n  Issuer: CN=CA\n" + setup.ca.read_bytes() + b"the end\n")
    setup.load()


# --- what is not ---


@pytest.mark.parametrize(
    ("file", "what"), [("ca", "CA certificate"), ("crt", "certificate"), ("key", "private key")]
)
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (Path.unlink, "No such file or directory"),
        (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
        (lambda path: path.write_bytes(b""), "in PEM form"),
        (lambda path: path.write_bytes(b"\x30\x82\x01\x00"), "in PEM form"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"M", b"AAAA")), "damaged: not a "),
        (lambda path: path.write_bytes(b"x" * 2**21), "larger than"),
    ],
)
def test_bad_file(setup: Setup, file: str, what: str, spoil: Callable[[Path], object], why: str) -> None:
    path: Path = getattr(setup, file)
    spoil(path)
    line = setup.refusal()
    assert line.startswith(f"{what} {path}: ")
    assert why in line


def test_no_files_at_all(setup: Setup) -> None:
    for path in (setup.ca, setup.crt, setup.key):
        path.unlink()
    assert setup.refusal().startswith(
        f"CA certificate {setup.ca}, certificate {setup.crt} and private key {setup.key}: No such file"
    )


def test_truncated_certificate(setup: Setup) -> None:
    setup.ca.write_bytes(setup.ca.read_bytes() + setup.ca.read_bytes()[:200])
    assert setup.refusal() == f"CA certificate {setup.ca}: damaged: a certificate has no end"


def test_crt_and_key_swapped(setup: Setup) -> None:
    setup.crt, setup.key = setup.key, setup.crt
    assert "own.key: it holds a private key and no certificate in PEM form" in setup.refusal()
    setup.crt, setup.key = setup.key, setup.key
    assert "own.crt: it holds no private key in PEM form" in setup.refusal()


def test_encrypted_key(setup: Setup) -> None:
    setup.key.write_bytes(key_pem(setup.own_key, encryption=serialization.BestAvailableEncryption(b"pw")))
    line = setup.refusal()
    assert line.startswith(f"private key {setup.key}: encrypted; decrypt it")
    assert "LoadCredentialEncrypted=" in line


def test_encrypted_key_of_the_old_form(setup: Setup) -> None:
    form = serialization.PrivateFormat.TraditionalOpenSSL
    setup.key.write_bytes(key_pem(setup.own_key, form, serialization.BestAvailableEncryption(b"pw")))
    assert "encrypted; decrypt it" in setup.refusal()


def test_key_too_long_for_its_curve(setup: Setup) -> None:
    """The length of the secret is damaged, which OpenSSL notices late, and cryptography badly."""
    good = setup.own_key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    damaged = good.replace(b"\x02\x01\x01\x04\x20", b"\x02\x01\x01\x04\x66")
    assert damaged != good
    body = base64.encodebytes(damaged)
    setup.key.write_bytes(b"-----BEGIN PRIVATE KEY-----\n" + body + b"-----END PRIVATE KEY-----\n")
    assert setup.refusal() == f"private key {setup.key}: damaged: not a private key"


def test_key_of_another_kind(setup: Setup) -> None:
    setup.key.write_bytes(key_pem(ed25519.Ed25519PrivateKey.generate()))
    assert setup.refusal() == f"private key {setup.key}: neither an EC nor an RSA key"


@pytest.mark.parametrize("other", [ec_key(), _RSA])
def test_key_of_another_certificate(setup: Setup, other: Any) -> None:
    setup.key.write_bytes(key_pem(other))
    assert setup.refusal().startswith(f"private key {setup.key} does not match certificate {setup.crt}")


def test_chain_in_the_wrong_order(setup: Setup) -> None:
    setup.crt.write_bytes(pem(setup.ca_certificate, setup.own()))
    assert "our own certificate comes first" in setup.refusal()


def test_expired(setup: Setup) -> None:
    setup.own(term=(NOW - 3 * DAY, NOW - DAY))
    assert setup.refusal() == (
        f"certificate {setup.crt} expired on 2030-05-31 12:00:00 UTC; make a new one with `shadow-ca`"
    )


def test_not_yet_valid_is_the_clock(setup: Setup) -> None:
    line = setup.refusal(ClockError, now=dt.datetime(1970, 1, 1, tzinfo=dt.UTC))
    assert line.startswith(f"certificate {setup.crt} is not valid before 2030-05-31 12:00:00 UTC")
    assert "clock says 1970-01-01 00:00:00 UTC" in line


def test_intermediate_expired(setup: Setup) -> None:
    middle_key = ec_key()
    term = (NOW - 3 * DAY, NOW - DAY)
    middle = certify("Middle", middle_key, setup.issuer, authority=True, term=term)
    setup.issuer = ("Middle", middle_key)
    setup.crt.write_bytes(pem(setup.own(), middle))
    assert f"certificate {setup.crt} expired" in setup.refusal()


def test_authority_expired(setup: Setup) -> None:
    expired = certify("CA", setup.ca_key, authority=True, term=(NOW - 3 * DAY, NOW - DAY))
    setup.ca.write_bytes(pem(expired))
    assert setup.refusal().startswith(f"CA certificate {setup.ca} expired on 2030-05-31 12:00:00 UTC")


def test_authority_not_yet_valid(setup: Setup) -> None:
    early = certify("CA", setup.ca_key, authority=True, term=(NOW + DAY, NOW + 2 * DAY))
    setup.ca.write_bytes(pem(early))
    assert setup.refusal(ClockError).startswith(f"CA certificate {setup.ca} is not valid before 2030-06-02")


def test_the_robot_s_certificate_for_a_server(setup: Setup) -> None:
    assert setup.refusal(purpose=Purpose.SERVER) == (
        f"{setup.crt} is a robot's certificate; a server needs one made by `shadow-ca server HOST`"
    )


def test_the_server_s_certificate_for_a_robot(setup: Setup) -> None:
    setup.own(SERVER_AUTH)
    assert setup.refusal() == (
        f"{setup.crt} is a server's certificate; a robot needs one made by `shadow-ca robot NAME`"
    )


def test_certificate_for_neither(setup: Setup) -> None:
    setup.own(ExtendedKeyUsageOID.CODE_SIGNING)
    assert "is neither a server's nor a robot's certificate; a robot needs" in setup.refusal()


def test_a_peers_certificate_for_others(setup: Setup) -> None:
    """It has the usages of both."""
    own = setup.own(SERVER_AUTH, CLIENT_AUTH, subject="peer:a")
    assert [purpose for purpose in Purpose if has_purpose(own, purpose)] == [Purpose.PEER]
    assert setup.refusal() == (
        f"{setup.crt} is a peer's certificate; a robot needs one made by `shadow-ca robot NAME`"
    )
    assert "is a peer's certificate; a server needs one" in setup.refusal(purpose=Purpose.SERVER)
    setup.own()
    assert setup.refusal(purpose=Purpose.PEER) == (
        f"{setup.crt} is a robot's certificate; a peer needs one made by `shadow-ca peer NAME`"
    )


def test_a_company_may_give_one_certificate_both_usages(setup: Setup) -> None:
    """Its servers' certificates often are like that; only the name makes a peer."""
    both = setup.own(SERVER_AUTH, CLIENT_AUTH, subject="tunnel.example.com")
    assert [purpose for purpose in Purpose if has_purpose(both, purpose)] == [Purpose.SERVER, Purpose.ROBOT]
    for purpose in (Purpose.SERVER, Purpose.ROBOT):
        assert setup.load(purpose).chain == [both]
    assert "is a server's certificate; a peer needs one" in setup.refusal(purpose=Purpose.PEER)


def test_authority_that_is_none(setup: Setup) -> None:
    setup.ca.write_bytes(setup.crt.read_bytes())
    assert setup.refusal().startswith(f"CA certificate {setup.ca}: not a CA's certificate")
    setup.ca.write_bytes(pem(setup.ca_certificate, setup.own()))
    assert "not a CA's certificate" in setup.refusal()


@pytest.mark.parametrize("title", ["CA", "Other"])
def test_another_authority(setup: Setup, title: str) -> None:
    """Also one of the same name, whose signature alone tells it apart."""
    setup.ca.write_bytes(pem(certify(title, ec_key(), authority=True)))
    line = setup.refusal()
    assert line.startswith(f"certificate {setup.crt} was not issued by the CA in {setup.ca} (")
    assert line.endswith("take both from the same CA")


def test_issued_by_a_leaf(setup: Setup) -> None:
    """A stolen robot key must not be able to make robots."""
    thief = certify("thief", setup.own_key, setup.issuer, usages=[CLIENT_AUTH])
    forged_key = ec_key()
    forged = certify("012", forged_key, ("thief", setup.own_key), usages=[CLIENT_AUTH])
    setup.crt.write_bytes(pem(forged, thief))
    setup.key.write_bytes(key_pem(forged_key))
    assert "was not issued by the CA" in setup.refusal()


def test_self_signed(setup: Setup) -> None:
    own = certify("011", setup.own_key, usages=[CLIENT_AUTH])
    setup.crt.write_bytes(pem(own))
    assert "was not issued by the CA" in setup.refusal()


@pytest.mark.parametrize("short", [_RSA_SHORT, ec.generate_private_key(ec.SECP192R1())])
def test_short_keys(setup: Setup, short: Any) -> None:
    setup.own_key = short
    setup.own()
    setup.key.write_bytes(key_pem(short))
    assert setup.refusal().startswith(f"certificate {setup.crt}: its key is too short")
    setup.ca.write_bytes(pem(certify("CA", short, authority=True)))
    assert setup.refusal().startswith(f"CA certificate {setup.ca}: its key is too short")


def test_what_openssl_does_not_take_names_the_file(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """No such certificate is known; if one comes up, a reload must not end half-way."""

    def refuse(*_arguments: object) -> None:
        raise SSL.Error([("SSL routines", "", "ee key too small")])

    monkeypatch.setattr(certificate_files, "present", refuse)
    line = setup.refusal()
    assert line == f"certificate {setup.crt}: OpenSSL does not take it, or its key: ee key too small"


def test_sha1(setup: Setup) -> None:
    ca_key_file = setup.key.with_name("ca.key")
    ca_key_file.write_bytes(key_pem(setup.ca_key))
    request = x509.CertificateSigningRequestBuilder().subject_name(name("011"))
    csr = request.sign(setup.own_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    extensions = setup.key.with_name("extensions")
    extensions.write_text("extendedKeyUsage=clientAuth\n")
    made = subprocess.run(
        [
            "openssl", "x509", "-req", "-sha1", "-CA", setup.ca, "-CAkey", ca_key_file, "-set_serial", "1",
            "-days", "36500", "-extfile", extensions,
        ],
        input=csr, check=True, capture_output=True,
    )  # fmt: skip
    setup.crt.write_bytes(made.stdout)
    assert setup.refusal(now=dt.datetime(2060, 1, 1, tzinfo=dt.UTC)).endswith(
        "signed with MD5 or SHA-1; make a new one with `shadow-ca`"
    )


# --- the pieces ---


def test_common_name() -> None:
    assert common_name(certify("011", ec_key())) == "011"


@pytest.mark.parametrize(("names", "count"), [((), "no"), (("011", "012"), "2")])
def test_not_one_common_name(names: tuple[str, ...], count: str) -> None:
    """Of two names, one side might take the first and the other the last."""
    key = ec_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name(*names))
        .issuer_name(name("CA"))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW)
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(IdentityError, match=f"has {count} common names"):
        common_name(certificate)


@pytest.mark.parametrize(
    ("usages", "server", "robot"),
    [
        (None, False, False),
        ([SERVER_AUTH], True, False),
        ([CLIENT_AUTH], False, True),
        ([SERVER_AUTH, CLIENT_AUTH], True, True),
        ([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE], False, False),
    ],
)
def test_has_purpose(usages: list[x509.ObjectIdentifier] | None, *, server: bool, robot: bool) -> None:
    certificate = certify("x", ec_key(), usages=usages)
    assert has_purpose(certificate, Purpose.SERVER) is server
    assert has_purpose(certificate, Purpose.ROBOT) is robot


def test_is_authority() -> None:
    assert is_authority(certify("x", ec_key(), authority=True))
    assert not is_authority(certify("x", ec_key()))


def spoilt(certificate: x509.Certificate, old: bytes, new: bytes) -> x509.Certificate:
    """The same certificate with some bytes of its DER replaced; its signature no longer fits."""
    der = certificate.public_bytes(serialization.Encoding.DER)
    assert old in der
    assert len(old) == len(new)
    return x509.load_der_x509_certificate(der.replace(old, new))


def test_a_peer_s_damaged_extensions_have_no_purpose() -> None:
    """A hostile peer's certificate must end in a refusal, whatever it holds."""
    oid_bytes = b"\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02"  # clientAuth
    broken = b"\x04" + oid_bytes[1:]  # an OCTET STRING where an OID belongs
    certificate = spoilt(certify("x", ec_key(), usages=[CLIENT_AUTH]), oid_bytes, broken)
    assert not has_purpose(certificate, Purpose.ROBOT)
    basic_constraints, usage = b"\x06\x03\x55\x1d\x13", b"\x06\x03\x55\x1d\x25"
    twice = spoilt(certify("x", ec_key(), usages=[CLIENT_AUTH]), basic_constraints, usage)
    assert not has_purpose(twice, Purpose.ROBOT)
    assert not is_authority(twice)


@pytest.mark.parametrize("new", [b"\x0c\x04\xff\xfe\xfd\xfc", b"\xfc\x04Eve1"])
def test_a_peer_s_damaged_subject(new: bytes) -> None:
    certificate = spoilt(certify("Eve1", ec_key(), ("CA", ec_key())), b"\x0c\x04Eve1", new)
    with pytest.raises(IdentityError, match="damaged"):
        common_name(certificate)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x0c\x04Eve1", b"\x0c\x04\xff\xfe\xfd\xfc"),  # the subject: not UTF-8
        (b"\x0c\x04Eve1", b"\xfc\x04Eve1"),  # no string type at all
        (b"\x0c\x04Eve0", b"\x0c\x04\xff\xfe\xfd\xfc"),  # the issuer
        (b"\x06\x03\x55\x1d\x13", b"\x06\x03\x55\x1d\x25"),  # an extension twice
        (b"\x03\x42\x00\x04", b"\x03\x42\x00\x09"),  # the public key: not a point (SEC 1, section 2.3.4)
    ],
)
def test_damage_within_is_found_when_loading(old: bytes, new: bytes) -> None:
    certificate = certify("Eve1", ec_key(), ("Eve0", ec_key()), usages=[CLIENT_AUTH])
    with pytest.raises(ConfigError, match="certificate f: damaged: not a certificate"):
        parse_certificates(pem(spoilt(certificate, old, new)), Path("f"), "certificate")


_GOOD_DER = certify("x", ec_key(), serial=0x7EDCBA98).public_bytes(serialization.Encoding.DER)


def test_oddities_are_no_warnings() -> None:
    """A negative serial number is against RFC 5280, and no reason to fill the log at each reload."""
    der = _GOOD_DER.replace(b"\x02\x04\x7e\xdc\xba\x98", b"\x02\x04\xfe\xdc\xba\x98")
    assert der != _GOOD_DER
    odd = ssl.DER_cert_to_PEM_cert(der)
    assert len(parse_certificates(odd.encode(), Path("f"), "certificate")) == 1


_GOOD = pem(certify("x", ec_key(), usages=[CLIENT_AUTH]))


@given(st.integers(0, len(_GOOD) - 1), st.binary(min_size=1, max_size=4))
def test_any_damage_is_a_config_error(position: int, bytes_: bytes) -> None:
    damaged = _GOOD[:position] + bytes_ + _GOOD[position + len(bytes_) :]
    line = ""
    try:
        parse_certificates(damaged, Path("f"), "certificate")
    except ConfigError as error:
        line = str(error)
    assert not line or line.startswith("certificate f: ")


def test_several_certificates_keep_their_order(tmp_path: Path) -> None:
    made = [certify(text, ec_key()) for text in "abc"]
    (tmp_path / "f").write_bytes(pem(*made))
    assert [common_name(found) for found in load_certificates(tmp_path / "f", "f")] == ["a", "b", "c"]


def test_moment() -> None:
    assert moment(NOW.astimezone(dt.timezone(dt.timedelta(hours=-5)))) == "2030-06-01 12:00:00 UTC"
