"""Chains of certificates: what OpenSSL is given to show, and what it verifies."""

import datetime as dt
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from shadow.certificates import Purpose, load_credentials
from shadow.errors import ConfigError
from tests.support import Authority, now, openssl_key


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
