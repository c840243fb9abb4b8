"""The server as a whole: robots by hand, robots that are broken, its limits, its life."""

import contextlib
import re
import resource
import signal
import socket
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
    random_bytes,
    serving,
    wait_for,
)
from tests.support.peer import (
    DIAL,
    FAILED,
    PING,
    PONG,
    START,
    STARTED,
    WELCOME,
    Peer,
    client_context,
    connect,
    frame,
    still_works,
)


@pytest.fixture
def server(tunnel: Tunnel) -> Daemon:
    return tunnel.start_server("--handshake-timeout=1.5", "--keepalive=0.5", "--start-timeout=1.5")


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


# Broken robots: a good certificate, and then nonsense.


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
