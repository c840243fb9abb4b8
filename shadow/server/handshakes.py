"""Where robots and other servers come in: whose handshake is next, fairly, and never too many at once.

A handshake costs a signature, and a silent connection holds its place for seconds. So places are limited, and
shared among the addresses that connections come from: anyone who opens a thousand connections waits for them,
and nobody else does.
"""

import asyncio
import functools
import logging
import socket
from collections.abc import Callable, Sequence

from .. import events
from ..daemon.config import ServerConfig
from ..net.acceptor import Acceptor
from ..transport.channel import Channel
from ..wire.frames import Hello
from ..wire.timing import Pace
from .descriptors import Descriptors
from .fairness import Turns
from .greeting import Greeter, Host
from .introduction import PLACES_MAX, Introductions
from .newcomer import Newcomer, newcomer_on

SHARES = 4  # this many addresses together may take all places
_WAITING_MAX = 4096  # connections that may wait for a place
_REPORT_PAUSE = 60.0  # seconds between two reports that connections were dropped


OnGreeted = Callable[[Channel, Hello, str], None]
"""Called with a connection that has said who it is, its HELLO, and where it comes from."""


class Handshakes:
    """Accepts connections and finds out who they are.

    Attributes:
        passed: connections that have said who they are.
        dropped: connections for which there was no room to wait.
    """

    def __init__(
        self, config: ServerConfig, host: Host, on_greeted: OnGreeted, descriptors: Descriptors
    ) -> None:
        self._descriptors = descriptors
        self._greeter = Greeter(config, host)
        self._on_greeted = on_greeted
        self._loop = asyncio.get_running_loop()
        # Peers that have not identified themselves must not take the descriptors of those that have.
        most = max(1, descriptors.limit // SHARES)
        places = min(config.max_handshakes, most)
        self._turns: Turns[Newcomer] = Turns(places, max(1, places // SHARES), min(_WAITING_MAX, most))
        self._introductions = Introductions(
            config.proxy_protocol, config.handshake_timeout, min(PLACES_MAX, max(1, most // 2)), self._queue
        )
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
        """Connections that are in their handshake."""
        return self._turns.running

    @property
    def waiting(self) -> int:
        """Connections that wait for their turn, or of which a load balancer has not said whose they are."""
        return self._turns.waiting + len(self._introductions)

    def open(self, sockets: Sequence[socket.socket]) -> None:
        """Accept from now on."""
        ran_out, for_robot = self._descriptors.ran_out, self._descriptors.for_robot
        self._acceptors = [Acceptor(sock, self._accepted, ran_out, for_robot) for sock in sockets]

    async def close(self) -> None:
        """Stop accepting, and drop connections that have not been greeted."""
        for acceptor in self._acceptors:
            acceptor.close()
        if self._timer is not None:
            self._timer.cancel()
        await self._introductions.close()
        for newcomer in self._turns.leave():
            newcomer.sock.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, sock: socket.socket) -> None:
        try:
            newcomer = newcomer_on(sock)
        except OSError:  # it has left already
            sock.close()
            return
        if not self._introductions.needs(newcomer):
            self._queue(newcomer)
        elif loser := self._introductions.came(newcomer):
            self._report_dropped(loser)

    def _queue(self, newcomer: Newcomer) -> None:
        loser = self._turns.came(newcomer.source, newcomer)
        if loser is not None:
            self._report_dropped(loser)
            loser.sock.close()
        self._serve()

    def _report_dropped(self, newcomer: Newcomer) -> None:
        self.dropped += 1
        self._unreported += 1
        now = self._loop.time()
        if now - self._reported >= _REPORT_PAUSE:
            peer = newcomer.peer
            text = f"handshake queue full: connections dropped: {self._unreported}, e.g. from {peer}"
            events.log(events.Crowded(peer=peer, dropped=self._unreported), logging.WARNING, text)
            self._reported, self._unreported = now, 0

    def _serve(self) -> None:
        """Begin one handshake, if possible, and the next one after an iteration of the event loop.

        All at once they would share the CPU, and on a slow one all reach their deadlines with none done. So a
        new one begins when all running ones have had their turn: on a busy machine only a few at a time.
        """
        if self._timer is not None or not self._turns.may_take:
            return
        delay = self._pace.delay(self._loop.time())
        if delay:
            self._timer = self._loop.call_later(delay, self._serve_again)
            return
        _source, newcomer = self._turns.take()
        task = self._loop.create_task(self._greet(newcomer))
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._done, newcomer))
        self._timer = self._loop.call_soon(self._serve_again)

    def _serve_again(self) -> None:
        self._timer = None
        self._serve()

    def _done(self, newcomer: Newcomer, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._turns.done(newcomer.source)
        if task.cancelled():  # perhaps before it had begun
            newcomer.sock.close()
        self._serve()

    async def _greet(self, newcomer: Newcomer) -> None:
        greeted = await self._greeter.greet(newcomer)
        if greeted is not None:
            self.passed += 1
            self._on_greeted(*greeted)
