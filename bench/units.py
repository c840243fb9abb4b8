"""Shadow as its package runs it: as units, with kernel TLS, streams kept by the service manager."""

from pathlib import Path

from .processes import BenchError, Group
from .tunnels import Keys

_ETC = Path("/etc/shadow-tunnel")
_SOCKET = Path("/run/shadow-tunnel/011.sock")
_CLIENT, _SERVER, _LISTENER = "shadow-client@011.service", "shadow-server.service", "shadow-server.socket"
_PORT = 2222  # of shadow-server.socket


def open_units(group: Group, keys: Keys, service: int) -> str:
    """Start the units of a machine where the package is installed, and nothing else uses it."""
    if not _ETC.is_dir():
        raise BenchError("the package shadow-tunnel is not installed")
    files = {"ca.crt": "ca.crt", "server.crt": "server.crt", "server.key": "server.key"}
    for name, ours in (files | {"011.crt": "client.crt", "011.key": "client.key"}).items():
        there = _ETC / name
        there.touch(0o600 if there.suffix == ".key" else 0o644)  # certificates are for the daemons to read
        there.write_bytes((keys.folder / ours).read_bytes())
    (_ETC / "client.env").write_text(
        f"SHADOW_RHOST=127.0.0.1\nSHADOW_RPORT={_PORT}\nSHADOW_LHOST=127.0.0.1\nSHADOW_LPORT={service}\n"
    )
    group.at_end("systemctl", "stop", _CLIENT, _LISTENER, _SERVER)
    group.run("systemctl", "systemctl", "start", _LISTENER, _CLIENT)
    group.wait_for(_SOCKET.exists, "the robot's socket")
    for unit in (_CLIENT, _SERVER):
        group.follow(int(group.run("systemctl", "systemctl", "show", "--value", "-p", "MainPID", unit)))
    return str(_SOCKET)
