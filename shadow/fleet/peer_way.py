"""From a server's address to WELCOME: how one server of the fleet dials another."""

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field

from ..errors import IdentityError, PeerError, Refused, Unreachable
from ..events import STEPS
from ..net.address import Endpoint, Target, dial, is_ip_address
from ..net.resolving import resolve
from ..transport import handshake
from ..transport.channel import Channel
from ..transport.hello import greet
from ..wire.conversation import Party
from ..wire.frames import Hello
from .peer_trust import PeerTrust

_PARTS_MAX = 4  # an address gets at least one part in this many of the time that is left
_LOOKUP_PART = 10  # the same for a lookup that we can do without: a visitor waits for the channel
_LOOKUPS_MAX = 4  # names looked up at once, no more than ``resolve`` allows


@dataclass(frozen=True, slots=True)
class Manner:
    """How to dial any of them.

    Attributes:
        hello: the HELLO to say.
        trust: who we are.
        interval: keepalive in seconds, for the kernel: nothing is said on a channel that stands by.
        timeout: seconds for everything together: name, connection, handshake, WELCOME.
        lookups: whose turn it is to have a name looked up.
    """

    hello: Hello
    trust: PeerTrust
    interval: float
    timeout: float
    lookups: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_LOOKUPS_MAX))


class Way:
    """The way to one server, through whichever of its addresses leads there.

    Attributes:
        server: its id.
        endpoint: where it says that it is.
    """

    def __init__(self, server: str, endpoint: Endpoint, manner: Manner) -> None:
        self.server = server
        self.endpoint = endpoint
        self._manner = manner
        self._known: list[Target] = []  # by the last lookup that found any
        self._loop = asyncio.get_running_loop()

    def __str__(self) -> str:
        return f"server {self.server} ({self.endpoint})"

    async def open(self) -> Channel:
        """Open a channel; it is welcomed and paused, see ``hello.greet``.

        Raises:
            Refused: the server refused us.
            PeerError: no address has led to it in time. Of several reasons it gives that of the first address
                that was reached, if any.
        """
        end = self._loop.time() + self._manner.timeout
        line = await self._addresses()
        why: PeerError | None = None
        while line:
            try:
                sock, target = await dial(line, end - self._loop.time())
            except Unreachable as error:
                raise why or error from error
            line.remove(target)
            try:
                return await self._greet(sock, self._left(end) / min(len(line) + 1, _PARTS_MAX))
            except Refused:  # by the right server, which its other addresses lead to as well
                raise
            except PeerError as error:
                STEPS.debug("%s does not lead to %s: %s", target, self, error)
                why = why or error
        assert why is not None  # noqa: S101 - there is at least one address
        raise why

    async def _addresses(self) -> list[Target]:
        """Those of the server; if the name cannot be resolved now, those that it had.

        Raises:
            Unreachable: it has never been resolved.
        """
        within = self._manner.timeout / (_LOOKUP_PART if self._known else 1)
        host = self.endpoint.host
        turn = contextlib.nullcontext() if is_ip_address(host) else self._manner.lookups
        try:
            async with asyncio.timeout(within), turn:
                self._known = await resolve(self.endpoint, within, told=True)
        except (Unreachable, TimeoutError) as error:
            if not self._known:
                text = str(error) or f"cannot resolve {host}: no turn within {within:g} s"
                raise Unreachable(text) from error
        return list(self._known)

    async def _greet(self, sock: socket.socket, within: float) -> Channel:
        end = self._loop.time() + within
        manner, trust = self._manner, self._manner.trust
        settings, interval = trust.dialling(self.server), manner.interval
        link = await handshake.secure(sock, settings, interval, self._left(end))
        if why := trust.revocation(link):
            link.close()
            raise IdentityError(why)
        channel, _welcome = await greet(link, manner.hello, self._left(end), Party.ASKING)
        return channel

    def _left(self, end: float) -> float:
        """Seconds until then, fit for the message that says that they are over; never none at all."""
        return max(0.1, round(end - self._loop.time(), 1))
