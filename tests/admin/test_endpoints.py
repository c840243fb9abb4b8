"""Sockets that systemd passes besides the robots' port, and libraries that are missing."""

import asyncio
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from shadow.admin.endpoints import AdminEndpoints
from shadow.daemon.config import parse_server
from shadow.errors import ConfigError
from shadow.relay.durable import DurableStreams
from shadow.relay.pool import Relay
from shadow.server import handover
from shadow.server.server import Server
from shadow.systemd.fdstore import Store
from tests.support import Tunnel, echo, serving
from tests.support.call import INTERFACE, Call


def test_both_doors_and_the_port_from_systemd(tunnel: Tunnel) -> None:
    """Nothing is mixed up: by their names each socket gets to its door."""
    server = tunnel.start_server_with_api()
    with Call(tunnel.ldir / INTERFACE) as call:
        assert call.get("GetStatus")["robots"] == 0
    assert "cannot go on" not in server.log


def test_no_library_for_metrics(tunnel: Tunnel, tmp_path: Path) -> None:
    (tmp_path / "prometheus_client.py").write_text("raise ImportError")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        environment = {"PYTHONPATH": str(tmp_path)}
        server = tunnel.daemon(tunnel.server_arguments(), environment, ("shadow-metrics", listening))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/metrics"
    server.wait_for_log(
        "WARNING: nobody can scrape this server: the Python library prometheus_client is missing"
    )
    server.wait_for_log("accepting robots")
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(url, timeout=30)
    with serving(echo) as service:  # all else works
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")


def test_a_door_that_does_not_listen(tunnel: Tunnel) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server = tunnel.daemon(tunnel.server_arguments(), passed=("shadow-api", theirs))
    assert server.wait() == 78
    assert "socket 'shadow-api' from systemd does not listen" in server.log


@pytest.mark.parametrize("name", ["shadow-api", "shadow-metrics", "shadow-health"])
def test_a_door_of_no_use_costs_no_robot_its_session(
    tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A drop-in is wrong: what the daemon before us has left waits for one that can start."""
    config = parse_server(tunnel.server_arguments()[1:], {})
    taken_up: list[str] = []
    monkeypatch.setattr(handover, "resume", lambda *_: taken_up.append("sessions"))
    monkeypatch.setattr(DurableStreams, "resume", lambda *_: taken_up.append("streams"))

    async def body() -> None:
        ours, theirs = socket.socketpair()
        store = Store()
        store._passed = [(theirs.detach(), name)]
        relay = Relay()
        try:
            server = Server(config, DurableStreams(relay, store), [AdminEndpoints()])
            with pytest.raises(ConfigError, match=f"socket '{name}' from systemd does not listen"):
                await server.start()
            await server.stop()
        finally:
            relay.stop()
            ours.close()

    asyncio.run(body())
    assert taken_up == []
