"""The port for the fleet's other servers: who opens it, and what becomes of it if nobody has a use for it."""

import socket

import pytest

from bench.processes import free_port
from shadow.errors import ConfigError, LocalError
from shadow.fleet import peer_port
from shadow.systemd.fdstore import Store
from tests.support import Tunnel

BOTH = True, True


def passing(sock: socket.socket, name: str = "shadow-peer") -> Store:
    store = Store()
    store._passed = [(sock.detach(), name)]
    return store


def test_what_systemd_has_opened() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    (sock,) = peer_port.listen(port, BOTH, passing(taken))
    with sock:
        assert sock.getsockname()[1] == port
        assert not sock.getblocking()


def test_no_socket_of_another_unit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        store, port = passing(other.dup(), "shadow-health"), free_port()
        (sock,) = peer_port.listen(port, BOTH, store)
        with sock:
            assert sock.getsockname()[1] == port
        assert store.close_rest() == ["shadow-health"]


@pytest.mark.parametrize(
    ("families", "hosts"),
    [((True, True), {"127.0.0.1", "::1"}), ((True, False), {"127.0.0.1"}), ((False, True), {"::1"})],
)
def test_our_own(families: tuple[bool, bool], hosts: set[str]) -> None:
    port = free_port()
    sockets = peer_port.listen(port, families, Store())

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
            peer_port.listen(port, BOTH, Store())


def test_one_that_does_not_listen() -> None:
    ours, theirs = socket.socketpair()
    with ours, pytest.raises(ConfigError, match="socket 'shadow-peer' from systemd does not listen"):
        peer_port.listen(free_port(), BOTH, passing(theirs))


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
