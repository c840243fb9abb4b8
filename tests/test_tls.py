"""The handshake, both ends ours: who is let in, what is agreed on, and what stays unread."""

import asyncio
import dataclasses
import socket
from pathlib import Path

import pytest
from cryptography import x509
from OpenSSL import SSL

from shadow import ktls, tls
from shadow.certificates import Purpose, load_certificates, load_credentials
from shadow.errors import HandshakeError, IdentityError, LocalError
from shadow.link import Link
from shadow.tls import Ktls, Settings, check_kernel, handshake
from tests.support import Authority, linked, now, read_some, settings, shake_hands, tcp_pair, write_all


def test_both_sides_know_each_other(authority: Authority) -> None:
    server, robot = asyncio.run(linked(authority))
    assert server.suite == robot.suite == "ECDHE-ECDSA-AES128-GCM-SHA256"
    assert server.certificate.subject.rfc4514_string() == "CN=011"
    assert robot.certificate.subject.rfc4514_string() == "CN=server"
    write_all(robot, b"hello")
    assert read_some(server) == b"hello"
    server.close()
    assert read_some(robot) == b""
    robot.sock.close()


@pytest.mark.parametrize("suite", ktls.SUITES)
def test_every_suite(authority: Authority, suite: str) -> None:
    kind = "rsa" if "-RSA-" in suite else "ec"
    robot_context = authority.context(Purpose.ROBOT)
    robot_context.set_cipher_list(suite.encode())
    server_settings = Settings(authority.context(Purpose.SERVER, key_kind=kind), Purpose.SERVER, Ktls.AUTO)
    robot_settings = Settings(robot_context, Purpose.ROBOT, Ktls.AUTO, "localhost")
    server, robot = asyncio.run(shake_hands(server_settings, robot_settings))
    assert server.suite == suite
    write_all(server, b"x" * 100_000)
    received = b""
    while len(received) < 100_000:
        received += read_some(robot)
    assert received == b"x" * 100_000
    server.sock.close()
    robot.sock.close()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
def test_names_and_addresses_are_matched(authority: Authority, name: str) -> None:
    robot_settings = dataclasses.replace(settings(authority, Purpose.ROBOT), server_name=name)
    for end in asyncio.run(shake_hands(settings(authority, Purpose.SERVER), robot_settings)):
        end.sock.close()


@pytest.mark.parametrize("name", ["elsewhere.example", "127.0.0.2", "::2", "xlocalhost"])
def test_a_server_for_another_host_is_refused(authority: Authority, name: str) -> None:
    robot_settings = dataclasses.replace(settings(authority, Purpose.ROBOT), server_name=name)
    with pytest.raises(IdentityError, match=rf"not for {name} but for localhost, 127\.0\.0\.1, ::1"):
        asyncio.run(shake_hands(settings(authority, Purpose.SERVER), robot_settings))


def test_a_robot_cannot_play_the_server(authority: Authority) -> None:
    """A stolen robot key, used on a machine in the middle."""
    crt, key = authority.robot()
    stolen = tls.make_context(load_credentials(authority.ca, crt, key, Purpose.ROBOT, now()))
    thief = Settings(stolen, Purpose.SERVER, Ktls.OFF)
    with pytest.raises(HandshakeError, match="unsupported_certificate"):
        asyncio.run(shake_hands(thief, settings(authority, Purpose.ROBOT)))


def test_strangers_are_refused_by_either_side(authority: Authority, tmp_path: Path) -> None:
    foreign = Authority(tmp_path / "foreign", "Foreign CA")
    with pytest.raises(HandshakeError, match="unknown_ca"):
        asyncio.run(shake_hands(settings(authority, Purpose.SERVER), settings(foreign, Purpose.ROBOT)))


def test_nothing_behind_the_handshake_is_read(authority: Authority) -> None:
    """What follows the peer's Finished must still be in the socket when the kernel takes over."""

    async def body() -> tuple[Link, bytes]:
        theirs, ours = tcp_pair()
        for sock in (ours, theirs):
            sock.setblocking(False)
        greeting = asyncio.create_task(handshake(theirs, settings(authority, Purpose.SERVER, Ktls.OFF)))
        robot = await handshake(ours, settings(authority, Purpose.ROBOT, Ktls.OFF))
        robot.write(b"right behind")
        server = await greeting
        rest = theirs.recv(65536, socket.MSG_PEEK)
        robot.sock.close()
        return server, rest

    server, rest = asyncio.run(body())
    assert rest[0] == ktls.RECORD_DATA
    assert server.read(100) == b"right behind"
    server.sock.close()


def test_kernel_tls_required_but_not_to_be_had(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ktls, "install", lambda *_arguments, **_options: False)
    with pytest.raises(HandshakeError, match="--ktls=require, but the kernel does not take ECDHE-"):
        asyncio.run(linked(authority, Ktls.REQUIRE))


def test_check_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ktls, "missing", lambda: "no module")
    assert check_kernel(Ktls.AUTO) == "no module"
    assert check_kernel(Ktls.OFF) == "switched off by --ktls=off"
    with pytest.raises(LocalError, match="--ktls=require, but no module"):
        check_kernel(Ktls.REQUIRE)
    monkeypatch.setattr(ktls, "missing", lambda: None)
    assert check_kernel(Ktls.REQUIRE) is None


def test_no_session_can_be_resumed(authority: Authority) -> None:
    context = authority.context(Purpose.SERVER)
    assert context.get_session_cache_mode() == 0
    assert context.set_options(0) & SSL.OP_NO_TICKET


def test_who_was_let_in_once_is_checked_again(authority: Authority, tmp_path: Path) -> None:
    def chain(path: Path) -> list[x509.Certificate]:
        return [x509.load_pem_x509_certificate(path.read_bytes())]

    ours = load_credentials(authority.ca, *authority.server(), Purpose.SERVER, now())
    today = tls.Settings(tls.make_context(ours), Purpose.SERVER, Ktls.AUTO, ca=ours.ca)
    crt, _key = authority.robot()
    tls.check_again(chain(crt), today)
    other = Authority(tmp_path / "other")
    with pytest.raises(IdentityError, match="not good any more: "):
        tls.check_again(chain(other.robot()[0]), today)
    expired, _key = authority.issue("expired", "011", Purpose.ROBOT, days=(-3, -1))
    with pytest.raises(IdentityError, match=r"not good any more: .*expired"):
        tls.check_again(chain(expired), today)
    with pytest.raises(IdentityError, match="not a robot's"):
        tls.check_again(chain(authority.server()[0]), today)


def test_kernel_tls_switched_off_ends_what_the_kernel_encrypts(authority: Authority) -> None:
    """What a daemon before this one has left, that is."""
    crt, _key = authority.robot()
    chain = [x509.load_pem_x509_certificate(crt.read_bytes())]
    ca = load_certificates(authority.ca, "CA")
    trusting = Settings(SSL.Context(SSL.TLS_METHOD), Purpose.SERVER, Ktls.AUTO, ca=ca)
    tls.check_again(chain, trusting)
    with pytest.raises(LocalError, match="--ktls=off"):
        tls.check_again(chain, dataclasses.replace(trusting, ktls=Ktls.OFF))
