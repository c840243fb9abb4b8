"""Where robots come in: whose turn it is to say who he is, fairly, and never too many at once.

A handshake costs a signature, and a connection that says nothing holds its place for seconds. So places are
limited, and shared among the addresses that connections come from: who opens a thousand of them waits for
his own, not others for him.
"""

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Callable, Sequence

from .. import events
from ..daemon.config import ServerConfig
from ..net.acceptor import Acceptor
from ..net.address import describe, source_of
from ..transport.channel import Channel
from ..wire.frames import Hello
from ..wire.timing import Pace
from .descriptors import Descriptors
from .fairness import Turns
from .greeting import Greeter
from .trust import Trust

SHARES = 4  # addresses that together may take all places
_WAITING_MAX = 4096  # connections that wait for a place
_REPORT_PAUSE = 60.0  # seconds between two reports that somebody crowds the place


OnGreeted = Callable[[Channel, Hello, str], None]
"""Called with a connection that has said who it is, its HELLO, and where it comes from."""


class Handshakes:
    """Accepts connections and finds out who they are.

    Attributes:
        passed: connections that have said who they are.
        dropped: connections for which there was no room to wait.
    """

    def __init__(
        self, config: ServerConfig, trust: Trust, on_greeted: OnGreeted, descriptors: Descriptors
    ) -> None:
        self._descriptors = descriptors
        self._greeter = Greeter(config, trust)
        self._on_greeted = on_greeted
        self._loop = asyncio.get_running_loop()
        # Whoever has not said who he is must not take the descriptors of those who have.
        most = max(1, descriptors.limit // SHARES)
        places = min(config.max_handshakes, most)
        self._turns: Turns[socket.socket] = Turns(places, max(1, places // SHARES), min(_WAITING_MAX, most))
        self._pace = Pace(config.max_handshake_rate)
        self._timer: asyncio.Handle | None = None  # set while the next one may not begin yet
        self._tasks: set[asyncio.Task[None]] = set()
        self._acceptors: list[Acceptor] = []
        self._reported = -_REPORT_PAUSE
        self._unreported = 0
        self.passed = 0
        self.dropped = 0

    @property
    def running(self) -> int:
        """Connections that are saying who they are."""
        return self._turns.running

    @property
    def waiting(self) -> int:
        """Connections that wait for their turn to do so."""
        return self._turns.waiting

    def open(self, sockets: Sequence[socket.socket]) -> None:
        """Accept from now on."""
        ran_out, for_robot = self._descriptors.ran_out, self._descriptors.for_robot
        self._acceptors = [Acceptor(sock, self._accepted, ran_out, for_robot) for sock in sockets]

    async def close(self) -> None:
        """Accept nobody any more, and send away who has not been greeted."""
        for acceptor in self._acceptors:
            acceptor.close()
        if self._timer is not None:
            self._timer.cancel()
        for sock in self._turns.leave():
            sock.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, sock: socket.socket) -> None:
        try:
            source = source_of(sock.getpeername()[0])
        except OSError:  # it has left already
            sock.close()
            return
        loser = self._turns.came(source, sock)
        if loser is not None:
            self._drop(loser)
        self._serve()

    def _drop(self, sock: socket.socket) -> None:
        self.dropped += 1
        self._unreported += 1
        now = self._loop.time()
        if now - self._reported >= _REPORT_PAUSE:
            peer = "somebody"
            with contextlib.suppress(OSError):
                peer = describe(sock.getpeername())
            text = f"too many connections wait to say who they are: {self._unreported} sent away, as {peer}"
            events.log(events.Crowded(peer=peer, dropped=self._unreported), logging.WARNING, text)
            self._reported, self._unreported = now, 0
        sock.close()

    def _serve(self) -> None:
        """Begin with one, if that may be; with the next when the loop has come around.

        All at once they would share the CPU, and on a slow one come to their deadlines together, none done.
        So a new one begins when all that run have had their turn: on a busy machine few at a time.
        """
        if self._timer is not None or not self._turns.may_take:
            return
        delay = self._pace.delay(self._loop.time())
        if delay:
            self._timer = self._loop.call_later(delay, self._serve_again)
            return
        source, sock = self._turns.take()
        task = self._loop.create_task(self._greet(sock))
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._done, source))
        self._timer = self._loop.call_soon(self._serve_again)

    def _serve_again(self) -> None:
        self._timer = None
        self._serve()

    def _done(self, source: str, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._turns.done(source)
        self._serve()

    async def _greet(self, sock: socket.socket) -> None:
        greeted = await self._greeter.greet(sock)
        if greeted is not None:
            self.passed += 1
            self._on_greeted(*greeted)
