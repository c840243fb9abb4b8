"""Robots on the server: sockets, visitors, channels that fail, limits."""

import contextlib
import os
import select
import signal
import socket
import stat
import threading
import time

import pytest

from tests.support import (
    DEADLINE,
    Service,
    Tunnel,
    echo,
    exchange,
    random_bytes,
    serving,
    shout,
    wait_for,
)
from tests.support.peer import DIAL, REFUSED, START, STARTED, WELCOME, Peer, client_context, frame


def connect(tunnel: Tunnel, robot: str = "011") -> Peer:
    return Peer(tunnel.port, client_context(tunnel.authority, tunnel.authority.robot(robot)))


def stand_by(tunnel: Tunnel, session: str) -> Peer:
    data = connect(tunnel)
    assert data.hello(role="data", session=session)[0] == WELCOME
    return data


# Sockets.


def test_sockets_come_and_go_with_the_robot(tunnel: Tunnel) -> None:
    tunnel.start_server()
    with serving(echo) as service, serving(shout) as other:
        client = tunnel.start_client(
            f"--lport={service.port}", "--lhost=127.0.0.1", f"--service=loud={other.endpoint}"
        )
        assert {path.name for path in tunnel.ldir.iterdir()} == {"011.sock", "loud@011.sock"}
        for path in tunnel.ldir.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
        with tunnel.visit("loud@011") as visitor:
            assert exchange(visitor, b"whisper") == b"WHISPER"
        with tunnel.visit() as visitor:
            assert exchange(visitor, b"whisper") == b"whisper"
        client.stop()
        wait_for(lambda: not list(tunnel.ldir.iterdir()), "the sockets to vanish")


def test_a_stale_socket_is_replaced(tunnel: Tunnel) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tunnel.socket_path()))
    with serving(echo) as service:
        tunnel.start_server()
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        with tunnel.visit() as visitor:
            assert exchange(visitor, b"x") == b"x"


def test_a_foreign_file_is_left_alone_and_the_robot_is_told(tunnel: Tunnel) -> None:
    tunnel.socket_path().write_text("precious")
    server = tunnel.start_server()
    with connect(tunnel) as peer:
        kind, answer = peer.hello(services=["", "web"])
        assert (kind, answer["code"]) == (REFUSED, "socket")
    server.wait_for_log(r"ERROR: robot 011: .*011\.sock is in the way and not a socket; it was left alone")
    assert tunnel.socket_path().read_text() == "precious"
    assert [path.name for path in tunnel.ldir.iterdir()] == ["011.sock"], "the other socket must go again"
    tunnel.socket_path().unlink()
    with connect(tunnel) as peer:
        assert peer.hello()[0] == WELCOME


def test_a_path_too_long_for_a_socket(tunnel: Tunnel) -> None:
    tunnel.ldir = tunnel.folder / ("d" * (96 - len(str(tunnel.folder))))
    tunnel.ldir.mkdir()
    server = tunnel.start_server()
    with connect(tunnel, "r" * 20) as peer:
        kind, answer = peer.hello("r" * 20)
        assert (kind, answer["code"]) == (REFUSED, "socket")
    server.wait_for_log("ERROR: robot r+: socket path .* is longer than 107 bytes; use a shorter --ldir")
    with connect(tunnel, "1") as peer:
        assert peer.hello("1")[0] == WELCOME


@pytest.mark.parametrize("service", ["a/b", "..", "x" * 33, "a@b", "a\0b"])
def test_bad_service_names(tunnel: Tunnel, service: str) -> None:
    tunnel.start_server()
    with connect(tunnel) as peer:
        kind, answer = peer.hello(services=["", service])
        assert (kind, answer["code"]) == (REFUSED, "bad-service")
    assert not list(tunnel.ldir.iterdir())


