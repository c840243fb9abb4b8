"""Where robots come in: from accept to HELLO, fairly, and never too many at once.

A handshake costs a signature, and a connection that says nothing holds its place for seconds. So places are
limited, and shared among the addresses that connections come from: who opens a thousand of them waits for
his own, not others for him.
"""

import asyncio
import contextlib
import enum
import functools
import logging
import select
import socket
from collections.abc import Callable, Sequence

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
from ..events import Event
from ..net.acceptor import Acceptor
from ..net.address import describe, source_of
from ..net.liveness import watch_for_death
from ..transport import context, handshake
from ..transport.channel import Channel
from ..transport.hello import _first_frame
from ..wire.frames import Hello
from ..wire.timing import Pace
from .descriptors import Descriptors
from .fairness import Turns

SHARES = 4  # addresses that together may take all places
_WAITING_MAX = 4096  # connections that wait for a place
_REPORT_PAUSE = 60.0  # seconds between two reports that somebody crowds the place


class Failure(enum.StrEnum):
    """Why a connection did not pass, in a word that can be counted."""

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

Greeted = Callable[[Channel, Hello, str], None]
"""Called with a connection that has said who it is, its HELLO, and where it comes from."""


class Handshakes:
    """Accepts connections and finds out who they are.

    Attributes:
        passed: connections that have said who they are.
        dropped: connections for which there was no room to wait.
    """

    def __init__(
        self,
        config: ServerConfig,
        settings: Callable[[], context.Settings],
        on_greeted: Greeted,
        descriptors: Descriptors,
    ) -> None:
        """``settings`` is asked for each connection: a reload may have changed them."""
        self._config = config
        self._descriptors = descriptors
        self._settings = settings
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
            events.log(Event.CROWDED, logging.WARNING, text, peer=peer, dropped=self._unreported)
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
        """Everything up to the first frame, within one deadline."""
        peer = "somebody"
        try:
            peer = describe(sock.getpeername())
            watch_for_death(sock, self._config.keepalive)
            async with asyncio.timeout(self._config.handshake_timeout):
                if not await _says_something(sock):
                    self._left_without_a_word(sock, peer)
                    return
                link = await handshake.handshake(sock, self._settings())
                channel, hello = await _first_frame(link)
        except TimeoutError:
            sock.close()
            self._failed(peer, f"no HELLO within {self._config.handshake_timeout:g} s", Failure.TIMEOUT)
        except ShadowError as error:
            sock.close()
            self._failed(peer, str(error), _FAILURES.get(type(error), Failure.LOST))
        except OSError as error:
            sock.close()
            self._failed(peer, reason_of(error), Failure.LOST)
        except BaseException:
            sock.close()
            raise
        else:
            if channel.live:
                self.passed += 1
                self._on_greeted(channel, hello, peer)
            else:  # it died, or misbehaved, between its HELLO and now
                self._failed(peer, "the connection broke right after HELLO", Failure.LOST)

    def _left_without_a_word(self, sock: socket.socket, peer: str) -> None:
        """A check whether the port is open, and mostly no more: it is counted, and not in the log."""
        sock.close()
        text = f"{peer} has left without a word"
        cause = Failure.SILENT.value
        events.log(Event.HANDSHAKE_FAILED, logging.DEBUG, text, peer=peer, cause=cause)

    def _failed(self, peer: str, why: str, cause: Failure) -> None:
        text = f"no handshake with {peer}: {why}"
        events.log(Event.HANDSHAKE_FAILED, logging.WARNING, text, peer=peer, cause=cause.value)


async def _says_something(sock: socket.socket) -> bool:
    """Wait for the first byte, and leave it there; False if the peer has left before.

    Raises:
        PeerError: it has said something, and left while it waited for its turn.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            if not sock.recv(1, socket.MSG_PEEK):
                return False
        except BlockingIOError:
            readable = loop.create_future()
            loop.add_reader(sock, _fulfil, readable)
            try:
                await readable
            finally:
                loop.remove_reader(sock)
        except OSError:
            return False
        else:
            poll = select.poll()
            poll.register(sock, select.POLLRDHUP)
            if poll.poll(0):  # a handshake that nobody waits for any more would cost as much as another
                raise PeerError("it hung up before its turn came")
            return True


def _fulfil(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
