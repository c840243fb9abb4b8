"""The ports: systemd's, our own, or none; and what becomes of one that nobody has a use for."""

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from bench.processes import free_port
from shadow.daemon.membership import PEER_SOCKET
from shadow.errors import ConfigError, LocalError, UsageError
from shadow.server import listening
from shadow.systemd import fdstore
from tests.support import Daemon, Tunnel
from tests.support.store import Store


@pytest.fixture
def server(tunnel: Tunnel) -> Daemon:
    return tunnel.start_server()


def test_a_port_that_is_taken(tunnel: Tunnel, server: Daemon) -> None:
    second = tunnel.daemon(tunnel.server_arguments())
    assert second.wait() == 71
    complaint = "Address already in use; is another server running?"
    assert f"shadow-server: cannot listen on port {tunnel.port}: {complaint}\n" in second.log


def test_no_port_at_all(tunnel: Tunnel) -> None:
    arguments = [word for word in tunnel.server_arguments() if not word.startswith("--lport")]
    daemon = tunnel.daemon(arguments)
    assert daemon.wait() == 2
    assert daemon.log.endswith("shadow-server: --lport is missing (or SHADOW_LPORT in the environment)\n")


def test_neither_systemd_nor_we_have_one() -> None:
    """What the command line cannot know: systemd seems to pass a socket, and it is another one's."""
    config: Any = SimpleNamespace(lport=None, families=(True, True))
    store: Any = Store()
    with pytest.raises(UsageError, match="no socket from systemd and no --lport"):
        listening.listen(config, store)


def test_addresses_are_told_as_they_are_typed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = one.getsockname()[1], other.getsockname()[1]
        assert listening.where([one, other]) == "127.0.0.1:{}, 127.0.0.1:{}".format(*ports)


# The same for other servers of the fleet.

BOTH = True, True


def passing(sock: socket.socket, name: str = PEER_SOCKET) -> fdstore.Store:
    store = fdstore.Store()
    store._passed = [(sock.detach(), name)]
    return store


def test_what_systemd_has_opened() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    (sock,) = listening.listen_at(PEER_SOCKET, port, BOTH, passing(taken))
    with sock:
        assert sock.getsockname()[1] == port
        assert not sock.getblocking()


def test_no_socket_of_another_unit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        store, port = passing(other.dup(), "shadow-health"), free_port()
        (sock,) = listening.listen_at(PEER_SOCKET, port, BOTH, store)
        with sock:
            assert sock.getsockname()[1] == port
        assert store.close_rest() == ["shadow-health"]


@pytest.mark.parametrize(
    ("families", "hosts"),
    [((True, True), {"127.0.0.1", "::1"}), ((True, False), {"127.0.0.1"}), ((False, True), {"::1"})],
)
def test_our_own(families: tuple[bool, bool], hosts: set[str]) -> None:
    port = free_port()
    sockets = listening.listen_at(PEER_SOCKET, port, families, fdstore.Store())

    def answers(host: str) -> bool:
        try:
            socket.create_connection((host, port), 30).close()
        except ConnectionRefusedError:
            return False
        return True

    assert {host for host in ("127.0.0.1", "::1") if answers(host)} == hosts
    for sock in sockets:
        sock.close()


def test_one_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(LocalError, match=f"cannot listen on port {port}: Address already in use"):
            listening.listen_at(PEER_SOCKET, port, BOTH, fdstore.Store())


def test_one_that_does_not_listen() -> None:
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(ConfigError, match="socket 'shadow-peer' from systemd does not listen"):
        listening.listen_at(PEER_SOCKET, free_port(), BOTH, passing(theirs))


def test_a_server_that_is_alone_says_that_it_has_no_use_for_it(tunnel: Tunnel) -> None:
    """Its unit was enabled, and the server has no --fleet: one line, and all else goes on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = tunnel.daemon(tunnel.server_arguments(), passed=("shadow-peer", listening))
    server.wait_for_log("accepting robots")
    server.wait_for_log(
        "WARNING: dropped 1 descriptor of no use to this version with these settings: shadow-peer"
    )
    tunnel.start_client("--lport=22")
    assert server.log.count("shadow-peer") == 1
