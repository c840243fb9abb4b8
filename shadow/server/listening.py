"""The ports that robots and other servers connect to: sockets that systemd passes, or our own."""

import socket
from collections.abc import Sequence

from ..daemon.config import SERVER_SOCKET, ServerConfig
from ..errors import UsageError
from ..net.address import describe
from ..net.tcp import listen_tcp
from ..systemd import fdstore
from ..systemd.fdstore import Store


def listen(config: ServerConfig, store: Store) -> list[socket.socket]:
    """Sockets that listen for robots; they are the caller's.

    Raises:
        ConfigError: what systemd passed is not a listening socket.
        UsageError: no port, neither from systemd nor by ``--lport``.
        LocalError: the port is taken.
    """
    return listen_at(SERVER_SOCKET, config.lport, config.families, store)


def listen_at(name: str, port: int | None, families: tuple[bool, bool], store: Store) -> list[socket.socket]:
    """Listening sockets: those that systemd passes, or our own; they are the caller's.

    Args:
        name: ``FileDescriptorName=`` of the socket unit.
        port: where to listen, on all addresses, if systemd has passed no socket; None: there is no port.
        families: whether to do so on IPv4, and on IPv6.
        store: what systemd has passed.

    Raises:
        ConfigError: what systemd passed is not a listening socket.
        UsageError: it passed none, and there is no port.
        LocalError: the port is taken.
    """
    if sockets := fdstore.listening_sockets(name, store):
        return sockets
    if port is None:
        raise UsageError("no socket from systemd and no --lport: nothing to listen on")
    ipv4, ipv6 = families
    return listen_tcp(port, ipv4=ipv4, ipv6=ipv6)


def where(sockets: Sequence[socket.socket]) -> str:
    """Their addresses, for humans."""
    return ", ".join(describe(sock.getsockname()) for sock in sockets)
