"""The two ends of a stream, as one daemon has them.

The *link* leads through the tunnel: to the robot, to its server, or to the server that the robot is connected
to. The *near* end is the other one. Mostly that is a *plain* socket, the visitor's or the service's; where a
visitor is at another server, it is the link from there.
"""

import enum
import socket

from ..net.lines import Line
from ..net.tcp import reset
from ..transport.link import Link


class Side(enum.StrEnum):
    """Which of the two."""

    NEAR = "near"
    LINK = "link"


class Plain:
    """An end without TLS: the visitor's unix socket, or the service's TCP socket.

    Attributes:
        sock: the socket, non-blocking.
        in_kernel: as a link's: what comes and goes here never needs OpenSSL.
        line: as a link's: nobody else knows of this connection.
    """

    __slots__ = ("sock",)
    in_kernel = True
    line: Line | None = None

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def abort(self) -> None:
        """Cut off the connection, so that the peer cannot take it for an orderly end, if that is possible.

        Unix sockets have no reset; the peer gets ECONNRESET if we leave bytes of its own unread
        (net/unix/af_unix.c, unix_release_sock), else end of file and EPIPE.
        """
        reset(self.sock)


End = Plain | Link
