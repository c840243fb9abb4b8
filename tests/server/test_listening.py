"""The port: systemd's, our own, or none."""

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.errors import UsageError
from shadow.server import listening
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
    config: Any = SimpleNamespace(lport=None)
    store: Any = Store()
    with pytest.raises(UsageError, match="no socket from systemd and no --lport"):
        listening.listen(config, store)


def test_addresses_are_told_as_they_are_typed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = one.getsockname()[1], other.getsockname()[1]
        assert listening.where([one, other]) == "127.0.0.1:{}, 127.0.0.1:{}".format(*ports)
