"""A connection whose peer has not said who it is, and what we log if it never does."""

import dataclasses
import enum
import logging
import socket
from dataclasses import dataclass

from .. import events
from ..errors import PeerError
from ..net.address import describe, source_of
from ..net.tcp import peek


class Failure(enum.StrEnum):
    """Why a connection failed, in a word that can be counted."""

    TIMEOUT = "timeout"
    TLS = "tls"
    OURS = "our-certificate"
    IDENTITY = "identity"
    PROTOCOL = "protocol"
    PROXY = "proxy"
    LOST = "lost"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Newcomer:
    """Somebody who has connected.

    Attributes:
        sock: the connection.
        host: the address it comes from.
        port: the port there.
        proxy: the load balancer that told us so, for humans; empty if nobody is between us.
        spent: seconds that it took to say where it comes from.
    """

    sock: socket.socket
    host: str
    port: int
    proxy: str = ""
    spent: float = 0.0

    @property
    def peer(self) -> str:
        """Where it comes from, for humans."""
        return describe((self.host, self.port))

    @property
    def source(self) -> str:
        """Whose share of the places it takes."""
        return source_of(self.host)

    def introduced(self, host: str, port: int, spent: float) -> "Newcomer":
        """The same connection, of which a load balancer has told after ``spent`` seconds whose it is."""
        return dataclasses.replace(self, host=host, port=port, proxy=self.peer, spent=spent)

    def fail(self, why: str, cause: Failure) -> None:
        """Close the connection, and log why."""
        self.sock.close()
        # Leaving without a word is usually a mere check whether the port is open: not worth a line.
        level = logging.DEBUG if cause is Failure.SILENT else logging.WARNING
        text = f"no handshake with {self.peer}: {why}"
        events.log(events.HandshakeFailed(peer=self.peer, cause=cause.value), level, text)


def newcomer_on(sock: socket.socket) -> Newcomer:
    """Who has connected, as far as the socket knows.

    Raises:
        OSError: it has left.
    """
    host, port, *_ = sock.getpeername()
    return Newcomer(sock, host, port)


class LeftWithoutAWord(PeerError):
    """The peer left before its first byte."""

    def __init__(self) -> None:
        super().__init__("it has left without a word")


async def wait_for_a_word(sock: socket.socket) -> None:
    """Wait for the first byte, and leave it there.

    Raises:
        LeftWithoutAWord: there will be none.
    """
    try:
        if await peek(sock, 1):
            return
    except OSError as error:
        raise LeftWithoutAWord from error
    raise LeftWithoutAWord
