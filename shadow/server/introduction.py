"""Connections from load balancers: each first says on whose behalf it is, in a header of the PROXY protocol.

Nobody else is believed. Until the header has come, a connection has one of a few places, and no turn at the
handshake: whose turn it takes is what the header says. A load balancer sends it at once, so one that
keeps its place longer than others has nothing to say, and gives way to the next.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence

from ..errors import reason_of
from ..net.networks import Network, network_of
from ..net.tcp import peek
from ..wire.proxy_protocol import HEADER_MAX, HeaderError, NoHeader, header_size, parse_header
from .fairness import Places
from .newcomer import Failure, LeftWithoutAWord, Newcomer, wait_for_a_word

OnNewcomer = Callable[[Newcomer], None]

PLACES_MAX = 1024


class Introductions:
    """Reads the headers."""

    def __init__(
        self, networks: Sequence[Network], deadline: float, places: int, on_introduced: OnNewcomer
    ) -> None:
        """Begin without a connection.

        Args:
            networks: where load balancers are.
            deadline: seconds that a header may take.
            places: how many connections may be without one.
            on_introduced: gets each connection that has told where it comes from.
        """
        self._networks = networks
        self._deadline = deadline
        self._on_introduced = on_introduced
        self._loop = asyncio.get_running_loop()
        self._places: Places[asyncio.Task[None]] = Places(places)
        self._newcomers: dict[asyncio.Task[None], Newcomer] = {}

    def __len__(self) -> int:
        """How many connections have not been introduced yet."""
        return len(self._newcomers)

    def needs(self, newcomer: Newcomer) -> bool:
        """Whether a connection is a load balancer's."""
        return network_of(newcomer.host, self._networks) is not None

    def came(self, newcomer: Newcomer) -> Newcomer | None:
        """A connection of a load balancer came; return the one that is dropped for it, if one is."""
        task = self._loop.create_task(self._introduce(newcomer, self._loop.time()))
        self._newcomers[task] = newcomer
        task.add_done_callback(self._done)
        loser = self._places.came(newcomer.source, task)
        if loser is None or not loser.cancel():  # it may just be done
            return None
        return self._newcomers[loser]

    async def close(self) -> None:
        """Drop all connections that have not been introduced."""
        tasks = list(self._newcomers)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        newcomer = self._newcomers.pop(task)
        self._places.left(newcomer.source, task)
        if task.cancelled():  # perhaps before it had begun
            newcomer.sock.close()

    async def _introduce(self, newcomer: Newcomer, since: float) -> None:
        try:
            async with asyncio.timeout_at(since + self._deadline):
                origin = parse_header(await read_header(newcomer.sock))
        except LeftWithoutAWord as error:
            newcomer.fail(str(error), Failure.SILENT)
        except TimeoutError:
            why = f"no PROXY header within {self._deadline:g} s{self._hint(newcomer)}"
            newcomer.fail(why, Failure.TIMEOUT)
        except NoHeader as error:
            newcomer.fail(f"{error}{self._hint(newcomer)}", Failure.PROXY)
        except HeaderError as error:
            newcomer.fail(str(error), Failure.PROXY)
        except OSError as error:
            newcomer.fail(reason_of(error), Failure.LOST)
        except BaseException:
            newcomer.sock.close()
            raise
        else:
            if origin is None:
                newcomer.fail("a load balancer only looked whether we are here", Failure.SILENT)
            else:
                spent = self._loop.time() - since
                self._on_introduced(newcomer.introduced(origin.host, origin.port, spent))

    def _hint(self, newcomer: Newcomer) -> str:
        network = network_of(newcomer.host, self._networks)
        return f" (its address is in {network}, from where --proxy-protocol requires one)"


async def read_header(sock: socket.socket) -> bytes:
    """Read a header, and no byte of what follows.

    Raises:
        LeftWithoutAWord: the peer did.
        HeaderError: it sends something else.
        OSError: the connection broke.
    """
    await wait_for_a_word(sock)
    header = b""
    size: int | None = None
    while size is None or len(header) < size:
        part = await peek(sock, HEADER_MAX - len(header))
        if not part:
            raise HeaderError("it hung up within its PROXY header")
        size = header_size(header + part)
        header += sock.recv(len(part) if size is None else min(len(part), size - len(header)))
    return header
