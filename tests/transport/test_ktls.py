"""The key schedule against published vectors and against OpenSSL itself; the kernel's part in the machine."""

import contextlib
import socket
import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from OpenSSL import SSL

from shadow.errors import HandshakeError
from shadow.pki.certificates import Purpose
from shadow.transport import ktls
from shadow.transport.handshake import next_explicit_nonce
from shadow.transport.ktls import SUITES, Secrets, Suite, crypto_info, key_block, prf
from tests.support import Authority


# Published on the IETF TLS working group's list for "TLS 1.2 PRF with SHA-256" and with SHA-384
# (https://mailarchive.ietf.org/arch/msg/tls/fzVCzk-z3FShgGJ6DOXqM1ydxms/).
@pytest.mark.parametrize(
    ("digest", "secret", "seed", "output"),
    [
        (
            "sha256",
            "9bbe436ba940f017b17652849a71db35",
            "a0ba9f936cda311827a6f796ffd5198c",
            (
                "e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a"
                "6b301791e90d35c9c9a46b4e14baf9af0fa022f7077def17abfd3797c0564bab"
                "4fbc91666e9def9b97fce34f796789baa48082d122ee42c5a72e5a5110fff701"
                "87347b66"
            ),
        ),
        (
            "sha384",
            "b80b733d6ceefcdc71566ea48e5567df",
            "cd665cf6a8447dd6ff8b27555edb7465",
            (
                "7b0c18e9ced410ed1804f2cfa34a336a1c14dffb4900bb5fd7942107e81c83cd"
                "e9ca0faa60be9fe34f82b1233c9146a0e534cb400fed2700884f9dc236f80edd"
                "8bfa961144c9e8d792eca722a7b32fc3d416d473ebc2c5fd4abfdad05d918425"
                "9b5bf8cd4d90fa0d31e2dec479e4f1a26066f2eea9a69236a3e52655c9e9aee6"
                "91c8f3a26854308d5eaa3be85e0990703d73e56f"
            ),
        ),
    ],
)
def test_prf_against_published_vectors(digest: str, secret: str, seed: str, output: str) -> None:
    wanted = bytes.fromhex(output)
    assert prf(bytes.fromhex(secret), b"test label", bytes.fromhex(seed), len(wanted), digest) == wanted


def shake_hands(client: SSL.Connection, server: SSL.Connection) -> bytes:
    """Run a handshake between memory BIOs; the last flight the server sent."""
    flight = b""
    for _ in range(10):
        for ours, theirs in ((client, server), (server, client)):
            with contextlib.suppress(SSL.WantReadError):
                ours.do_handshake()
            try:
                output = ours.bio_read(65536)
            except SSL.WantReadError:
                continue
            theirs.bio_write(output)
            flight = output if ours is server else flight
    return flight


def decrypt(suite: Suite, key: bytes, iv: bytes, sequence: int, record: bytes) -> bytes:
    """Open one record by the letter of RFC 5246, 5288 and 7905, independently of the kernel's structs."""
    content_type, version, length = struct.unpack(">BHH", record[:5])
    payload = record[5 : 5 + length]
    if suite.is_gcm:
        nonce, ciphertext = iv + payload[:8], payload[8:]
    else:
        padded = struct.pack(">IQ", 0, sequence)
        nonce = bytes(left ^ right for left, right in zip(iv, padded, strict=True))
        ciphertext = payload
    additional = struct.pack(">QBHH", sequence, content_type, version, len(ciphertext) - 16)
    cipher = AESGCM(key) if suite.is_gcm else ChaCha20Poly1305(key)
    return cipher.decrypt(nonce, ciphertext, additional)


