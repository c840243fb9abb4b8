"""Data channels that go elsewhere than the control channel, as behind a balancer: with real processes."""

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shadow.pki.certificates import Purpose
from tests.support import Service, Tunnel, echo, exchange, serving, wait_for
from tests.support.peer import WELCOME, connect, server_context, stand_by

BALANCER = "127.0.0.2"


def forward_to(port: int) -> Callable[[socket.socket], None]:
    """What a balancer does: passes on bytes and their ends, and knows nothing of them."""

    def pass_on(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def forward(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port)) as server:
            back = threading.Thread(target=pass_on, args=(server, connection), daemon=True)
            back.start()
            pass_on(connection, server)
            back.join()

    return forward


def through(balancer: Service, *more: str) -> list[str]:
    """The words for a robot that knows nothing but the balancer."""
    return [f"--rport={balancer.port}", "--server-name=localhost", "--lhost=127.0.0.1", *more]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_data_channels_go_where_the_server_says(tunnel: Tunnel, host: str) -> None:
    with Service(forward_to(tunnel.port), BALANCER) as balancer, serving(echo) as service:
        tunnel.start_server(f"--advertise={host}:{tunnel.port}")
        robot = tunnel.start_client(*through(balancer, f"--lport={service.port}"), rhost=BALANCER)
        robot.wait_for_log(rf"connected to {BALANCER}:\d+ .*; its data channels go to {host}:{tunnel.port}")
        for number in range(5):
            with tunnel.visit() as visitor:
                assert exchange(visitor, b"%d" % number) == b"%d" % number
        assert balancer.accepted == 1, "the control channel, and nothing else"


def test_without_a_word_they_go_where_the_control_channel_went(tunnel: Tunnel) -> None:
    with Service(forward_to(tunnel.port), BALANCER) as balancer, serving(echo) as service:
        tunnel.start_server()
        tunnel.start_client(*through(balancer, f"--lport={service.port}"), rhost=BALANCER)
        with tunnel.visit() as visitor:
            assert exchange(visitor, b"hello") == b"hello"
        assert balancer.accepted > 1


def test_an_older_robot_dials_where_it_always_did(tunnel: Tunnel) -> None:
    tunnel.start_server("--advertise=nowhere.example:1")
    with connect(tunnel) as robot:
        kind, welcome = robot.hello()
        assert (kind, welcome["dial"]) == (WELCOME, "nowhere.example:1")
        stand_by(tunnel, welcome["session"]).sock.close()


def test_a_server_sends_its_robots_only_to_who_has_its_name(tunnel: Tunnel) -> None:
    """Somebody with a certificate of our CA, but for another name: it hears neither HELLO nor who we are."""
    pair = tunnel.authority.issue("elsewhere", "s", Purpose.SERVER, hosts=("other.example",))
    context = server_context(tunnel.authority, pair)
    heard: list[bytes] = []

    def listen(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(connection.dup(), server_side=True) as sock:
            heard.append(sock.recv(65536))

    with Service(listen, "127.0.0.3") as stranger:
        tunnel.start_server(f"--advertise={stranger.endpoint}")
        robot = tunnel.start_client("--lport=9")
        said = (
            f"cannot open data channels at {stranger.endpoint}, which the server advertises: the server's "
            "certificate is not for localhost but for other.example"
        )
        robot.wait_for_log(said)
        wait_for(lambda: stranger.accepted >= 6, "the robot to try again")
        assert robot.log.count(said) == robot.log.count("cannot open") == 1
        assert heard == []


def test_nobody_where_the_server_says(tunnel: Tunnel, tmp_path: Path) -> None:
    """The session stays, so that one can see it; visitors are turned away in time."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.3", 0))
        where = f"127.0.0.3:{closed.getsockname()[1]}"
        server = tunnel.start_server(f"--advertise={where}", "--start-timeout=1")
        robot = tunnel.start_client("--lport=9")
        robot.wait_for_log(
            f"cannot open data channels at {where}, which the server advertises: cannot connect to {where}: "
            "Connection refused; no visitor reaches this robot until that works"
        )
        with tunnel.visit() as visitor:
            assert visitor.recv(1) == b""
        server.wait_for_log("turned away")
        assert "no session with" not in robot.log
