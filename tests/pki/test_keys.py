"""Keys: what can be read, and which kinds handshakes take."""

import asyncio
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from shadow.errors import ConfigError, HandshakeError
from shadow.pki import certificates
from shadow.pki.certificates import Purpose, load_credentials
from shadow.pki.keys import parse_private_key
from shadow.transport import context
from tests.support import Authority, now, openssl_key, settings, shake_hands

_GOOD = ec.generate_private_key(ec.SECP256R1()).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)


@pytest.mark.parametrize(
    "genkey", ["ecparam -name prime256v1 -genkey", "genrsa 2048", "genrsa -traditional 2048"]
)
def test_keys_as_openssl_makes_them(tmp_path: Path, genkey: str) -> None:
    path = tmp_path / "k"
    subprocess.run(
        ["openssl", *genkey.split()[:1], "-out", str(path), *genkey.split()[1:]],
        check=True,
        capture_output=True,
    )
    assert parse_private_key(path.read_bytes(), path, "private key").key_size in {256, 2048}


@given(st.integers(0, len(_GOOD) - 1), st.binary(min_size=1, max_size=4))
def test_any_damage_of_a_key_is_a_config_error(position: int, bytes_: bytes) -> None:
    damaged = _GOOD[:position] + bytes_ + _GOOD[position + len(bytes_) :]
    line = ""
    try:
        parse_private_key(damaged, Path("f"), "private key")
    except ConfigError as error:
        line = str(error)
    assert not line or line.startswith("private key f: ")
    assert not any(secret in line for secret in _GOOD.decode().splitlines()[1:-1])


CURVES = ["secp224r1", "secp256k1", "brainpoolP256r1", "secp384r1", "secp521r1"]


@pytest.mark.parametrize("curve", CURVES)
def test_a_curve_is_refused_if_and_only_if_handshakes_refuse_it(own: Authority, curve: str) -> None:
    """Whatever OpenSSL thinks of it today: what was loaded works, and what works is not refused."""
    options = "-algorithm", "EC", "-pkeyopt", f"ec_paramgen_curve:{curve}"
    crt, key = own.robot(key=openssl_key(own.folder / "odd.key", *options))
    server = settings(own, Purpose.SERVER)
    complaint, works = "", True
    try:
        load_credentials(own.ca, crt, key, Purpose.ROBOT, now())
    except ConfigError as error:
        complaint = str(error)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "check_curve", lambda *_arguments: None)
        ours = load_credentials(own.ca, crt, key, Purpose.ROBOT, now())
    robot = context.Settings(context.make_context(ours), Purpose.ROBOT, context.Ktls.OFF, ("localhost",))
    try:
        for link in asyncio.run(shake_hands(server, robot)):
            link.sock.close()
    except HandshakeError:
        works = False
    expected = (
        "" if works else f"certificate {crt}: its key is on the curve {curve}, which no handshake takes"
    )
    assert complaint.partition(";")[0] == expected
    assert works is (curve in {"secp384r1", "secp521r1"})
