"""What is specific to TCP sockets; see tcp(7)."""

import asyncio
import contextlib
import errno
import fcntl
import select
import socket
import struct
import termios

from ..errors import LocalError, reason
from .unix import BACKLOG

KEEPALIVE_MAX = 10800.0  # seconds; TCP_KEEPIDLE is at most 32767 (tcp(7))

_LINGER_RESET = struct.pack("ii", 1, 0)  # l_onoff, l_linger: close() sends RST (socket(7), SO_LINGER)
_BYTES_ACKED = struct.Struct("=120xQ")
_INT = struct.Struct("i")
_FAMILIES = frozenset({socket.AF_INET, socket.AF_INET6})


def is_tcp(sock: socket.socket) -> bool:
    """Whether it is a TCP socket, and not, say, a unix socket."""
    return sock.family in _FAMILIES and sock.type == socket.SOCK_STREAM


async def peek(sock: socket.socket, size: int) -> bytes:
    """What has come, up to ``size`` bytes of it, left in the socket; empty at the end of the stream.

    Waits for the first byte.

    Raises:
        OSError: the connection broke.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            return sock.recv(size, socket.MSG_PEEK)
        except BlockingIOError:
            readable = loop.create_future()
            loop.add_reader(sock, _fulfil, readable)
            try:
                await readable
            finally:
                loop.remove_reader(sock)


def _fulfil(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def reset(sock: socket.socket) -> None:
    """Close a TCP socket with RST: queued data is lost, and the peer knows it."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    sock.close()


def take_error(sock: socket.socket) -> int:
    """The error that waits at a socket (socket(7), SO_ERROR), or 0; the kernel forgets it then."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def unacknowledged(sock: socket.socket) -> int:
    """Bytes in a TCP socket's send queue, in flight or waiting (tcp(7), SIOCOUTQ)."""
    (queued,) = _INT.unpack(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(_INT.size)))
    return int(queued)


def written(sock: socket.socket) -> int:
    """Bytes ever written to a TCP socket, acknowledged or not; exact up to a constant.

    ``tcpi_bytes_acked`` (include/uapi/linux/tcp.h) plus what waits or is in flight (tcp(7), SIOCOUTQ).
    """
    while True:
        before = _bytes_acked(sock)
        queued = unacknowledged(sock)
        if before == _bytes_acked(sock):  # an acknowledgement in between would be counted twice
            return before + queued


def _bytes_acked(sock: socket.socket) -> int:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
    return int(_BYTES_ACKED.unpack(info)[0])


def is_writable(sock: socket.socket) -> bool:
    """Whether poll(2) reports the socket writable right now."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(0))


def is_delivered(sock: socket.socket) -> bool:
    """Whether the peer has acknowledged everything, including our FIN; that of a unix socket always has."""
    if sock.family == socket.AF_UNIX:
        return True
    return unacknowledged(sock) == 0


def shutdown_write(sock: socket.socket) -> None:
    """Send FIN. A peer that has already gone needs none."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


def listen_tcp(port: int, *, ipv4: bool, ipv6: bool) -> list[socket.socket]:
    """Listening sockets on all addresses of the chosen families; one dual-stack socket where possible.

    Raises:
        LocalError: the port is taken, or we may not use it.
    """
    try:
        if not ipv6 or (ipv4 and not socket.has_dualstack_ipv6()):
            return [_listen(socket.AF_INET, ("0.0.0.0", port), dual=False)]  # noqa: S104 - the job
        return [_listen(socket.AF_INET6, ("::", port), dual=ipv4)]
    except OSError as error:
        hint = "; is another server running?" if error.errno == errno.EADDRINUSE else ""
        raise LocalError(f"cannot listen on port {port}: {reason(error)}{hint}") from error


def _listen(family: int, address: tuple[str, int], *, dual: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        sock.bind(address)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def check_connection(sock: socket.socket, *families: int, listening: bool = False) -> None:
    """Make sure that a descriptor from a bundle is a stream socket of these families.

    It need not be connected any more: its peer may have gone meanwhile, and the next reader will find out.

    Raises:
        LocalError: it is something else.
    """
    listens = bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    if (sock.family not in families) or sock.type != socket.SOCK_STREAM or listens is not listening:
        raise LocalError("one of its sockets is of another kind")
