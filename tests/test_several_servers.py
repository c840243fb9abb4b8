"""A robot that may connect to any of several servers, with real ones at addresses of their own."""

import re
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from shadow.pki.certificates import Purpose
from tests.support import DEADLINE, Daemon, Tunnel, echo, exchange, serving, wait_for

HOSTS = ("127.0.0.2", "127.0.0.3")


@dataclass
class Server:
    """One of them: its certificate is for its own address only, as is its port."""

    tunnel: Tunnel
    host: str
    ldir: Path
    daemon: Daemon

    def visit(self) -> socket.socket:
        """Connect to the robot's socket there, once it is there."""
        path = self.ldir / "011.sock"
        wait_for(path.exists, f"{path}")
        visitor = socket.socket(socket.AF_UNIX)
        visitor.settimeout(DEADLINE)
        visitor.connect(str(path))
        return visitor

    def stop(self) -> None:
        self.daemon.stop(signal.SIGKILL)


def start(tunnel: Tunnel, host: str, *more: str, names: tuple[str, ...] | None = None) -> Server:
    ldir = tunnel.folder / f"sockets-{host}"
    ldir.mkdir()
    pair = tunnel.authority.issue(f"server-{host}", "s", Purpose.SERVER, hosts=names or (host,))
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, tunnel.port))
        listener.listen()
        arguments = tunnel.server_arguments(f"--ldir={ldir}", f"--crt={pair[0]}", f"--key={pair[1]}", *more)
        daemon = tunnel.daemon(arguments, passed=("shadow-server", listener))
    daemon.wait_for_log("accepting robots")
    return Server(tunnel, host, ldir, daemon)


@pytest.fixture
def servers(tunnel: Tunnel) -> dict[str, Server]:
    return {host: start(tunnel, host) for host in HOSTS}


def robot(tunnel: Tunnel, *more: str, rhost: str = ",".join(HOSTS)) -> Daemon:
    return tunnel.daemon(tunnel.client_arguments("--lhost=127.0.0.1", *more, rhost=rhost))


def connected(client: Daemon, count: int = 1) -> str:
    """The address of the server that it has connected to, for the ``count``th time."""
    return client.wait_for_log(r"robot 011 connected to ([0-9.]+):", count)[1]


def test_a_robot_whose_server_is_killed_goes_to_the_other(tunnel: Tunnel, servers: dict[str, Server]) -> None:
    with serving(echo) as service:
        client = robot(tunnel, f"--lport={service.port}")
        client.wait_for_log(rf"dials 127\.0\.0\.2:{tunnel.port} or 127\.0\.0\.3:{tunnel.port} and offers")
        first = connected(client)
        with servers[first].visit() as visitor:
            assert exchange(visitor, b"here") == b"here"
        servers[first].stop()
        second = connected(client, 2)
        assert {first, second} == set(HOSTS)
        with servers[second].visit() as visitor:
            assert exchange(visitor, b"there") == b"there"
        assert "does not lead to" not in client.log


def test_its_data_channels_are_at_the_same_server(tunnel: Tunnel, servers: dict[str, Server]) -> None:
    client = robot(tunnel, "--lport=9", "--standby=8", "--log-level=debug")
    here = connected(client)
    client.wait_for_log("DEBUG: reached ", count=9)
    assert set(re.findall(r"DEBUG: reached ([0-9.]+):", client.log)) == {here}
    for server in servers.values():
        assert ("connected from" in server.daemon.log) == (server.host == here)


def test_a_server_must_be_who_was_dialled(tunnel: Tunnel) -> None:
    """The certificate of one server does not do at the address of another one."""
    start(tunnel, HOSTS[0], names=(HOSTS[1],))
    right = start(tunnel, HOSTS[1])
    client = robot(tunnel, "--lport=9")
    assert connected(client) == right.host
    right.stop()
    client.wait_for_log(rf"certificate is not for {HOSTS[0]} but for {HOSTS[1]}")
    assert len(re.findall("robot 011 connected", client.log)) == 1


def test_a_server_sends_its_robots_to_no_other_one(tunnel: Tunnel) -> None:
    """Not even to one that they might dial themselves."""
    for host, other in (HOSTS, HOSTS[::-1]):
        start(tunnel, host, f"--advertise={other}:{tunnel.port}")
    client = robot(tunnel, "--lport=9")
    host = connected(client)
    (other,) = set(HOSTS) - {host}
    client.wait_for_log(
        f"cannot open data channels at {other}:{tunnel.port}, which the server advertises: the server's "
        f"certificate is not for {host} but for {other}"
    )


def test_a_host_that_does_not_exist_harms_nobody(tunnel: Tunnel) -> None:
    server = start(tunnel, HOSTS[0])
    client = robot(tunnel, "--lport=9", "--log-level=debug", rhost=f"no-such-host.invalid,{HOSTS[0]}")
    assert connected(client) == server.host
    assert "DEBUG: cannot resolve no-such-host.invalid" in client.log
    assert "WARNING: cannot resolve" not in client.log


def test_none_of_the_hosts_exists(tunnel: Tunnel) -> None:
    client = robot(tunnel, "--lport=9", "--once", rhost="no-such-host.invalid,nor-this.invalid")
    assert client.wait() == 69
    pattern = r"^shadow-client: cannot resolve no-such-host\.invalid: .*; cannot resolve nor-this\.invalid: "
    assert re.search(pattern, client.log, re.MULTILINE)


def test_nobody_at_any_of_the_hosts(tunnel: Tunnel) -> None:
    client = robot(tunnel, "--lport=9", "--once")
    assert client.wait() == 69
    where = [f"{host}:{tunnel.port}" for host in HOSTS]
    assert any(
        f"shadow-client: cannot connect to {', '.join(line)}: Connection refused" in client.log
        for line in (where, where[::-1])
    )
