"""The port that the fleet's other servers connect to: sockets that systemd passes, or our own."""

import socket

from ..daemon.membership import PEER_SOCKET
from ..net.tcp import listen_tcp
from ..systemd import fdstore
from ..systemd.fdstore import Store


def listen(port: int, families: tuple[bool, bool], store: Store) -> list[socket.socket]:
    """Listening sockets; they are the caller's.

    Args:
        port: where to listen, on all addresses, if systemd has passed no socket.
        families: whether to do so on IPv4, and on IPv6.
        store: what systemd has passed.

    Raises:
        ConfigError: what systemd passed is not a listening socket.
        LocalError: the port is taken.
    """
    if sockets := fdstore.listening_sockets(PEER_SOCKET, store):
        return sockets
    ipv4, ipv6 = families
    return listen_tcp(port, ipv4=ipv4, ipv6=ipv6)