def test_a_takeover_keeps_the_socket_and_changes_the_services(tunnel: Tunnel) -> None:
    tunnel.start_server()
    with connect(tunnel) as first:
        first.hello(services=["", "old", "both"])
        before = tunnel.socket_path().stat().st_ino
        with connect(tunnel) as second:
            assert second.hello(services=["", "new", "both"])[0] == WELCOME
            kind, answer = first.receive()
            assert (kind, answer["code"]) == (REFUSED, "superseded")
            assert first.closed()
            assert {path.name for path in tunnel.ldir.iterdir()} == {
                "011.sock", "new@011.sock", "both@011.sock",
            }  # fmt: skip
            assert tunnel.socket_path().stat().st_ino == before


def test_a_takeover_that_is_refused_changes_nothing(tunnel: Tunnel) -> None:
    server = tunnel.start_server()
    with connect(tunnel) as first:
        session = first.hello(services=["a", "b"])[1]["session"]
        before = {path.name: path.stat().st_ino for path in tunnel.ldir.iterdir()}
        (tunnel.ldir / "zz@011.sock").write_text("precious")
        with connect(tunnel) as second:
            kind, answer = second.hello(services=["a", "new", "zz"])
            assert (kind, answer["code"]) == (REFUSED, "socket")
        server.wait_for_log("zz@011.sock is in the way")
        (tunnel.ldir / "zz@011.sock").unlink()
        assert {path.name: path.stat().st_ino for path in tunnel.ldir.iterdir()} == before
        with stand_by(tunnel, session) as data, tunnel.visit("b@011") as visitor:
            assert data.receive()[1]["service"] == "b"
            data.sock.sendall(frame(STARTED) + b"served")
            assert visitor.recv(10) == b"served"


@pytest.mark.parametrize("instead", ["nothing", "another's socket that is stale"])
@pytest.mark.parametrize("when", ["it comes back", "reload"])
def test_a_socket_that_somebody_removed_is_made_again(tunnel: Tunnel, when: str, instead: str) -> None:
    server = tunnel.start_server()
    with contextlib.ExitStack() as stack:
        peer = stack.enter_context(connect(tunnel))
        peer.hello(services=["", "web"])
        kept = (tunnel.ldir / "web@011.sock").stat().st_ino
        tunnel.socket_path().unlink()
        if instead != "nothing":
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(tunnel.socket_path()))
        if when == "reload":
            server.process.send_signal(signal.SIGHUP)
        else:
            peer = stack.enter_context(connect(tunnel))
            assert peer.hello(services=["", "web"])[0] == WELCOME
        server.wait_for_log(r"WARNING: robot 011: somebody has removed 011\.sock; made anew")
        assert (tunnel.ldir / "web@011.sock").stat().st_ino == kept, "the others stay"
        with tunnel.visit():
            assert peer.receive() == (DIAL, {"count": 1})


def test_a_socket_that_cannot_be_made_again_ends_no_session(tunnel: Tunnel) -> None:
    server = tunnel.start_server()
    with connect(tunnel) as peer:
        peer.hello(services=["", "web"])
        tunnel.socket_path().unlink()
        tunnel.socket_path().write_text("precious")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("ERROR: robot 011: .*011.sock is in the way")
        with tunnel.visit("web@011"):
            assert peer.receive() == (DIAL, {"count": 1})
        assert tunnel.socket_path().read_text() == "precious"


def test_visitors_that_wait_during_a_takeover_are_served_by_the_new_session(tunnel: Tunnel) -> None:
    tunnel.start_server()
    with connect(tunnel) as first, tunnel_visitor_after(tunnel, first) as visitor, connect(tunnel) as second:
        session = second.hello()[1]["session"]
        assert second.receive() == (DIAL, {"count": 1})
        with stand_by(tunnel, session) as data:
            assert data.receive()[0] == START
            data.sock.sendall(frame(STARTED) + b"served")
            assert visitor.recv(10) == b"served"


def tunnel_visitor_after(tunnel: Tunnel, first: Peer) -> socket.socket:
    first.hello()
    visitor = tunnel.visit()
    assert first.receive() == (DIAL, {"count": 1})
    return visitor


# Visitors.


