"""TCP sockets, as against others; see tcp(7)."""

import contextlib
import fcntl
import socket
import struct
import termios

_LINGER_RESET = struct.pack("ii", 1, 0)  # l_onoff, l_linger: close() sends RST (socket(7), SO_LINGER)
_BYTES_ACKED = struct.Struct("=120xQ")
_INT = struct.Struct("i")
_FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6})


def is_tcp(sock: socket.socket) -> bool:
    """Whether it is a TCP socket, and not a unix socket say."""
    return sock.family in _FAMILIES and sock.type == socket.SOCK_STREAM


def reset(sock: socket.socket) -> None:
    """Close a TCP socket with RST: what is queued is lost, and the peer knows it was."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    sock.close()


def unacknowledged(sock: socket.socket) -> int:
    """Bytes in a TCP socket's send queue, under way or waiting (tcp(7), SIOCOUTQ)."""
    (queued,) = _INT.unpack(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(_INT.size)))
    return int(queued)


def written(sock: socket.socket) -> int:
    """Bytes ever written to a TCP socket, acknowledged or not; exact up to a constant.

    ``tcpi_bytes_acked`` (include/uapi/linux/tcp.h) and what waits or is under way (tcp(7), SIOCOUTQ).
    """
    while True:
        before = _bytes_acked(sock)
        queued = unacknowledged(sock)
        if before == _bytes_acked(sock):  # an acknowledgement in between would be counted twice
            return before + queued


def _bytes_acked(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
    return int(_BYTES_ACKED.unpack(info)[0])
