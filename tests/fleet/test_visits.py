"""Visitors whose robots are at another server: the way there, and what happens when a robot moves."""

import contextlib
import os
import pwd
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import echo, exchange, serving, wait_for
from tests.support.peer import START, STARTED, connect
from tests.support.sites import NAME, Fleet, Site


@pytest.fixture
def robot(both: Fleet) -> Iterator[None]:
    """A real one at the first server, with a service that echoes."""
    with serving(echo) as service:
        both.sites[0].tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        wait_for(both.sites[1].tunnel.socket_path().exists, "the robot's socket at the other server")
        yield


def visit(site: Site, words: bytes = b"hello") -> None:
    with site.tunnel.visit() as visitor:
        assert exchange(visitor, words) == words


def test_a_visitor_at_any_server_reaches_the_robot(both: Fleet, robot: None) -> None:
    one, two = both.sites
    visit(two, b"x" * 100_000)
    visit(one)
    here, user = os.getuid(), pwd.getpwuid(os.getuid()).pw_name
    started = two.daemon.wait_for_log(
        rf"robot 011: stream (\w+) started for uid {here} \({user}\), by way of server s1"
    )
    there = one.daemon.wait_for_log(
        rf"robot 011: stream (\w+) started for uid {here} \({user} at server s2\)"
    )
    for site, stream in ((two, started[1]), (one, there[1])):
        site.daemon.wait_for_log(
            rf"robot 011: stream {stream} ended: 100000 bytes to the robot, 100000 bytes from it"
        )
    one.daemon.wait_for_log(rf"robot 011: stream \w+ started for uid {here}\n")


def test_the_end_of_one_side_leaves_the_other_open(both: Fleet, robot: None) -> None:
    with both.sites[1].tunnel.visit() as visitor:
        visitor.sendall(b"last words")
        visitor.shutdown(socket.SHUT_WR)
        said = b""
        while part := visitor.recv(100):
            said += part
        assert said == b"last words"


def test_many_at_once_all_get_through(both: Fleet, robot: None) -> None:
    """More than stand by, and more than one service connection at a time."""
    with ThreadPoolExecutor(40) as pool:
        for done in [pool.submit(visit, both.sites[1], os.urandom(2000)) for _ in range(40)]:
            done.result()


def test_what_the_robot_cannot_connect_fails_at_the_visitors_server_with_the_reason(both: Fleet) -> None:
    one, two = both.sites
    one.tunnel.start_client("--lport=1", "--lhost=127.0.0.1")
    wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
    with two.tunnel.visit() as visitor:
        assert visitor.recv(1) == b""
    two.daemon.wait_for_log(r"turned away: server s1 says: the robot could not connect it \('refused': ")
    one.daemon.wait_for_log(
        r"visitor with uid \d+ \(\w+ at server s2\) turned away: the robot could not connect it"
    )


class Robot:
    """One made by hand, that is at a server for as long as it says."""

    def __init__(self, site: Site, boot: str, attempt: int) -> None:
        self._stack = contextlib.ExitStack()
        self.site = site
        self.control = self._stack.enter_context(site.robot(boot, attempt))
        self.session = site.answer[1]["session"]

    def serve(self, words: bytes) -> None:
        """Open a data channel, wait for a visitor, and say something to it."""
        peer = self._stack.enter_context(connect(self.site.tunnel, NAME))
        peer.hello(NAME, role="data", session=self.session)
        kind, _start = peer.receive()
        assert kind == START
        peer.send(STARTED)
        peer.sock.sendall(words)

    def leave(self) -> None:
        self._stack.close()


def hears(visitor: socket.socket, words: bytes) -> None:
    said = b""
    while len(said) < len(words):
        part = visitor.recv(100)
        assert part, f"hung up after {said!r}"
        said += part
    assert said == words


def test_a_visitor_waits_for_a_robot_that_moves(both: Fleet) -> None:
    """It opens a socket while nobody has the robot, and is served where that turns up."""
    one, two = both.sites
    robot = Robot(one, "b007", 1)
    wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
    robot.leave()
    both.wait_for_home(None)
    with two.tunnel.visit() as first, one.tunnel.visit() as second:
        robot = Robot(two, "b007", 2)
        for _ in range(2):
            robot.serve(b"here I am")
        hears(first, b"here I am")
        hears(second, b"here I am")
        robot.leave()


def test_a_visitor_goes_where_the_robot_has_gone(both: Fleet) -> None:
    """The first server still has a session, for it has not heard that the robot left: START has no answer."""
    one, two = both.sites
    before = Robot(one, "b007", 1)
    wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
    with one.tunnel.visit() as visitor:
        after = Robot(two, "b007", 2)
        both.wait_for_home(("s2", 2))
        after.serve(b"moved")
        hears(visitor, b"moved")
        after.leave()
    before.leave()


def test_nobody_waits_for_ever(both: Fleet) -> None:
    one, two = both.sites
    two.daemon.stop()
    two.start("--start-timeout=1")
    robot = Robot(one, "b007", 1)
    wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
    robot.leave()
    both.wait_for_home(None)
    with two.tunnel.visit() as visitor:
        assert visitor.recv(1) == b""
    two.daemon.wait_for_log("turned away: no server of the fleet has had the robot for 1 s")


def test_a_server_that_died_is_left_for_the_one_that_the_robot_is_at(both: Fleet) -> None:
    one, two = both.sites
    before = Robot(one, "b007", 1)
    wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
    one.crash()
    with two.tunnel.visit() as visitor:
        two.daemon.wait_for_log("server s1 .*is out of reach")
        after = Robot(two, "b007", 2)
        after.serve(b"alive")
        hears(visitor, b"alive")
        after.leave()
    before.leave()


def test_while_the_engine_is_away_the_others_are_asked(both: Fleet) -> None:
    """What was known last still leads to the robot; and when it moves, nobody can write that down."""
    one, two = both.sites
    before = Robot(one, "b007", 1)
    wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
    with contextlib.ExitStack() as away:
        for member in both.members.members:
            away.enter_context(member.stopped())
        for site in both.sites:
            site.daemon.wait_for_log("the fleet's engine does not answer")
        with two.tunnel.visit() as visitor:
            before.serve(b"still here")
            hears(visitor, b"still here")
        before.leave()
        after = Robot(two, "b007", 2)
        with one.tunnel.visit() as visitor:
            after.serve(b"over there")
            hears(visitor, b"over there")
        after.leave()
