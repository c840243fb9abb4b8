"""The handshake, both ends ours: who is let in, what is agreed on, and what stays unread."""

import asyncio
import contextlib
import dataclasses
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from shadow.errors import HandshakeError, IdentityError, LocalError
from shadow.pki.certificates import (
    Credentials,
    Purpose,
    has_usages,
    load_certificates,
    load_credentials,
)
from shadow.pki.keys import load_private_key
from shadow.pki.peers import peer_of
from shadow.transport import context as contexts
from shadow.transport import handshake as tls_handshake
from shadow.transport import ktls
from shadow.transport.context import Ktls, Settings
from shadow.transport.handshake import handshake
from shadow.transport.link import KernelLink, Link
from tests.support import (
    Authority,
    linked,
    now,
    read_some,
    settings,
    shake_hands,
    tcp_pair,
    try_hands,
    write_all,
)


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
    robot_settings = Settings(robot_context, Purpose.ROBOT, Ktls.AUTO, ("localhost",))
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
    robot_settings = dataclasses.replace(settings(authority, Purpose.ROBOT), server_names=(name,))
    for end in asyncio.run(shake_hands(settings(authority, Purpose.SERVER), robot_settings)):
        end.sock.close()


def test_one_of_several_names_will_do(authority: Authority) -> None:
    """For streams of the client before this one: nobody knows any more which server was dialled."""
    robot_settings = dataclasses.replace(
        settings(authority, Purpose.ROBOT), server_names=("elsewhere.example", "localhost")
    )
    server, robot = asyncio.run(shake_hands(settings(authority, Purpose.SERVER), robot_settings))
    today = dataclasses.replace(robot_settings, ktls=Ktls.AUTO, ca=(authority.certificate,))
    tls_handshake.check_again(robot, today)
    others = dataclasses.replace(today, server_names=("a.example", "b.example"))
    with pytest.raises(IdentityError, match=r"not for a\.example or b\.example but for localhost"):
        tls_handshake.check_again(robot, others)
    for end in (server, robot):
        end.sock.close()


@pytest.mark.parametrize("name", ["elsewhere.example", "127.0.0.2", "::2", "xlocalhost"])
def test_a_server_for_another_host_is_refused(authority: Authority, name: str) -> None:
    robot_settings = dataclasses.replace(settings(authority, Purpose.ROBOT), server_names=(name,))
    with pytest.raises(IdentityError, match=rf"not for {name} but for localhost, 127\.0\.0\.1, ::1"):
        asyncio.run(shake_hands(settings(authority, Purpose.SERVER), robot_settings))


@pytest.mark.parametrize(
    ("robot", "server", "robot_says", "server_says"),
    [
        ({"server_name": "elsewhere"}, {}, "not for elsewhere", "certificate_unknown: not for the name"),
        ({}, {"as": None}, "not a server's", "unsupported_certificate: made for another purpose"),
        ({"as": Purpose.SERVER}, {}, "unsupported_certificate: made", "unsupported_certificate: made"),
        ({"as": None}, {}, "unsupported_certificate: made for another purpose", "not a robot's"),
        ({"days": (-3, -1)}, {}, "certificate_expired", "certificate_expired"),
        ({"days": (1, 3)}, {}, "bad_certificate: not valid yet", "bad_certificate: not valid yet"),
    ],
    ids=["name", "no server", "server for a robot", "no purpose", "expired", "early"],
)
def test_whoever_refuses_a_certificate_says_so(
    own: Authority, robot: dict[str, Any], server: dict[str, Any], robot_says: str, server_says: str
) -> None:
    """The other side has it in an alert, and tells its own log whose fault it is."""

    def side(us: Purpose, choice: dict[str, Any]) -> Settings:
        kind = choice.get("as", us)
        days = choice.get("days", (-1, 30))
        crt, key = own.issue(us.value, "011", kind, days=days)
        chain = load_certificates(crt, "certificate")
        secret = load_private_key(key, "key")
        credentials = Credentials([own.certificate], chain, secret)
        return Settings(
            contexts.make_context(credentials), us, Ktls.OFF, (choice.get("server_name", "localhost"),)
        )

    ends = asyncio.run(try_hands(side(Purpose.SERVER, server), side(Purpose.ROBOT, robot)))
    ours = {"the peer refused our certificate: " in str(end) for end in ends}
    assert ours == {True, False}
    assert server_says in str(ends[0])
    assert robot_says in str(ends[1])