def test_a_hundred_visitors_at_once_each_with_its_own_data(tunnel: Tunnel) -> None:
    with serving(echo) as service:
        tunnel.start_server("--start-timeout=60")  # the last ones wait long on a slow machine
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        outcomes: list[bool] = []

        def visit(number: int) -> None:
            data = random_bytes(200_000 + number, number)
            with tunnel.visit() as visitor:
                outcomes.append(exchange(visitor, data) == data)

        threads = [threading.Thread(target=visit, args=(number,)) for number in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * DEADLINE)
        assert outcomes == [True] * 100


def test_the_log_tells_who_came_and_how_much_moved(tunnel: Tunnel) -> None:
    with serving(shout) as service:
        server = tunnel.start_server()
        client = tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        with tunnel.visit() as visitor:
            assert exchange(visitor, b"12345") == b"12345"
        server.wait_for_log(rf"robot 011: stream 1 started for uid {os.getuid()}")
        server.wait_for_log(r"robot 011: stream 1 ended: 5 bytes to the robot, 5 bytes from it, \d+\.\d s")
        client.wait_for_log(r"stream 1 ended: 5 bytes to the service, 5 bytes from it")


def test_half_close_in_both_directions(tunnel: Tunnel) -> None:
    def talk_first(connection: socket.socket) -> None:
        connection.sendall(b"banner")
        connection.shutdown(socket.SHUT_WR)
        heard.append(connection.recv(100))

    heard: list[bytes] = []
    with Service(talk_first) as first, Service(shout) as second:
        tunnel.start_server()
        tunnel.start_client(
            f"--lport={first.port}", "--lhost=127.0.0.1", f"--service=shout={second.endpoint}"
        )
        with tunnel.visit() as visitor:
            assert visitor.recv(100) == b"banner"
            assert visitor.recv(100) == b""
            visitor.sendall(b"after the end")
            wait_for(lambda: heard == [b"after the end"], "the service to hear it")
        with tunnel.visit("shout@011") as visitor:
            visitor.sendall(b"question")
            visitor.shutdown(socket.SHUT_WR)
            assert visitor.recv(100) == b"QUESTION"


def test_an_aborting_service_reaches_the_visitor_and_the_other_way_round(tunnel: Tunnel) -> None:
    ends: list[str] = []

    def watch(connection: socket.socket) -> None:
        data = connection.recv(100)
        if data == b"reset me":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
            return
        connection.sendall(b"y" * 100)
        try:
            ends.append(repr(connection.recv(100)))
        except ConnectionResetError:
            ends.append("reset")

    with Service(watch) as service:
        server = tunnel.start_server()
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        with tunnel.visit() as visitor:
            visitor.sendall(b"reset me")
            assert visitor.recv(100) == b""
            with pytest.raises(BrokenPipeError):
                visitor.sendall(b"x")
        server.wait_for_log("stream 1 cut off by the robot")
        visitor = tunnel.visit()
        visitor.sendall(b"x")
        assert visitor.recv(1) == b"y"
        visitor.close()  # 99 bytes unread: that is a reset
        wait_for(lambda: ends, "the service to notice")
        assert ends == ["reset"]
        server.wait_for_log("stream 2 cut off by the visitor")


def test_a_visitor_that_leaves_before_the_answer_costs_no_channel(tunnel: Tunnel) -> None:
    tunnel.start_server()
    with connect(tunnel) as control:
        session = control.hello()[1]["session"]
        gone = tunnel.visit()
        assert control.receive() == (DIAL, {"count": 1})
        gone.close()
        with stand_by(tunnel, session) as data, tunnel.visit() as visitor:
            kind, start = data.receive()
            assert kind == START
            assert start["stream"] == "2", "the one that left must not be started"
            data.sock.sendall(frame(STARTED) + b"hello")
            assert visitor.recv(10) == b"hello"


def test_a_visitor_that_left_a_message_behind_has_it_delivered(tunnel: Tunnel) -> None:
    tunnel.start_server()
    with connect(tunnel) as control:
        session = control.hello()[1]["session"]
        gone = tunnel.visit()
        gone.sendall(b"last words")
        gone.close()
        assert control.receive() == (DIAL, {"count": 1})
        with stand_by(tunnel, session) as data:
            assert data.receive()[0] == START
            data.send(STARTED)
            assert data.sock.recv(100) == b"last words"


