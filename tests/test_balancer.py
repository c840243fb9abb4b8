"""Servers behind a real haproxy: who goes where, and what the servers know of where robots come from."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import CHECKOUT, Authority, Daemon, Tunnel, echo, exchange, serving, wait_for
from tests.support.balancer import SOURCE, Balancer

ROBOTS = ("011", "012", "013", "014")


@pytest.fixture
def two(authority: Authority, tmp_path: Path) -> Iterator[list[Tunnel]]:
    for name in "12":
        (tmp_path / name).mkdir()
    with Tunnel(authority, tmp_path / "1") as one, Tunnel(authority, tmp_path / "2") as other:
        yield [one, other]


def dial(tunnel: Tunnel, balancer: Balancer, robot: str, *more: str) -> Daemon:
    """A robot that dials the balancer; it ends with that tunnel."""
    words = (f"--rport={balancer.port}", "--server-name=localhost", "--lhost=127.0.0.1", *more)
    return tunnel.daemon(tunnel.client_arguments(*words, robot=robot, rhost="127.0.0.1"))


def peers(server: Daemon) -> dict[str, str]:
    """Where each robot came from last, by the log."""
    return dict(re.findall(r"robot (\w+) connected from (\S+) \(", server.log))


def listed(tunnel: Tunnel) -> dict[str, str]:
    """Where each robot comes from, by ``shadowctl``."""
    command = [sys.executable, "-m", "shadow.cli.ctl", f"--dir={tunnel.ldir}", "list", "--json"]
    said = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    return {robot["name"]: robot["peer"] for robot in json.loads(said)}


def visit(tunnel: Tunnel, robot: str) -> None:
    with tunnel.visit(robot) as visitor:
        assert exchange(visitor, robot.encode()) == robot.encode()


def until_checked(balancer: Balancer, number: int, result: str) -> None:
    """Wait for the outcome of a check, see ``show stat`` in haproxy's management guide."""
    wait_for(lambda: balancer.figures(number)["check_status"].endswith(result), f"{result} of a check")


@pytest.fixture
def health() -> Iterator[list[socket.socket]]:
    """Where the servers are asked how they are."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        yield [one, other]


def start(tunnel: Tunnel, health: socket.socket) -> Daemon:
    more = f"--proxy-protocol={SOURCE}", f"--advertise=127.0.0.1:{tunnel.port}", f"--max-robots={len(ROBOTS)}"
    server = tunnel.daemon(tunnel.server_arguments(*more), passed=("shadow-health", health))
    server.wait_for_log("accepting robots")
    return server


@pytest.mark.long
def test_two_servers(two: list[Tunnel], health: list[socket.socket], tmp_path: Path) -> None:
    """Sessions are balanced, visitors' channels go directly, and the robots of a server that ends move."""
    servers = [start(tunnel, sock) for tunnel, sock in zip(two, health, strict=True)]
    checks = [sock.getsockname()[1] for sock in health]
    with serving(echo) as service, Balancer(tmp_path, [tunnel.port for tunnel in two], checks) as balancer:
        for number in (1, 2):
            until_checked(balancer, number, "L7OK")
        for robot in ROBOTS:
            dial(two[1], balancer, robot, f"--lport={service.port}")

        def connected() -> list[int]:
            return [sum(tunnel.socket_path(robot).exists() for robot in ROBOTS) for tunnel in two]

        wait_for(lambda: connected() == [2, 2], "two robots on each server")
        assert [balancer.figures(number)["scur"] for number in (1, 2)] == ["2", "2"]
        for server in servers:
            server.wait_for_log(r"robot \w+ connected", count=2)
        clients = balancer.clients()
        assert len(clients) == len(ROBOTS)
        assert {*peers(servers[0]).values(), *peers(servers[1]).values()} == clients
        for tunnel, server in zip(two, servers, strict=True):
            for robot in peers(server):
                visit(tunnel, robot)

        assert servers[0].stop() == 0
        health[0].close()
        wait_for(lambda: connected() == [0, 4], "all robots on the other server")
        wait_for(lambda: balancer.figures(1)["status"] == "DOWN", "haproxy to notice it")
        servers[1].wait_for_log(r"robot \w+ connected", count=4)
        assert set(peers(servers[1]).values()) >= balancer.clients()
        # That one is full now. It gets no more robots, and those that it has stay.
        until_checked(balancer, 2, "L7STS")
        wait_for(lambda: balancer.figures(2)["status"] == "DOWN", "haproxy to believe it")
        for robot in ROBOTS:
            visit(two[1], robot)
        # Nobody has come twice: nothing but control channels went through it.
        assert balancer.figures(2)["stot"] == "4"
        for server in servers:
            assert "WARNING: no handshake" not in server.log
            assert not re.search(f"(connected|came back) from {SOURCE}", server.log)


@pytest.mark.parametrize("header", ["send-proxy", "send-proxy-v2"])
def test_one_server(tunnel: Tunnel, tmp_path: Path, header: str) -> None:
    """All channels may go through the balancer, and checks may be mere connections."""
    server = tunnel.start_server_with_api(f"--proxy-protocol={SOURCE}")
    with serving(echo) as service, Balancer(tmp_path, [tunnel.port], header=header) as balancer:
        dial(tunnel, balancer, "011", f"--lport={service.port}")
        server.wait_for_log("robot 011 connected")
        visit(tunnel, "011")
        assert int(balancer.figures(1)["stot"]) >= 2
        assert peers(server) == listed(tunnel)
        assert set(peers(server).values()) <= balancer.clients()
        until_checked(balancer, 1, "L4OK")
        assert balancer.figures(1)["status"] == "UP"
        assert "WARNING: no handshake" not in server.log
