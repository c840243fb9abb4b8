"""The TLS port, as strangers and broken peers see it; and what the operator reads of them."""

import asyncio
import contextlib
import socket
import ssl
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.pki.certificates import Purpose
from shadow.server.greeting import Greeter
from shadow.server.newcomer import Newcomer
from tests.support import (
    DEADLINE,
    Authority,
    Daemon,
    Tunnel,
    open_descriptors,
    random_bytes,
    tcp_pair,
    wait_for,
)
from tests.support.log import Said
from tests.support.peer import HELLO, PING, PONG, WELCOME, Peer, client_context, connect, frame, still_works


@pytest.fixture
def server(tunnel: Tunnel) -> Daemon:
    return tunnel.start_server("--handshake-timeout=1.5", "--keepalive=0.5", "--start-timeout=1.5")


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", r"does not speak TLS; it began with b'GET /'"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", r"does not speak TLS; it began with b'SSH-2'"),
        (random_bytes(5000, 9), "does not speak TLS"),
        (b"\x16\x03\x01\xff\xff" + bytes(100), "does not speak TLS"),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "TLS: "),
        (b"", "no HELLO within 1.5 s"),
        (b"\x16\x03\x01", "no HELLO within 1.5 s"),
    ],
)
def test_strangers_get_nothing_and_are_named(
    tunnel: Tunnel, server: Daemon, said: bytes, complaint: str
) -> None:
    with socket.create_connection(("127.0.0.1", tunnel.port), timeout=DEADLINE) as stranger:
        stranger.sendall(said)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := stranger.recv(1000):
                answer += part
        # At most one alert record: type 21, two bytes.
        assert answer == b"" or (answer[0] == 21 and len(answer) == 7)
        address = stranger.getsockname()
        server.wait_for_log(rf"no handshake with 127\.0\.0\.1:{address[1]}: .*{complaint}")
    still_works(tunnel)


def test_a_stranger_that_hangs_up(tunnel: Tunnel, server: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", tunnel.port)) as stranger:
        stranger.sendall(b"\x16\x03\x01")
    server.wait_for_log("no handshake with .*: (it hung up before its turn came|.* during the handshake)")
    still_works(tunnel)


def refused_in_tls(tunnel: Tunnel, context: ssl.SSLContext) -> None:
    with pytest.raises((OSError, EOFError)), Peer(tunnel.port, context) as peer:
        peer.hello()


def test_a_client_without_a_certificate(tunnel: Tunnel, server: Daemon) -> None:
    refused_in_tls(tunnel, client_context(tunnel.authority))
    server.wait_for_log("no handshake with .*: the peer showed no certificate")
    still_works(tunnel)


@pytest.mark.parametrize(
    ("days", "complaint"),
    [((-20, -10), "certificate_expired"), ((10, 20), "not valid yet .a wrong clock")],
)
def test_certificates_out_of_their_time(
    tunnel: Tunnel, server: Daemon, days: tuple[float, float], complaint: str
) -> None:
    pair = tunnel.authority.issue(f"late{days[0]}", "011", Purpose.ROBOT, days=days)
    refused_in_tls(tunnel, client_context(tunnel.authority, pair))
    server.wait_for_log(f"the peer's certificate was refused: .*{complaint}")


def test_a_certificate_of_another_ca(tunnel: Tunnel, server: Daemon, tmp_path: Path) -> None:
    foreign = Authority(tmp_path / "foreign", "Foreign CA").robot("011")
    refused_in_tls(tunnel, client_context(tunnel.authority, foreign))
    server.wait_for_log("refused: unknown_ca: issued by another CA")


def test_a_ca_of_the_same_name_with_another_key(tunnel: Tunnel, server: Daemon, tmp_path: Path) -> None:
    foreign = Authority(tmp_path / "foreign").robot("011")
    refused_in_tls(tunnel, client_context(tunnel.authority, foreign))
    server.wait_for_log("no handshake with .*: the peer's certificate was refused: ")


def test_a_servers_certificate_does_not_make_a_robot(tunnel: Tunnel, server: Daemon) -> None:
    refused_in_tls(tunnel, client_context(tunnel.authority, tunnel.authority.server()))
    server.wait_for_log("the peer's certificate was refused: unsupported_certificate")


def test_a_certificate_without_a_purpose_does_not_make_a_robot(tunnel: Tunnel, server: Daemon) -> None:
    pair = tunnel.authority.issue("purposeless", "011", None)
    refused_in_tls(tunnel, client_context(tunnel.authority, pair))
    server.wait_for_log("certificate is not a robot's .clientAuth")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_3])
def test_other_versions_of_tls(tunnel: Tunnel, server: Daemon, version: ssl.TLSVersion) -> None:
    context = client_context(tunnel.authority, tunnel.authority.robot())
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = version
    context.minimum_version = version
    refused_in_tls(tunnel, context)
    server.wait_for_log("no handshake with .*(unsupported protocol|refused us)")


