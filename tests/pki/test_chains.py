"""Chains of certificates: what OpenSSL is given to show, and what it verifies."""

import asyncio
import dataclasses
import datetime as dt
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from shadow.errors import ConfigError, HandshakeError
from shadow.pki.certificates import Purpose, load_certificates, load_credentials
from shadow.pki.crl import load_revocations
from shadow.transport import context as contexts
from shadow.transport import handshake
from tests.support import Authority, make_list, now, openssl_key, shake_hands


@pytest.fixture
def middle(own: Authority) -> Authority:
    """An intermediate of ``own``."""
    return Authority(own.folder / "middle", "Middle", own)


def side(ca: Path, pair: tuple[Path, Path], purpose: Purpose) -> contexts.Settings:
    credentials = load_credentials(ca, *pair, purpose, now())
    context = contexts.make_context(credentials)
    return contexts.Settings(context, purpose, contexts.Ktls.OFF, ("localhost",), credentials.ca)


def chains(ca: Path, issuer: Authority) -> list[list[x509.Certificate]]:
    """Whom the server and a robot of ``issuer`` take each other for, in a handshake and later again."""
    server, robot = side(ca, issuer.server(), Purpose.SERVER), side(ca, issuer.robot(), Purpose.ROBOT)
    links = asyncio.run(shake_hands(server, robot))
    found = [list(link.chain) for link in links]
    for link, its_side in zip(links, (server, robot), strict=True):
        link.sock.close()
        link.chain = [
            link.certificate
        ]  # what an older version has noted down of a robot that shows only that
        handshake.check_again(link, dataclasses.replace(its_side, ktls=contexts.Ktls.AUTO))
    assert [link.chain for link in links] == found
    return found


def test_an_intermediate_that_nobody_shows_is_in_the_chain(own: Authority, middle: Authority) -> None:
    ca = own.folder / "both.crt"
    ca.write_bytes(own.ca.read_bytes() + middle.ca.read_bytes())
    of_the_robot, of_the_server = chains(ca, middle)
    assert of_the_robot[0] == load_certificates(middle.robot()[0], "robot")[0]
    assert of_the_server[0] == load_certificates(middle.server()[0], "server")[0]
    assert middle.certificate in of_the_robot
    assert middle.certificate in of_the_server


def test_an_intermediate_alone_is_trusted_if_the_operator_says_so(own: Authority, middle: Authority) -> None:
    """At load, in the handshake, after a restart, and for the list of whom it has revoked."""
    for chain in chains(middle.ca, middle):
        assert chain[1:] == [middle.certificate]
    crl = load_revocations(make_list(middle, 7), [middle.certificate])
    assert [listed.issuer for listed in crl.lists] == [middle.name]
    # Its root is not trusted for that: who is of another branch stays a stranger.
    server, robot = (
        side(middle.ca, middle.server(), Purpose.SERVER),
        side(own.ca, own.robot(), Purpose.ROBOT),
    )
    with pytest.raises(HandshakeError, match="unknown_ca"):
        asyncio.run(shake_hands(server, robot))


def test_a_robot_is_no_ca_wherever_its_certificate_stands(own: Authority) -> None:
    crt, key = own.robot()
    with pytest.raises(ConfigError, match="not a CA's certificate"):
        load_credentials(crt, crt, key, Purpose.ROBOT, now())


def test_too_many_certificates_to_show(own: Authority) -> None:
    crt, key = own.robot()
    crt.write_bytes(crt.read_bytes() + 10 * own.ca.read_bytes())
    with pytest.raises(
        ConfigError, match=rf"certificate {crt}: 11 certificates of \d+ bytes in all, and peers"
    ):
        load_credentials(own.ca, crt, key, Purpose.ROBOT, now())


def test_a_key_for_rsa_pss_only(own: Authority) -> None:
    key = own.folder / "pss.key"
    pss = openssl_key(key, "-algorithm", "RSA-PSS", "-pkeyopt", "rsa_keygen_bits:2048")
    request, crt = own.folder / "pss.csr", own.folder / "pss.crt"
    (own.folder / "ca.key").write_bytes(own.key_pem)
    (own.folder / "extensions").write_text("extendedKeyUsage=clientAuth\n")
    commands: list[list[str | Path]] = [
        ["req", "-new", "-key", key, "-subj", "/CN=011", "-out", request],
        ["x509", "-req", "-in", request, "-CA", own.ca, "-CAkey", own.folder / "ca.key", "-set_serial", "1",
         "-extfile", own.folder / "extensions", "-out", crt],
    ]  # fmt: skip
    for words in commands:
        subprocess.run(["openssl", *words], check=True, capture_output=True)
    assert isinstance(pss, rsa.RSAPrivateKey)  # so cryptography says
    with pytest.raises(ConfigError, match=rf"^{crt}: its key is for RSA-PSS only"):
        load_credentials(own.ca, crt, key, Purpose.ROBOT, now() + dt.timedelta(seconds=1))