def test_nothing_is_left_unread_behind_the_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would turn close(2) into a reset, which can take the last words away."""
    monkeypatch.setattr(tls_handshake, "_PARTING", 0.2)

    async def run() -> bytes:
        theirs, ours = tcp_pair()
        with theirs, ours:
            for sock in (ours, theirs):
                sock.setblocking(False)
            assert ours.send(bytes(20_000)) == 20_000
            await tls_handshake._part(theirs, b"why")
            with pytest.raises(BlockingIOError):
                theirs.recv(1)
            return await asyncio.get_running_loop().sock_recv(ours, 100)

    assert asyncio.run(run()) == b"why"


def test_a_robot_cannot_play_the_server(authority: Authority) -> None:
    """A stolen robot key, used on a machine in the middle."""
    crt, key = authority.robot()
    stolen = contexts.make_context(load_credentials(authority.ca, crt, key, Purpose.ROBOT, now()))
    thief = Settings(stolen, Purpose.SERVER, Ktls.OFF)
    with pytest.raises(HandshakeError, match="unsupported_certificate"):
        asyncio.run(shake_hands(thief, settings(authority, Purpose.ROBOT)))


def test_strangers_are_refused_by_either_side(authority: Authority, tmp_path: Path) -> None:
    foreign = Authority(tmp_path / "foreign", "Foreign CA")
    with pytest.raises(HandshakeError, match="unknown_ca"):
        asyncio.run(shake_hands(settings(authority, Purpose.SERVER), settings(foreign, Purpose.ROBOT)))


# --- servers of a fleet among themselves ---


def shows(own: Authority, pair: tuple[Path, Path], us: Purpose, *expected: str) -> Settings:
    """Who plays ``us`` with a certificate, good for that or not, and expects one of these names."""
    chain = load_certificates(pair[0], "certificate")
    credentials = Credentials([own.certificate], chain, load_private_key(pair[1], "key"))
    return Settings(contexts.make_context(credentials), us, Ktls.AUTO, expected, ca=credentials.ca)


def test_two_servers_know_each_other(authority: Authority) -> None:
    dialled = shows(authority, authority.peer("b"), Purpose.PEER)
    dials = shows(authority, authority.peer("a"), Purpose.PEER, "b")
    ends = asyncio.run(shake_hands(dialled, dials))
    assert [peer_of(end.certificate) for end in ends] == ["a", "b"]
    write_all(ends[1], b"hello")
    assert read_some(ends[0]) == b"hello"
    for end, side in zip(ends, (dialled, dials), strict=True):
        tls_handshake.check_again(end, side)
        end.sock.close()


def test_the_kernel_encrypts_between_servers_as_with_robots(authority: Authority) -> None:
    """Each side has to give it the keys of its own direction."""
    context = authority.context(Purpose.PEER)
    dialled = Settings(context, Purpose.PEER, Ktls.AUTO)
    ends = asyncio.run(shake_hands(dialled, dataclasses.replace(dialled, server_names=("a",))))
    kinds = {isinstance(end, KernelLink) for end in ends}
    assert kinds == {ktls.missing() is None}
    for one, other in (ends, ends[::-1]):
        write_all(one, b"x" * 50_000)
        received = b""
        while len(received) < 50_000:
            received += read_some(other)
        assert received == b"x" * 50_000
    for end in ends:
        end.sock.close()


def test_between_servers_each_side_takes_the_keys_of_its_part(
    own: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a kernel that encrypts, the test above would not notice."""
    parts: list[bool] = []

    def install(*_arguments: Any, server: bool, **_more: Any) -> bool:
        parts.append(server)
        return False

    monkeypatch.setattr(ktls, "install", install)
    dials = shows(own, own.peer("a"), Purpose.PEER, "b")
    for end in asyncio.run(shake_hands(shows(own, own.peer("b"), Purpose.PEER), dials)):
        end.sock.close()
    assert sorted(parts) == [False, True]


def test_a_server_that_is_another_than_the_one_dialled(authority: Authority) -> None:
    dials = shows(authority, authority.peer("a"), Purpose.PEER, "c")
    ends = asyncio.run(try_hands(shows(authority, authority.peer("b"), Purpose.PEER), dials))
    assert str(ends[1]) == "the peer is server b, not c"
    assert "the peer refused our certificate: certificate_unknown" in str(ends[0])


HOSTS = ("localhost", "127.0.0.1")