@pytest.mark.parametrize(
    "suite", ["ECDHE-ECDSA-AES128-SHA256", "ECDHE-ECDSA-AES128-SHA", "AES128-GCM-SHA256"]
)
def test_weak_suites(tunnel: Tunnel, server: Daemon, suite: str) -> None:
    context = client_context(tunnel.authority, tunnel.authority.robot())
    context.set_ciphers(f"{suite}:@SECLEVEL=0")
    refused_in_tls(tunnel, context)
    server.wait_for_log("no handshake with .*no shared cipher")


def test_a_header_of_the_proxy_protocol_counts_for_the_deadline(said: Said) -> None:
    """Who took all the time for it has none left for the handshake."""
    config: Any = SimpleNamespace(keepalive=30.0, handshake_timeout=DEADLINE)
    trust: Any = None  # nobody gets that far
    ours, theirs = tcp_pair()
    ours.setblocking(False)
    newcomer = Newcomer(ours, "192.0.2.1", 7, proxy="10.0.0.1:1", spent=DEADLINE - 0.01)

    async def body() -> None:
        async with asyncio.timeout(DEADLINE / 2):
            assert await Greeter(config, trust).greet(newcomer) is None

    with theirs:
        asyncio.run(body())
    assert [text for _event, text in said] == ["no handshake with 192.0.2.1:7: no HELLO within 30 s"]


def test_who_says_nothing_has_to_leave(tunnel: Tunnel) -> None:
    server = tunnel.start_server("--handshake-timeout=0.5", "--max-handshakes=4")
    with socket.create_connection(("127.0.0.1", tunnel.port)) as silent, contextlib.suppress(OSError):
        silent.settimeout(DEADLINE)
        assert silent.recv(1) == b""
    server.wait_for_log("no HELLO within 0.5 s")
    still_works(tunnel)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (struct.pack(">BBH", 1, 0, 65535), "announces a body of 65535 bytes"),
        (frame(99), "unknown frame type 99"),
        (frame(HELLO, version=1), "lacks a field"),
        (frame(HELLO, version=1, role="boss", robot="011"), "unknown role"),
        (frame(PING, stamp=1), "Ping from the robot while opening"),
        (b"\x01\x00\x00\x05{nope", "not JSON"),
        (b"\x01\x00", "no HELLO within"),
        (b"", "no HELLO within"),
    ],
)
def test_a_robot_that_does_not_say_hello(tunnel: Tunnel, server: Daemon, said: bytes, complaint: str) -> None:
    with connect(tunnel) as peer:
        peer.sock.sendall(said)
        assert peer.closed()
    server.wait_for_log(f"no handshake with .*{complaint}")
    still_works(tunnel)


def test_a_truncated_hello(tunnel: Tunnel, server: Daemon) -> None:
    with connect(tunnel) as peer:
        peer.sock.sendall(frame(HELLO, version=1, role="control", robot="011")[:20])
        with contextlib.suppress(OSError):  # the server does not wait for our close_notify
            peer.sock.unwrap()
    server.wait_for_log("hung up in the middle of a frame")


def test_health_checks_are_not_in_the_log(tunnel: Tunnel, server: Daemon) -> None:
    for number in range(20):
        check = socket.create_connection(("127.0.0.1", tunnel.port))
        if number % 2:  # some load balancers are rude about it
            check.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        check.close()
    with socket.create_connection(("127.0.0.1", tunnel.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
        server.wait_for_log("WARNING: no handshake")
    assert server.log.count("no handshake") == 1
    still_works(tunnel)


def test_nonsense_behind_a_good_hello_begins_no_session(tunnel: Tunnel, server: Daemon) -> None:
    """HELLO and a frame out of turn in one record: dead before anybody could welcome it."""
    with connect(tunnel) as good:
        assert good.hello()[0] == WELCOME
        with connect(tunnel) as bad:
            hello = frame(HELLO, version=1, role="control", robot="011", services=[""])
            bad.sock.sendall(hello + frame(PING, stamp=1))
            assert bad.closed()
        server.wait_for_log("no handshake with .*the connection broke right after HELLO")
        good.send(PING, stamp=2)
        assert good.receive()[0] == PONG


def test_half_a_character_in_a_hello_leaves_nothing_open(tunnel: Tunnel, server: Daemon) -> None:
    before = open_descriptors(server.process.pid)
    for _ in range(5):
        with connect(tunnel) as peer:
            peer.sock.sendall(frame(HELLO, version=1, role="data", robot="011", session="\ud800"))
            assert peer.closed()
    server.wait_for_log("no handshake with .*bad value for 'session'", count=5)
    wait_for(lambda: open_descriptors(server.process.pid) == before, "every descriptor to be closed")