@pytest.mark.parametrize("name", SUITES)
def test_a_record_that_openssl_encrypted_opens_with_the_derived_keys(name: str, authority: Authority) -> None:
    kind = "rsa" if "-RSA-" in name else "ec"
    server_context = authority.context(Purpose.SERVER, key_kind=kind)
    client_context = authority.context(Purpose.ROBOT)
    client_context.set_cipher_list(name.encode())
    client, server = SSL.Connection(client_context, None), SSL.Connection(server_context, None)
    client.set_connect_state()
    server.set_accept_state()
    flight = shake_hands(client, server)
    assert client.get_cipher_name() == name
    secrets = Secrets(
        client.master_key() or b"", client.client_random() or b"", client.server_random() or b""
    )
    suite = SUITES[name]
    block = key_block(suite, secrets)
    client.send(b"from the client")
    server.send(b"from the server")
    up, down = client.bio_read(65536), server.bio_read(65536)
    assert decrypt(suite, block.client_key, block.client_iv, 1, up) == b"from the client"
    assert decrypt(suite, block.server_key, block.server_iv, 1, down) == b"from the server"
    if suite.is_gcm:
        # The first record after the Finished goes on where the Finished's nonce stopped: so do we.
        assert next_explicit_nonce(flight) == int.from_bytes(down[5:13], "big")


def test_crypto_info_has_the_layout_of_the_kernels_structs() -> None:
    gcm = crypto_info(SUITES["ECDHE-ECDSA-AES128-GCM-SHA256"], b"K" * 16, b"SALT", 7)
    assert gcm == b"\x03\x03" + b"\x33\x00" + b"\0" * 7 + b"\x07" + b"K" * 16 + b"SALT" + b"\0" * 7 + b"\x01"
    big = crypto_info(SUITES["ECDHE-ECDSA-AES256-GCM-SHA384"], b"K" * 32, b"SALT", 7)
    assert len(big) == 4 + 8 + 32 + 4 + 8
    chacha = crypto_info(SUITES["ECDHE-RSA-CHACHA20-POLY1305"], b"K" * 32, b"I" * 12, 7)
    assert chacha == b"\x03\x03" + b"\x36\x00" + b"I" * 12 + b"K" * 32 + b"\0" * 7 + b"\x01"


def test_the_explicit_nonce_wraps_around() -> None:
    finished = b"\x16\x03\x03\x00\x08" + b"\xff" * 8
    assert next_explicit_nonce(b"\x14\x03\x03\x00\x01\x01" + finished) == 0


def test_without_an_ulp_the_socket_is_left_for_userspace(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)  # a socket that no kernel takes a TCP_ULP for
    with ours, theirs:
        suite = SUITES["ECDHE-ECDSA-AES128-GCM-SHA256"]
        assert not ktls.install(ours, suite, Secrets(b"m", b"c", b"s"), server=True)
        ours.sendall(b"still works")
        assert theirs.recv(99) == b"still works"


def test_one_direction_without_the_other_is_an_error() -> None:
    class HalfWilling(socket.socket):
        def setsockopt(self, level: int, name: int, *value: object) -> None:
            if (level, name) == (ktls.SOL_TLS, ktls.TLS_RX):
                raise OSError(22, "Invalid argument")

    with (
        HalfWilling() as sock,
        pytest.raises(HandshakeError, match="the kernel encrypts but does not decrypt"),
    ):
        ktls.install(sock, SUITES["ECDHE-ECDSA-AES128-GCM-SHA256"], Secrets(b"m", b"c", b"s"), server=True)


def test_missing_tells_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {107: None, 2: "modprobe tls", 1: "Operation not permitted"}
    for number, wanted in answers.items():

        def refuse(*_arguments: object, number: int = number) -> None:
            raise OSError(number, "Operation not permitted")

        monkeypatch.setattr(socket.socket, "setsockopt", refuse)
        answer = ktls.missing()
        assert answer is None if wanted is None else wanted in str(answer)


def test_secrets_are_not_printed() -> None:
    assert "secret" not in repr(Secrets(b"secret", b"", b""))
    suite = SUITES["ECDHE-ECDSA-AES128-GCM-SHA256"]
    assert "client_key" not in repr(key_block(suite, Secrets(b"secret", b"", b"")))
