"""Visitors until their streams run: channels that fail, robots that dawdle, limits."""

import contextlib
import select
import time

import pytest

from shadow.server.visitors import Numbers
from tests.support import DEADLINE, Tunnel, echo, exchange, serving
from tests.support.peer import DIAL, START, STARTED, connect, frame, stand_by


def test_no_two_streams_have_one_number() -> None:
    numbers = Numbers()
    assert [numbers.take() for _ in range(3)] == ["1", "2", "3"]
    numbers.note("ff")
    numbers.note("2")
    assert numbers.take() == "100"


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


@pytest.mark.long
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
