"""What the kernel is told and asked of a TCP connection, besides its bytes.

See tcp(7), socket(7), and ``net/ipv4/tcp_timer.c`` for when a connection counts as dead.
"""

import contextlib
import socket
import struct

_LINGER_RESET = struct.pack("ii", 1, 0)  # l_onoff, l_linger: close() sends RST (socket(7), SO_LINGER)
_FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6})


def is_tcp(sock: socket.socket) -> bool:
    """Whether it is a TCP socket, and not a unix socket say."""
    return sock.family in _FAMILIES and sock.type == socket.SOCK_STREAM


def reset(sock: socket.socket) -> None:
    """Close a TCP socket with RST: what is queued is lost, and the peer knows it was."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    sock.close()
