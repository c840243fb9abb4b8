"""A server that is drained: its robots go to others, and nobody notices."""

import contextlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bench.processes import free_port
from tests.support import CHECKOUT, Daemon, Service, echo, exchange, serving, wait_for
from tests.support.peer import REFUSED, WELCOME, connect
from tests.support.sites import NAME, Fleet, Site

MOVE = 17


@pytest.fixture
def families(fleet: Fleet) -> Fleet:
    """Both servers at one port, each of another family, so that a robot can have both."""
    port = free_port()
    for site, option, host in zip(fleet.sites, ("-4", "-6"), ("127.0.0.1", "[::1]"), strict=True):
        site.tunnel.port = port
        words = [*fleet.options(site.name, site.peer), option, f"--peer={host}:{site.peer}"]
        site.daemon = site.tunnel.start_server_with_api(*words)
    for site in fleet.sites:
        site.follow()
    return fleet


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(echo) as made:
        yield made


def control(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "shadow.cli.ctl", *words, "--dir", str(site.tunnel.ldir)]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=CHECKOUT)


def says(visitor: socket.socket, words: bytes) -> bytes:
    visitor.sendall(words)
    return visitor.recv(100)


def drain(site: Site, *words: str) -> str:
    """Drain it, as soon as it knows that there is another one."""
    line = "drain", *words
    done = wait_for(lambda: (done := control(site, *line)).returncode == 0 and done, "it to be drained")
    return str(done.stdout)


def wait_for_state(site: Site, name: str, pattern: str) -> None:
    """Until a server says that another one, or itself, is doing something."""
    wait_for(
        lambda: re.search(rf"^{name} +{pattern} ", control(site, "servers").stdout, re.MULTILINE),
        f"server {name} to be shown as {pattern!r}",
    )


def start_robot(site: Site, service: Service, rhost: str = "127.0.0.1,::1") -> Daemon:
    return site.tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1", rhost=rhost)


def home(fleet: Fleet) -> Site:
    """Where the robot is."""
    found = wait_for(fleet.home, "the robot's entry")
    return next(site for site in fleet.sites if site.name == found[0])


def test_robots_go_before_they_leave_and_streams_stay(families: Fleet, service: Service) -> None:
    robot = start_robot(families.sites[0], service)
    here = home(families)
    (there,) = [site for site in families.sites if site is not here]
    wait_for(there.tunnel.socket_path().exists, "the robot's socket at the other server")
    with here.tunnel.visit() as visitor:
        assert says(visitor, b"before") == b"before"
        assert drain(here) == "1 robot to go to other servers\n"
        families.wait_for_home((there.name, 2))
        assert says(visitor, b"after") == b"after", "its stream is where it was"
        # A visitor at either server reaches it where it is now.
        for site in families.sites:
            with site.tunnel.visit() as other:
                assert exchange(other, b"x") == b"x"
        status = json.loads(control(here, "status", "--json").stdout)["status"]
        assert re.search("^0 robots, 1 stream, .*, draining$", status), status
        for site in families.sites:
            wait_for_state(site, here.name, "draining, 1 robot with streams left  +0")
    wait_for_state(there, here.name, "drained  +0")
    here.daemon.wait_for_log("drained: no robot and no stream of one is left, after [0-9]+ s")
    assert "no session with" not in robot.log
    here.daemon.wait_for_log("robot 011 disconnected: .*(hung up|is connected to server)")
    assert (families.value(f"live/{here.name}") or {})["draining"] is True
    assert control(here, "undrain").returncode == 0
    wait_for(
        lambda: (families.value(f"live/{here.name}") or {}).get("draining") is False, "it to be announced"
    )


def test_streams_that_are_left_are_ended_when_their_time_is_up(families: Fleet, service: Service) -> None:
    start_robot(families.sites[0], service)
    here = home(families)
    (there,) = [site for site in families.sites if site is not here]
    wait_for(there.tunnel.socket_path().exists, "the robot's socket at the other server")
    with here.tunnel.visit() as visitor, there.tunnel.visit() as from_afar:
        assert says(visitor, b"before") == says(from_afar, b"before") == b"before"
        text = "1 robot to go to other servers; streams that are left then are ended after 600 s\n"
        assert drain(here, "--timeout=600") == text
        families.wait_for_home((there.name, 2))
        wait_for_state(there, here.name, "draining, 1 robot with streams left, ends in [0-9]+min( [0-9]+s)?")
        assert says(visitor, b"after") == says(from_afar, b"after") == b"after"
        # A visitor here of a robot that is elsewhere is no reason to wait, and is left alone.
        with here.tunnel.visit() as other:
            assert says(other, b"by way of the other server") == b"by way of the other server"
            assert drain(here, "--timeout=0.1").startswith("0 robots to go"), "the last word counts"
            for ended in (visitor, from_afar):
                with contextlib.suppress(ConnectionResetError):
                    assert ended.recv(1) == b""
            here.daemon.wait_for_log("drained: no robot and no stream of one is left")
            assert says(other, b"goes on") == b"goes on"
    why = r"the server is being drained, and the 0\.1 s are over that streams were given"
    here.daemon.wait_for_log(rf"robot 011: stream \w+ cut off \({why}\)", 2)
    wait_for_state(there, here.name, "drained")


def test_no_more_robots_are_taken_until_it_is_over(families: Fleet) -> None:
    one = families.sites[0]
    drain(one)
    with one.robot():
        kind, body = one.answer
        assert (kind, body["code"]) == (REFUSED, "draining")
    assert control(one, "undrain").returncode == 0
    with one.robot(attempt=2):
        assert one.answer[0] == WELCOME


def test_who_does_not_know_how_to_move_is_refused_and_who_does_is_asked(families: Fleet) -> None:
    one = families.sites[0]
    for moves in (False, True):
        with connect(one.tunnel, NAME) as peer:
            kind, _body = peer.hello(NAME, moves=moves)
            assert kind == WELCOME
            drain(one)
            kind, body = peer.receive()
            assert (kind, body.get("code")) == ((MOVE, None) if moves else (REFUSED, "draining"))
            assert control(one, "undrain").returncode == 0


def test_a_robot_that_nobody_else_takes_stays(families: Fleet, service: Service) -> None:
    one, two = families.sites
    robot = start_robot(one, service, "127.0.0.1")  # it knows of no other
    wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
    with one.tunnel.visit() as visitor:
        assert says(visitor, b"before") == b"before"
        drain(one, "--timeout=0.1")
        robot.wait_for_log("wants us at another server, and none takes us: refused .draining.*; staying")
        wait_for(lambda: (families.value("live/s1") or {}).get("ends") == 0, "the time of streams to be up")
        assert says(visitor, b"still here") == b"still here"
    with one.tunnel.visit() as visitor:
        assert exchange(visitor, b"and here") == b"and here"
    assert families.home() == ("s1", 1)


def test_the_last_server_is_not_drained(fleet: Fleet) -> None:
    one = fleet.sites[0]
    one.daemon = one.tunnel.start_server_with_api(*fleet.options(one.name, one.peer))
    one.follow()
    done = control(one, "drain")
    assert done.returncode == 71
    assert "nothing has changed: no other server of the fleet is alive and takes robots" in done.stderr


def test_a_server_without_a_fleet_has_no_other(fleet: Fleet) -> None:
    one = fleet.sites[0]
    one.daemon = one.tunnel.start_server_with_api()
    done = control(one, "drain")
    assert done.returncode == 71
    assert "this server is not one of a fleet" in done.stderr
