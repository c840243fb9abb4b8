"""The TLS port, as strangers, impostors and broken peers see it; and what the operator reads of them."""

import contextlib
import re
import resource
import signal
import socket
import ssl
import struct
import time
from pathlib import Path

import pytest

from shadow.pki.certificates import Purpose
from tests.support import (
    DEADLINE,
    Authority,
    Daemon,
    Tunnel,
    echo,
    exchange,
    open_descriptors,
    random_bytes,
    serving,
    wait_for,
)
from tests.support.peer import (
    DIAL,
    FAILED,
    HELLO,
    PING,
    PONG,
    START,
    STARTED,
    WELCOME,
    Peer,
    client_context,
    connect,
    frame,
)


@pytest.fixture
def server(tunnel: Tunnel) -> Daemon:
    return tunnel.start_server("--handshake-timeout=1.5", "--keepalive=0.5", "--start-timeout=1.5")


def still_works(tunnel: Tunnel) -> None:
    """A robot in good standing is served, whatever happened before."""
    with connect(tunnel, "099") as peer:
        assert peer.hello("099")[0] == WELCOME
        wait_for(tunnel.socket_path("099").exists, "099.sock")


# A peer by hand, from control channel to raw bytes.


def test_a_peer_written_from_the_protocol_document_is_served(tunnel: Tunnel, server: Daemon) -> None:
    with connect(tunnel) as control, connect(tunnel) as data:
        kind, welcome = control.hello(
            services=["", "web"], software="by hand", colour="unknown keys are fine"
        )
        assert kind == WELCOME
        assert (welcome["version"], welcome["keepalive"]) == (1, 0.5)
        assert {path.name for path in tunnel.ldir.iterdir()} == {"011.sock", "web@011.sock"}
        control.send(PING, stamp=1.5)
        assert control.receive() == (PONG, {"stamp": 1.5})
        assert data.hello(role="data", session=welcome["session"])[0] == WELCOME
        with tunnel.visit("web@011") as visitor:
            kind, start = data.receive()
            assert (kind, start["service"]) == (START, "web")
            visitor.sendall(b"sent before STARTED")
            # What follows STARTED in the very same record belongs to the visitor.
            data.sock.sendall(frame(STARTED) + b"greeting")
            assert visitor.recv(100) == b"greeting"
            assert data.sock.recv(100) == b"sent before STARTED"
    server.wait_for_log("stream 1 ")


def test_without_a_standby_the_robot_is_asked_to_dial(tunnel: Tunnel, server: Daemon) -> None:
    with connect(tunnel) as control:
        session = control.hello()[1]["session"]
        with tunnel.visit() as visitor:
            assert control.receive() == (DIAL, {"count": 1})
            with connect(tunnel) as data:
                assert data.hello(role="data", session=session)[0] == WELCOME
                assert data.receive()[0] == START
                data.send(FAILED, code="refused", text="nobody\x1b[31m there")
                assert visitor.recv(1) == b""
    server.wait_for_log(r"could not connect it \('refused': 'nobody\\x1b\[31m there'\)")


# Strangers.


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


def test_handshakes_are_bounded_in_number_and_time(tunnel: Tunnel) -> None:
    """Who says nothing holds his own share of the places, and nobody else's."""
    server = tunnel.start_server("--handshake-timeout=60", "--max-handshakes=8")
    stalled = [socket.create_connection(("127.0.0.1", tunnel.port)) for _ in range(40)]
    # At once, for it comes from another address: those 40 together have two places of eight.
    context = client_context(tunnel.authority, tunnel.authority.robot())
    with Peer(tunnel.port, context, source="127.0.0.2") as peer:
        assert peer.hello()[0] == WELCOME
    assert "no HELLO" not in server.log
    for sock in stalled:
        sock.close()
    still_works(tunnel)


def test_who_says_nothing_has_to_leave(tunnel: Tunnel) -> None:
    server = tunnel.start_server("--handshake-timeout=0.5", "--max-handshakes=4")
    with socket.create_connection(("127.0.0.1", tunnel.port)) as silent, contextlib.suppress(OSError):
        silent.settimeout(DEADLINE)
        assert silent.recv(1) == b""
    server.wait_for_log("no HELLO within 0.5 s")
    still_works(tunnel)


# Impostors and broken robots: a good certificate, and then nonsense.


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


def test_a_frame_out_of_turn_ends_the_session(tunnel: Tunnel, server: Daemon) -> None:
    with connect(tunnel) as peer:
        peer.hello()
        peer.send(STARTED)
        assert peer.closed()
    server.wait_for_log("robot 011 disconnected: Started from the robot while open")
    wait_for(lambda: not list(tunnel.ldir.iterdir()), "the socket to vanish")


def test_a_robot_that_does_not_read_is_given_up(tunnel: Tunnel, server: Daemon) -> None:
    with connect(tunnel) as peer:
        peer.hello()
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(OSError):
            while True:
                peer.sock.sendall(frame(PING, stamp=1) * 500)
    server.wait_for_log("robot 011 disconnected: ")
    still_works(tunnel)


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


