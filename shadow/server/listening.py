"""The port that robots connect to: sockets that systemd passes, or our own."""

import socket
from collections.abc import Sequence

from ..daemon.config import SERVER_SOCKET, ServerConfig
from ..errors import UsageError
from ..net.address import describe
from ..net.tcp import listen_tcp
from ..systemd import fdstore
from ..systemd.fdstore import Store


def listen(config: ServerConfig, store: Store) -> list[socket.socket]:
    """Listening sockets; they are the caller's.

    Raises:
        ConfigError: what systemd passed is not a listening socket.
        UsageError: no port, neither from systemd nor by ``--lport``.
        LocalError: the port is taken.
    """
    sockets = fdstore.listening_sockets(SERVER_SOCKET, store)
    if sockets:
        return sockets
    if config.lport is None:
        raise UsageError("no socket from systemd and no --lport: nothing to listen on")
    ipv4, ipv6 = config.families
    return listen_tcp(config.lport, ipv4=ipv4, ipv6=ipv6)


def where(sockets: Sequence[socket.socket]) -> str:
    """Their addresses, for humans."""
    return ", ".join(describe(sock.getsockname()) for sock in sockets)