def test_a_channel_that_does_not_answer_is_thrown_away_and_the_next_one_tried(tunnel: Tunnel) -> None:
    tunnel.start_server("--start-timeout=1")
    with connect(tunnel) as control:
        session = control.hello()[1]["session"]
        with stand_by(tunnel, session) as dead, stand_by(tunnel, session) as alive:
            with tunnel.visit() as visitor:
                visitor.sendall(b"question")
                assert dead.receive()[0] == START
                assert alive.receive()[0] == START
                alive.send(STARTED)
                assert alive.sock.recv(100) == b"question", "nothing may be lost with the dead channel"
            assert dead.closed()


def test_a_channel_that_breaks_at_start_is_replaced(tunnel: Tunnel) -> None:
    tunnel.start_server()
    with connect(tunnel) as control:
        session = control.hello()[1]["session"]
        with tunnel.visit() as visitor:
            assert control.receive() == (DIAL, {"count": 1})
            with stand_by(tunnel, session) as broken:
                assert broken.receive()[0] == START
            assert control.receive() == (DIAL, {"count": 1})
            with stand_by(tunnel, session) as good:
                assert good.receive()[0] == START
                good.sock.sendall(frame(STARTED) + b"ok")
                assert visitor.recv(10) == b"ok"


def test_channels_that_the_robot_gives_up_just_then_cost_a_visitor_nothing(tunnel: Tunnel) -> None:
    """START crosses the robot's orderly close, again and again."""
    tunnel.start_server("--start-timeout=60")
    with connect(tunnel) as control:
        _kind, welcome = control.hello()
        standing_by = [stand_by(tunnel, welcome["session"]) for _ in range(6)]
        with tunnel.visit() as visitor:
            for channel in standing_by[:-1]:
                assert channel.receive()[0] == START
                channel.sock.unwrap()  # close_notify, and wait for the server's
            assert standing_by[-1].receive()[0] == START
            standing_by[-1].send(STARTED)
            standing_by[-1].sock.sendall(b"here you are")
            assert visitor.recv(100) == b"here you are"
        for channel in standing_by:
            channel.sock.close()


def test_a_robot_that_gives_up_every_channel_does_not_hold_a_visitor_for_ever(tunnel: Tunnel) -> None:
    server = tunnel.start_server("--start-timeout=0.5")
    with connect(tunnel) as control:
        _kind, welcome = control.hello()
        with tunnel.visit() as visitor:
            while not select.select([visitor], [], [], 0)[0]:
                with stand_by(tunnel, welcome["session"]) as channel:
                    channel.sock.settimeout(1.0)
                    with contextlib.suppress(TimeoutError):  # then the visitor has been turned away
                        assert channel.receive()[0] == START
                        channel.sock.unwrap()
            assert visitor.recv(1) == b""
    server.wait_for_log("turned away: 3 channels failed, the last with: hung up")


def test_a_visitor_is_turned_away_after_three_broken_channels(tunnel: Tunnel) -> None:
    server = tunnel.start_server()
    with connect(tunnel) as control:
        session = control.hello()[1]["session"]
        with tunnel.visit() as visitor:
            for _ in range(3):
                assert control.receive()[0] == DIAL
                with stand_by(tunnel, session) as broken:
                    assert broken.receive()[0] == START
            assert visitor.recv(1) == b""
    server.wait_for_log("turned away: 3 channels failed")


def test_a_robot_that_does_not_dial_costs_the_visitor_its_patience_only(tunnel: Tunnel) -> None:
    server = tunnel.start_server("--start-timeout=0.5")
    with connect(tunnel) as control:
        control.hello()
        with tunnel.visit() as first, tunnel.visit() as second:
            began = time.monotonic()
            assert first.recv(1) == second.recv(1) == b""
            assert time.monotonic() - began < DEADLINE
        server.wait_for_log(r"turned away: the robot opened no channel within 0\.5 s", count=2)