@pytest.mark.parametrize(
    ("show", "dialled"),
    [
        (lambda own: own.robot("a"), "is not a peer's"),
        # OpenSSL is faster with those that lack the usage of their side.
        (lambda own: own.server(), "is not a peer's"),
        (
            lambda own: own.issue("both", "localhost", Purpose.PEER, hosts=HOSTS),
            "of 'localhost' is not a peer's",
        ),
        (lambda own: own.issue("hosts", "peer:b", Purpose.PEER, hosts=HOSTS), "is for hosts, too"),
        (lambda own: own.issue("path", "peer:../b", Purpose.PEER), "server id '../b' is not allowed"),
        (lambda own: own.issue("robot", "peer:b", Purpose.ROBOT), "is not a peer's"),
        (lambda own: own.issue("server", "peer:b", Purpose.SERVER), "is not a peer's"),
        (lambda own: own.issue("none", "peer:b", None), "is not a peer's"),
    ],
    ids=["robot", "server", "both usages", "hosts", "bad name", "as robot", "as server", "no purpose"],
)
@pytest.mark.parametrize("side", ["dials", "is dialled"])
def test_nobody_else_passes_for_a_peer(
    own: Authority, show: Callable[[Authority], tuple[Path, Path]], dialled: str, side: str
) -> None:
    """The other side finds it out, in the handshake, and says so."""
    pair, server = show(own), own.peer("a")
    if side == "dials":
        sides = shows(own, server, Purpose.PEER), shows(own, pair, Purpose.PEER, "a")
    else:
        sides = shows(own, pair, Purpose.PEER), shows(own, server, Purpose.PEER, "b")
    ends = asyncio.run(try_hands(*sides))
    peer, impostor = ends if side == "dials" else ends[::-1]
    assert isinstance(peer, HandshakeError | IdentityError)
    assert dialled in str(peer) or "was refused: unsupported_certificate" in str(peer)
    assert "the peer refused our certificate: unsupported_certificate" in str(impostor)


@pytest.mark.parametrize(
    ("hosts", "name"), [((), "localhost"), (HOSTS, "localhost"), ((), "a"), (("peer-a",), "peer-a")]
)
def test_a_peer_cannot_play_the_server_to_robots(own: Authority, hosts: tuple[str, ...], name: str) -> None:
    """Not even one with the server's names, which our CA would not make."""
    pair = own.issue("peer", "peer:a", Purpose.PEER, hosts=hosts)
    robot = dataclasses.replace(settings(own, Purpose.ROBOT), server_names=(name,))
    ends = asyncio.run(try_hands(shows(own, pair, Purpose.SERVER), robot))
    assert str(ends[1]) == "the peer's certificate is that of a server among its peers"
    assert "unsupported_certificate" in str(ends[0])


def test_robots_of_an_earlier_version_do_not_take_a_peer_for_their_server(
    own: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They look at the usage and at the host names; and it has none."""
    monkeypatch.setattr(tls_handshake, "has_purpose", has_usages)
    for name in ("localhost", "a", "peer:a", "127.0.0.1"):
        robot = dataclasses.replace(settings(own, Purpose.ROBOT), server_names=(name,))
        with pytest.raises(IdentityError, match=f"not for {name} but for no host at all"):
            asyncio.run(shake_hands(shows(own, own.peer("a"), Purpose.SERVER), robot))


def test_whoever_was_a_peer_once_is_checked_again(own: Authority, tmp_path: Path) -> None:
    today = shows(own, own.peer("a"), Purpose.PEER)
    tls_handshake.check_again(left_by(own.peer("b")[0]), today)
    tls_handshake.check_again(left_by(own.peer("b")[0]), dataclasses.replace(today, server_names=("b",)))
    with pytest.raises(IdentityError, match="server b, not c"):
        tls_handshake.check_again(left_by(own.peer("b")[0]), dataclasses.replace(today, server_names=("c",)))
    with pytest.raises(IdentityError, match="not a peer's"):
        tls_handshake.check_again(left_by(own.robot()[0]), today)
    with pytest.raises(IdentityError, match="not good any more: "):
        tls_handshake.check_again(left_by(Authority(tmp_path / "other").peer("b")[0]), today)


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


def showing(authority: Authority, *more: x509.Certificate) -> Settings:
    """A robot that shows more certificates than its own."""
    ours = settings(authority, Purpose.ROBOT, Ktls.OFF)
    crt, key = authority.robot()
    credentials = load_credentials(authority.ca, crt, key, Purpose.ROBOT, now())
    credentials.chain.extend(more)
    return dataclasses.replace(ours, context=contexts.make_context(credentials))


def junk(count: int, size: int = 0) -> list[x509.Certificate]:
    """Certificates that have nothing to do with anything, of at least ``size`` bytes each."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    builder = x509.CertificateBuilder().issuer_name(name).subject_name(name).public_key(key.public_key())
    builder = builder.not_valid_before(now()).not_valid_after(now())
    filling = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), bytes(size))
    return [
        builder.serial_number(number + 1).add_extension(filling, critical=False).sign(key, hashes.SHA256())
        for number in range(count)
    ]


