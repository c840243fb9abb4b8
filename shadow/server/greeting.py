"""One connection, from its first byte to HELLO: the deadline, and what we log if it fails."""

import asyncio
import select
import socket
from typing import Protocol

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
from ..net.address import true_address
from ..net.liveness import watch_for_death
from ..transport import handshake
from ..transport.channel import Channel
from ..transport.context import Settings
from ..transport.hello import hear_hello
from ..wire.conversation import Party
from ..wire.frames import Hello
from ..wire.proxy_protocol import begins_header
from .newcomer import Failure, LeftWithoutAWord, Newcomer, wait_for_a_word

_FAILURES: dict[type[ShadowError], Failure] = {
    HandshakeError: Failure.TLS, CertificateRefused: Failure.OURS, IdentityError: Failure.IDENTITY,
    FrameError: Failure.PROTOCOL,
}  # fmt: skip


class Host(Protocol):
    """Whom those who have connected want to reach.

    Attributes:
        us: who we are to them.
    """

    us: Party

    @property
    def settings(self) -> Settings:
        """How to do handshakes, at present."""


class Greeter:
    """Finds out who has connected."""

    def __init__(self, config: ServerConfig, host: Host) -> None:
        self._interval = config.keepalive
        self._deadline = config.handshake_timeout
        self._host = host

    async def greet(self, newcomer: Newcomer) -> tuple[Channel, Hello, str] | None:
        """Do everything up to the first frame.

        Returns:
            The connection, its HELLO, and where it comes from, for humans; None if it fails: then it is
            closed, and the log says why.
        """
        sock, cause = newcomer.sock, Failure.LOST
        try:
            watch_for_death(sock, self._interval)
            async with asyncio.timeout(self._deadline - newcomer.spent):
                channel, hello = await self._hear(sock)
            if channel.live:
                return channel, hello, newcomer.peer
            why = "the connection broke right after HELLO"  # or misbehaved
        except TimeoutError:
            why, cause = f"no HELLO within {self._deadline:g} s", Failure.TIMEOUT
        except LeftWithoutAWord as error:
            why, cause = str(error), Failure.SILENT
        except handshake.NotTls as error:
            why, cause = _what_instead(error, newcomer)
        except ShadowError as error:
            why, cause = str(error), _FAILURES.get(type(error), Failure.LOST)
        except OSError as error:
            why = reason_of(error)
        except BaseException:
            sock.close()
            raise
        newcomer.fail(why, cause)
        return None

    async def _hear(self, sock: socket.socket) -> tuple[Channel, Hello]:
        await wait_for_a_word(sock)
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        if poll.poll(0):  # a handshake that nobody waits for any more would cost as much as any other
            raise PeerError("it hung up before its turn came")
        return await hear_hello(await handshake.handshake(sock, self._host.settings), self._host.us)


def _what_instead(error: handshake.NotTls, newcomer: Newcomer) -> tuple[str, Failure]:
    """What somebody speaks who does not speak TLS."""
    if not begins_header(error.start):
        return str(error), Failure.TLS
    if newcomer.proxy:
        return f"{newcomer.proxy} sent a PROXY header in front of another one", Failure.PROXY
    address = true_address(newcomer.host)
    why = f"it sent a PROXY header, and --proxy-protocol does not name its address; add {address} if it is"
    return f"{why} a load balancer of yours", Failure.PROXY
