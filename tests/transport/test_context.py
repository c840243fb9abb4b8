"""What a TLS context allows, and whether the kernel can take over."""

import pytest
from OpenSSL import SSL

from shadow.errors import LocalError
from shadow.pki.certificates import Purpose
from shadow.transport import ktls
from shadow.transport.context import Ktls, check_kernel
from tests.support import (
    Authority,
)


def test_check_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ktls, "missing", lambda: "no module")
    assert check_kernel(Ktls.AUTO) == "no module"
    assert check_kernel(Ktls.OFF) == "switched off by --ktls=off"
    with pytest.raises(LocalError, match="--ktls=require, but no module"):
        check_kernel(Ktls.REQUIRE)
    monkeypatch.setattr(ktls, "missing", lambda: None)
    assert check_kernel(Ktls.REQUIRE) is None


def test_which_signatures_are_offered(authority: Authority) -> None:
    """ECDSA, RSA-PSS and RSA with SHA-256, 384, 512 (RFC 8446, section 4.2.3): no DSA, SHA-1 or SHA-224."""
    wanted = {0x0403, 0x0503, 0x0603, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601}
    client = SSL.Connection(authority.context(Purpose.ROBOT), None)
    server = SSL.Connection(authority.context(Purpose.SERVER), None)
    client.set_connect_state()
    server.set_accept_state()
    flights = []
    for ours, theirs in ((client, server), (server, client)):
        with pytest.raises(SSL.WantReadError):
            ours.do_handshake()
        flights.append(ours.bio_read(65536))
        theirs.bio_write(flights[-1])
    hello, answer = map(messages, flights)
    assert set(signatures(extension(hello[1], 13))) == wanted
    kinds = 1 + answer[13][0]  # behind the certificate types (RFC 5246, section 7.4.4)
    assert set(signatures(answer[13][kinds:])) == wanted


def messages(flight: bytes) -> dict[int, bytes]:
    """The handshake messages of a flight, by type (RFC 5246, sections 6.2.1 and 7.4)."""
    text, found = b"", {}
    while flight:
        length = 5 + int.from_bytes(flight[3:5], "big")
        text, flight = text + flight[5:length], flight[length:]
    while text:
        length = 4 + int.from_bytes(text[1:4], "big")
        found[text[0]], text = text[4:length], text[length:]
    return found


def extension(hello: bytes, wanted: int) -> bytes:
    """The data of one of a ClientHello's extensions (RFC 5246, section 7.4.1.2)."""
    rest = hello[34:]
    for size in (1, 2, 1):  # session id, cipher suites, compression methods
        rest = rest[size + int.from_bytes(rest[:size], "big") :]
    rest = rest[2:]
    while rest:
        kind, length = int.from_bytes(rest[:2], "big"), 4 + int.from_bytes(rest[2:4], "big")
        if kind == wanted:
            return rest[4:length]
        rest = rest[length:]
    raise AssertionError(f"no extension {wanted}")


def signatures(vector: bytes) -> list[int]:
    """A list of signature algorithms, its length in front."""
    end = 2 + int.from_bytes(vector[:2], "big")
    return [int.from_bytes(vector[at : at + 2], "big") for at in range(2, end, 2)]
