"""Robots on the server: their sessions, sockets, standbys, and what goes through their streams."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import stat
import threading
import time
from pathlib import Path

import pytest

from shadow.server.session import Cause, Session
from shadow.transport.link import KernelLink
from shadow.wire.conversation import CONTROL
from shadow.wire.frames import Dial, Hello, Start, Started
from tests.support import (
    DEADLINE,
    Authority,
    Service,
    Tunnel,
    echo,
    exchange,
    random_bytes,
    serving,
    shout,
    wait_for,
)
from tests.support.peer import DIAL, REFUSED, START, STARTED, WELCOME, Peer, connect, frame, stand_by

# Sockets.
from .test_handover import NAME, Scene, play, until


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
        server.wait_for_log(r"WARNING: robot 011: somebody has removed 011\.sock; made again")
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


def test_a_takeover_in_the_moment_in_which_a_visitors_patience_ends(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both in one turn of the event loop: it is turned away, and nobody has it after that."""

    async def body(scene: Scene) -> None:
        await scene.begin()
        there = scene.visit()
        assert await scene.control.hear() == Dial(1)
        robot, bugs = scene.before.robot, list[object]()
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: bugs.append(context))
        first = robot.session
        assert first is not None
        visitor = first.board.visitors[0]
        assert visitor.timer is not None
        visitor.timer.cancel()
        begin = robot.begin_session

        def begin_too_late(session: Session) -> None:
            begin(session)
            robot.visitors._patience_over(visitor)

        monkeypatch.setattr(robot, "begin_session", begin_too_late)
        second = await scene.connect(Hello(1, CONTROL, NAME, ("",)))
        assert await second.hear() == Dial(1)
        assert there.recv(1) == b""
        assert robot.session is not first
        assert robot.session is not None
        assert not robot.session.board.visitors
        assert bugs == []

    play(authority, tmp_path, body)


def tunnel_visitor_after(tunnel: Tunnel, first: Peer) -> socket.socket:
    first.hello()
    visitor = tunnel.visit()
    assert first.receive() == (DIAL, {"count": 1})
    return visitor


# Streams.


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


@pytest.mark.long
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


# What it says of itself, to whoever debugs.


def test_a_robots_life_in_its_own_words(authority: Authority, tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        robot = scene.before.robot
        assert repr(robot) == "<Robot 011: 0 standing by, 0 waiting, 0 starting, 0 running>"

        visitor = scene.visit()
        assert await scene.control.hear() == Dial(1)
        assert repr(robot) == "<Robot 011: 0 standing by, 1 waiting, 0 starting, 0 running>"

        channel = await scene.stand_by()
        assert isinstance(await channel.hear(), Start)
        assert repr(robot) == "<Robot 011: 0 standing by, 0 waiting, 1 starting, 0 running>"

        await scene.stand_by()
        assert repr(robot) == "<Robot 011: 1 standing by, 0 waiting, 1 starting, 0 running>"

        await channel.say(Started())
        await until(lambda: len(robot.streams))
        assert repr(robot) == "<Robot 011: 1 standing by, 0 waiting, 0 starting, 1 running>"

        scene.control.sock.close()
        await until(lambda: robot.session is None)
        assert repr(robot) == "<Robot 011: not connected, 0 starting, 1 running>"
        visitor.close()

    play(authority, tmp_path, body)


def test_all_that_a_robot_has_in_a_few_lines(authority: Authority, tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        await scene.begin()
        robot = scene.before.robot
        channel = await scene.stand_by()
        scene.visit()
        assert isinstance(await channel.hear(), Start)
        scene.visit()
        assert await scene.control.hear() == Dial(1)
        session = robot.session
        assert session is not None
        told = "\n".join(robot.describe())
        assert session.id not in told, "who knows it opens channels"
        for what, word in (
            (r"\d+\.\d s", "N s"),
            (r"127\.0\.0\.1:\d+", "ADDRESS"),
            (session.id[:8], "ID"),
            (f"uid {os.getuid()}, pid {os.getpid()}", "WHO"),
        ):
            told = re.sub(what, word, told)
        control = "<Channel control open, <KernelLink with ADDRESS>>"
        data = "<Channel data starting, <KernelLink with ADDRESS>>"
        times = "N s, given up in N s if unheard"
        assert told.split("\n") == [
            "<Robot 011: 0 standing by, 1 waiting, 1 starting, 0 running>",
            f"  <Session 'ID' with 198.51.100.7:1234, {times}, 0 standing by, 1 waiting> over {control}",
            "  <Visitor 2 of default, WHO, N s, tries: 0> waits",
            f"  <Visitor 1 of default, WHO, N s, tries: 1> starts on {data}",
        ]
        session.channel.close()
        assert repr(session.channel) == "<Channel control open, let go, <KernelLink that is gone>>"

    play(authority, tmp_path, body)


def test_a_robot_whose_last_visitor_cannot_be_connected_is_forgotten(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session has ended meanwhile: else it would count as one of those that may be here for ever."""

    async def body(scene: Scene) -> None:
        await scene.begin()
        standby = await scene.stand_by()
        there = scene.visit()
        assert isinstance(await standby.hear(), Start)
        robots, robot = scene.before.robots, scene.before.robot
        (channel,) = robot.visitors.starting.values()
        monkeypatch.setattr(KernelLink, "flushed", False)
        robot.end_session("gone", Cause.LOST)
        assert list(robots) == [NAME]
        await standby.say(Started())
        await until(lambda: not robots)
        assert not channel.live
        assert there.recv(1) == b""

    play(authority, tmp_path, body)
