"""Which host a server's certificate is for: what OpenSSL's own command thinks of it, too."""

import ipaddress
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from shadow.errors import ConfigError
from shadow.pki.certificates import Purpose
from shadow.transport.hostnames import is_for, parse_reference
from tests.support import Authority


def names(*texts: str) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for text in texts:
        kind, _colon, value = text.partition(":")
        found.append(x509.DNSName(value) if kind == "DNS" else x509.IPAddress(ipaddress.ip_address(value)))
    return found


CASES = [
    ("robots.test", ["DNS:robots.test"], True),
    ("Robots.TEST", ["DNS:robots.test"], True),
    ("robots.test", ["DNS:ROBOTS.test"], True),
    ("robots.test", ["DNS:xrobots.test", "DNS:robots.test.x"], False),
    ("a.robots.test", ["DNS:*.robots.test"], True),
    ("a.b.robots.test", ["DNS:*.robots.test"], False),
    ("robots.test", ["DNS:*.robots.test"], False),
    ("robots.test", ["DNS:*.test"], False),
    ("localhost", ["DNS:*"], False),
    ("a.robots.test", ["DNS:a.*.test", "DNS:*.*.test"], False),
    ("a.b.robots.test", ["DNS:*.*.robots.test"], False),
    ("127.0.0.1", ["DNS:127.0.0.1"], False),
    ("127.0.0.1", ["IP:127.0.0.1"], True),
    ("127.0.0.1", ["IP:127.0.0.2"], False),
    ("::1", ["IP:::1"], True),
    ("0:0::1", ["IP:::1"], True),
    ("localhost", ["IP:127.0.0.1"], False),
    # Odd ones beside a good one.
    ("localhost", ["DNS:127.0.0.1", "DNS:*", "DNS:*.*.x", "DNS:.", "DNS:", "DNS:localhost"], True),
    ("localhost", [], False),
]


@pytest.mark.parametrize(("reference", "alternatives", "good"), CASES)
def test_is_for(own: Authority, tmp_path: Path, reference: str, alternatives: list[str], good: bool) -> None:  # noqa: FBT001
    assert is_for(parse_reference(reference), names(*alternatives)) is good
    crt, _key = own.issue("odd", "server", Purpose.SERVER, hosts=tuple(alternatives))
    kind = "-verify_ip" if ":" in reference or reference[0].isdigit() else "-verify_hostname"
    words = ["openssl", "verify", "-CAfile", str(own.ca), kind, reference, str(crt)]
    done = subprocess.run(words, capture_output=True, check=False, cwd=tmp_path)
    assert (done.returncode == 0) is good


def test_a_star_is_a_whole_label() -> None:
    """Here OpenSSL's command is more generous than RFC 9525, section 6.3."""
    assert not is_for("a.robots.test", names("DNS:a*.robots.test", "DNS:*a.robots.test"))


def test_a_zone_is_in_no_certificate() -> None:
    assert is_for(parse_reference("fe80::1%eth0"), names("IP:fe80::1"))


@pytest.mark.parametrize(
    ("text", "reference"),
    [("robots.test.", "robots.test"), ("my_host", "my_host"), ("::1", "::1"), ("a-b.c1", "a-b.c1")],
)
def test_what_is_typed(text: str, reference: str) -> None:
    assert parse_reference(text) == reference


@pytest.mark.parametrize("text", ["localhost:8443", "*.x", "*", "a..b", "-a.b", "", ".", "a b", "a/b", "x.*"])
def test_what_no_certificate_can_be_for(text: str) -> None:
    with pytest.raises(ConfigError, match="no name that the server's certificate could have"):
        parse_reference(text)