def test_only_what_was_verified_of_a_shown_chain_is_kept(authority: Authority) -> None:
    server_settings = settings(authority, Purpose.SERVER, Ktls.OFF)
    server, robot = asyncio.run(shake_hands(server_settings, showing(authority, *junk(9))))
    leaf = load_certificates(authority.robot()[0], "robot")[0]
    assert server.chain == [leaf, authority.certificate]
    second, other = asyncio.run(shake_hands(server_settings, settings(authority, Purpose.ROBOT, Ktls.OFF)))
    assert second.chain[1] is server.chain[1], "one CA certificate in memory for all connections"
    for end in (server, robot, second, other):
        end.sock.close()


def test_who_shows_too_much_is_refused(authority: Authority) -> None:
    """OpenSSL keeps it all for as long as it encrypts the connection, whatever we do."""
    server = settings(authority, Purpose.SERVER, Ktls.OFF)
    with pytest.raises(IdentityError, match="the peer showed more than 10 certificates"):
        asyncio.run(shake_hands(server, showing(authority, *junk(10))))
    with pytest.raises(HandshakeError, match="the peer's handshake takes more than 32768 bytes"):
        asyncio.run(shake_hands(server, showing(authority, *junk(3, 11000))))


def test_no_session_can_be_resumed(authority: Authority) -> None:
    context = authority.context(Purpose.SERVER)
    assert context.get_session_cache_mode() == 0
    assert context.set_options(0) & SSL.OP_NO_TICKET


def left_by(crt: Path) -> KernelLink:
    """The connection of somebody with this certificate, that a daemon before us has left."""
    sock = socket.socket()
    sock.close()
    return KernelLink(sock, "suite", load_certificates(crt, "robot"))


def test_who_was_let_in_once_is_checked_again(authority: Authority, tmp_path: Path) -> None:

    ours = load_credentials(authority.ca, *authority.server(), Purpose.SERVER, now())
    today = contexts.Settings(contexts.make_context(ours), Purpose.SERVER, Ktls.AUTO, ca=ours.ca)
    crt, _key = authority.robot()
    tls_handshake.check_again(left_by(crt), today)
    other = Authority(tmp_path / "other")
    with pytest.raises(IdentityError, match="not good any more: "):
        tls_handshake.check_again(left_by(other.robot()[0]), today)
    expired, _key = authority.issue("expired", "011", Purpose.ROBOT, days=(-3, -1))
    with pytest.raises(IdentityError, match=r"not good any more: .*expired"):
        tls_handshake.check_again(left_by(expired), today)
    with pytest.raises(IdentityError, match="not a robot's"):
        tls_handshake.check_again(left_by(authority.server()[0]), today)


@pytest.mark.parametrize(
    ("days", "renews", "good"),
    [((-3, -0.5), True, True), ((-3, -0.5), False, False), ((-3, -2), True, False), ((1, 3), True, False)],
)
def test_who_was_let_in_once_and_can_have_its_certificate_renewed(
    authority: Authority, days: tuple[float, float], *, renews: bool, good: bool
) -> None:
    """It may have expired, for a third of its life; and nobody else profits by that."""
    ours = load_credentials(authority.ca, *authority.server(), Purpose.SERVER, now())
    today = contexts.Settings(contexts.make_context(ours), Purpose.SERVER, Ktls.AUTO, ca=ours.ca)
    crt, _key = authority.issue("late", "011", Purpose.ROBOT, days=days)
    late = left_by(crt)
    with contextlib.nullcontext() if good else pytest.raises(IdentityError, match="not good any more: "):
        tls_handshake.check_again(late, today, renews=renews)
    if good:
        assert late.chain[1:] == ours.ca
    with pytest.raises(IdentityError, match="not good any more: "):
        tls_handshake.check_again(left_by(crt), today)


def test_kernel_tls_switched_off_ends_what_the_kernel_encrypts(authority: Authority) -> None:
    """What a daemon before this one has left, that is."""
    crt, _key = authority.robot()
    ca = load_certificates(authority.ca, "CA")
    trusting = Settings(SSL.Context(SSL.TLS_METHOD), Purpose.SERVER, Ktls.AUTO, ca=ca)
    tls_handshake.check_again(left_by(crt), trusting)
    with pytest.raises(LocalError, match="--ktls=off"):
        tls_handshake.check_again(left_by(crt), dataclasses.replace(trusting, ktls=Ktls.OFF))
