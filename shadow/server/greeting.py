"""One connection, from its first byte to HELLO: the deadline, and what we log if it fails."""

import asyncio
import enum
import logging
import select
import socket

from .. import events
from ..daemon.config import ServerConfig
from ..errors import (
    CertificateRefused,
    FrameError,
    HandshakeError,
    IdentityError,
    PeerError,
    ShadowError,
    reason_of,
)
from ..net.address import describe
from ..net.liveness import watch_for_death
from ..transport import handshake
from ..transport.channel import Channel
from ..transport.hello import hear_hello
from ..wire.frames import Hello
from .trust import Trust


class Failure(enum.StrEnum):
    """Why a connection failed, in a word that can be counted."""

    TIMEOUT = "timeout"
    TLS = "tls"
    OURS = "our-certificate"
    IDENTITY = "identity"
    PROTOCOL = "protocol"
    LOST = "lost"
    SILENT = "silent"


_FAILURES: dict[type[ShadowError], Failure] = {
    HandshakeError: Failure.TLS, CertificateRefused: Failure.OURS, IdentityError: Failure.IDENTITY,
    FrameError: Failure.PROTOCOL,
}  # fmt: skip


class Greeter:
    """Finds out who has connected."""

    def __init__(self, config: ServerConfig, trust: Trust) -> None:
        self._interval = config.keepalive
        self._deadline = config.handshake_timeout
        self._trust = trust

    async def greet(self, sock: socket.socket) -> tuple[Channel, Hello, str] | None:
        """Do everything up to the first frame.

        Returns:
            The connection, its HELLO, and where it comes from, for humans; None if it fails: then it is
            closed, and the log says why.
        """
        peer, cause = "somebody", Failure.LOST
        try:
            peer = describe(sock.getpeername())
            watch_for_death(sock, self._interval)
            async with asyncio.timeout(self._deadline):
                channel, hello = await self._hear(sock)
            if channel.live:
                return channel, hello, peer
            why = "the connection broke right after HELLO"  # or misbehaved
        except TimeoutError:
            why, cause = f"no HELLO within {self._deadline:g} s", Failure.TIMEOUT
        except _LeftWithoutAWord:
            why, cause = "it has left without a word", Failure.SILENT
        except ShadowError as error:
            why, cause = str(error), _FAILURES.get(type(error), Failure.LOST)
        except OSError as error:
            why = reason_of(error)
        except BaseException:
            sock.close()
            raise
        sock.close()
        _log_failure(peer, why, cause)
        return None

    async def _hear(self, sock: socket.socket) -> tuple[Channel, Hello]:
        await _wait_for_a_word(sock)
        return await hear_hello(await handshake.handshake(sock, self._trust.settings))


def _log_failure(peer: str, why: str, cause: Failure) -> None:
    # Leaving without a word is usually a mere check whether the port is open: not worth a line in the log.
    level = logging.DEBUG if cause is Failure.SILENT else logging.WARNING
    text = f"no handshake with {peer}: {why}"
    events.log(events.HandshakeFailed(peer=peer, cause=cause.value), level, text)


class _LeftWithoutAWord(PeerError):
    """The peer left before its first byte."""


async def _wait_for_a_word(sock: socket.socket) -> None:
    """Wait for the first byte, and leave it there.

    Raises:
        PeerError: the peer has left, without a word or while it waited for its turn.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            if not sock.recv(1, socket.MSG_PEEK):
                raise _LeftWithoutAWord
        except BlockingIOError:
            readable = loop.create_future()
            loop.add_reader(sock, _fulfil, readable)
            try:
                await readable
            finally:
                loop.remove_reader(sock)
        except OSError as error:
            raise _LeftWithoutAWord from error
        else:
            poll = select.poll()
            poll.register(sock, select.POLLRDHUP)
            if poll.poll(0):  # a handshake that nobody waits for any more would cost as much as any other
                raise PeerError("it hung up before its turn came")
            return


def _fulfil(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