@pytest.mark.parametrize("what", ["many", "large", "with many keys", "tiny records", "SIGN"])
def test_a_robot_that_says_too_much_is_cut_off(tunnel: Tunnel, server: Daemon, what: str) -> None:
    noise = {
        "many": frame(PING, stamp=1) * 100,
        "large": frame(PING, stamp=1, more="x" * 16000),
        "with many keys": frame(PING, **{f"k{number}": 1 for number in range(1300)}),
        "tiny records": frame(PING, stamp=1),
        "SIGN": frame(10, request="", certificate="", proof="") * 100,
    }[what]
    with connect(tunnel) as peer:
        peer.hello()
        end = time.monotonic() + DEADLINE
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                if what == "tiny records":
                    for byte in noise:
                        peer.sock.sendall(bytes([byte]))
                else:
                    peer.sock.sendall(noise)
    server.wait_for_log("robot 011 disconnected: too many frames in a short time")
    assert server.log.count("not renewed") <= 25
    still_works(tunnel)


def test_a_robot_that_vanishes_without_fin_is_noticed(tunnel: Tunnel, server: Daemon) -> None:
    with connect(tunnel) as peer:
        peer.hello()
        wait_for(tunnel.socket_path().exists, "011.sock")
        # Silent from here on: three intervals of half a second.
        server.wait_for_log(r"robot 011 disconnected: nothing heard for 1\.5 s")
        assert not tunnel.socket_path().exists()


# Limits.


def test_running_out_of_descriptors_pauses_accepting_and_nothing_else(tunnel: Tunnel) -> None:
    with serving(echo) as service:
        server = tunnel.daemon(tunnel.server_arguments())
        server.wait_for_log("accepting robots")
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        running = tunnel.visit()
        running.sendall(b"before")
        assert running.recv(10) == b"before"
        # Now the server may have eight more descriptors and no more.
        pid = server.process.pid
        highest = max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir())
        _set_descriptor_limit(pid, highest + 8)
        crowd = [tunnel.visit() for _ in range(30)]
        server.wait_for_log("accepting pauses: Too many open files")
        running.sendall(b"during")
        assert running.recv(10) == b"during"
        _set_descriptor_limit(pid, 4096)
        for number, visitor in enumerate(crowd):
            visitor.sendall(b"%d" % number)
        answered = 0
        for number, visitor in enumerate(crowd):
            with contextlib.suppress(OSError):
                answered += visitor.recv(10) == b"%d" % number
        # Those accepted at the worst moment may have been turned away, with a line in the log; those
        # that waited in the backlog are served.
        turned_away = len(re.findall("turned away", server.log))
        assert answered >= 20
        assert answered + turned_away >= 30
        running.sendall(b"after")
        assert running.recv(10) == b"after"
        for visitor in [*crowd, running]:
            visitor.close()


def _set_descriptor_limit(pid: int, limit: int) -> None:
    _soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, hard))


# Life: the port, stopping, reloading.


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_folder_that_is_none(tunnel: Tunnel, tmp_path: Path, kind: str) -> None:
    wrong = tmp_path / "wrong"
    if kind == "file":
        wrong.write_text("")
    daemon = tunnel.daemon([*tunnel.server_arguments(), f"--ldir={wrong}"])
    assert daemon.wait() == 78
    assert f"shadow-server: --ldir {wrong} is not an existing folder" in daemon.log


def test_kernel_tls_required_where_there_is_none(tunnel: Tunnel) -> None:
    from shadow.transport import ktls  # noqa: PLC0415

    daemon = tunnel.daemon(tunnel.server_arguments("--ktls=require"))
    if ktls.missing() is None:
        daemon.wait_for_log("accepting robots")
        return
    assert daemon.wait() == 71
    assert "shadow-server: --ktls=require, but the kernel module 'tls' is not loaded" in daemon.log


def test_stopping_ends_everything_in_order(tunnel: Tunnel) -> None:
    with serving(echo) as service:
        server = tunnel.start_server()
        client = tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        visitor = tunnel.visit()
        visitor.sendall(b"x")
        assert visitor.recv(1) == b"x"
        assert server.stop() == 0
        assert visitor.recv(1) == b""
        assert not list(tunnel.ldir.iterdir())
        assert "stream 1 cut off (the daemon is stopping)" in server.log
        client.wait_for_log("next try in")
        visitor.close()


def test_reload_takes_a_new_certificate_and_a_broken_one_changes_nothing(
    authority: Authority, tmp_path: Path
) -> None:
    own = Authority(tmp_path / "own")
    with Tunnel(own, tmp_path) as tunnel:
        server = tunnel.start_server()
        crt, key = own.server()
        robot = client_context(own, own.robot())

        def serial() -> object:
            with Peer(tunnel.port, robot) as peer:
                return (peer.sock.getpeercert() or {})["serialNumber"]

        first = serial()
        own.issue("server", "server", Purpose.SERVER)
        assert serial() == first
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("reloaded: new connections use the new certificates")
        second = serial()
        assert second != first
        crt.write_text("broken")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log(rf"reload failed, the old files stay in use: .*{re.escape(str(crt))}")
        assert serial() == second
        assert key.exists()


def test_byte_exact_after_all_that(tunnel: Tunnel, server: Daemon) -> None:
    with serving(echo) as service:
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        data = random_bytes(10_000_000, 5)
        with tunnel.visit() as visitor:
            assert exchange(visitor, data) == data


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