def test_a_robot_that_is_slow_serves_everybody_in_turn(tunnel: Tunnel) -> None:
    """The patience is for one channel and not for all that come before it."""
    server = tunnel.start_server("--start-timeout=5")
    with contextlib.ExitStack() as stack:
        control = stack.enter_context(connect(tunnel))
        session = control.hello()[1]["session"]
        visitors = [stack.enter_context(tunnel.visit()) for _ in range(2)]
        for _ in visitors:
            assert control.receive() == (DIAL, {"count": 1})
        for visitor in visitors:
            time.sleep(3)
            data = stack.enter_context(stand_by(tunnel, session))
            assert data.receive()[0] == START
            data.sock.sendall(frame(STARTED) + b"served")
            assert visitor.recv(10) == b"served"
    assert "turned away" not in server.log


def test_visitors_that_wait_are_turned_away_when_the_robot_goes(tunnel: Tunnel) -> None:
    server = tunnel.start_server()
    with connect(tunnel) as control:
        control.hello()
        visitor = tunnel.visit()
        assert control.receive()[0] == DIAL
    with visitor:
        assert visitor.recv(1) == b""
    server.wait_for_log("turned away: the robot disconnected")


def test_the_limit_of_visitors(tunnel: Tunnel) -> None:
    with serving(echo) as service:
        server = tunnel.start_server("--max-streams=3")
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        visitors = []
        for _ in range(3):
            visitor = tunnel.visit()
            visitor.sendall(b"x")
            assert visitor.recv(1) == b"x"
            visitors.append(visitor)
        with tunnel.visit() as turned_away:
            assert turned_away.recv(1) == b""
        server.wait_for_log(r"turned away: the robot has 3 visitors \(--max-streams\)")
        visitors.pop().close()
        server.wait_for_log("stream .* ended")
        with tunnel.visit() as visitor:
            assert exchange(visitor, b"room again") == b"room again"
        for visitor in visitors:
            visitor.close()


def test_too_many_channels_standing_by_are_refused(tunnel: Tunnel) -> None:
    tunnel.start_server()
    with connect(tunnel) as control:
        session = control.hello()[1]["session"]
        standing = [stand_by(tunnel, session) for _ in range(128)]
        with connect(tunnel) as one_more:
            kind, answer = one_more.hello(role="data", session=session)
            assert (kind, answer["code"]) == (REFUSED, "limit")
        for peer in standing:
            peer.sock.close()


def test_more_visitors_than_are_dialled_for_at_once_are_all_served(tunnel: Tunnel) -> None:
    with serving(echo) as service:
        tunnel.start_server("--start-timeout=30")
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1", "--standby=0")
        visitors = [tunnel.visit() for _ in range(120)]
        for number, visitor in enumerate(visitors):
            visitor.sendall(b"%d" % number)
        for number, visitor in enumerate(visitors):
            assert visitor.recv(10) == b"%d" % number
            visitor.close()


def test_hundreds_that_left_while_they_waited_cost_nothing(tunnel: Tunnel) -> None:
    tunnel.start_server()
    with connect(tunnel) as control:
        session = control.hello()[1]["session"]
        for _ in range(900):
            tunnel.visit().close()
        with stand_by(tunnel, session) as data, tunnel.visit() as visitor:
            assert data.receive()[0] == START
            data.sock.sendall(frame(STARTED) + b"served")
            assert visitor.recv(10) == b"served"


def test_a_reader_that_pauses_keeps_its_stream(tunnel: Tunnel) -> None:
    """As in ``ssh robot cat file | less``: longer than any keepalive, and nothing is lost."""
    data = random_bytes(20_000_000, 8)
    with Service(lambda connection: connection.sendall(data)) as service:
        tunnel.start_server("--keepalive=0.5")
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        with tunnel.visit() as visitor:
            received = visitor.recv(1000)
            time.sleep(6)  # the pause itself is what is tested: twelve intervals
            while part := visitor.recv(1_000_000):
                received += part
        assert received == data
