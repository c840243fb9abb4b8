"""The robot's local services: connects visitors to them."""

import asyncio
import errno
import functools
import logging
import socket
from collections.abc import Callable, Mapping

from .. import events
from ..errors import LocalError, PeerError, Unreachable
from ..net.address import Endpoint, dial
from ..net.liveness import keep_probing
from ..net.resolving import resolve
from ..text import many, shorten
from ..transport.channel import Channel
from ..wire.frames import Failed, Frame, Start, Started
from .sparing import Sparing
from .streams import Streams

CONNECT_TIMEOUT = (
    5.0  # seconds a local service has to accept; half of the server's --start-timeout by default
)
SERVICE_KEEPALIVE = 30.0  # seconds between probes of an idle connection to a service on another host
STREAMS_MAX = 4096  # streams at once; a robot does not accept more, whatever its server asks for

# Lines of the log: the server decides how often visitors come, but not how much we write to our disk.
_FAILURES_AT_ONCE, _FAILURES_A_MINUTE = 30, 30.0

_CODES = {
    errno.ECONNREFUSED: "refused", errno.ETIMEDOUT: "timeout",
    errno.EMFILE: "limit", errno.ENFILE: "limit",
}  # fmt: skip


OnOutcome = Callable[[bool], None]
"""Called with whether a visitor was connected."""


class Services:
    """The services of one robot."""

    def __init__(self, robot: str, endpoints: Mapping[str, Endpoint], streams: Streams) -> None:
        self._robot = robot
        self._endpoints = endpoints
        self._streams = streams
        self._loop = asyncio.get_running_loop()
        self._connecting: dict[asyncio.Task[bool], Channel] = {}
        self._log = Sparing(self._loop.time, _FAILURES_AT_ONCE, _FAILURES_A_MINUTE)

    def __repr__(self) -> str:
        names = ", ".join(name or "default" for name in self._endpoints)
        return f"<Services {names}; {many(len(self._connecting), 'visitor')} being connected>"

    def connect(self, channel: Channel, start: Start, outcome: OnOutcome) -> None:
        """Connect a visitor: answer START on ``channel``, hand it to the relay, and report the outcome."""
        channel.on_frame = _ignore_frame
        channel.on_lost = _ignore_loss
        task = self._loop.create_task(self._connect(channel, start))
        self._connecting[task] = channel
        task.add_done_callback(functools.partial(self._connected, outcome))

    def _connected(self, outcome: OnOutcome, task: asyncio.Task[bool]) -> None:
        channel = self._connecting.pop(task)
        connected = False
        try:
            connected = not task.cancelled() and task.result()
        except BaseException:
            channel.abort()  # nobody else would; the server tries the next one
            raise
        finally:
            outcome(connected)

    def stop(self) -> None:
        """Stop connecting; the server offers visitors in progress another channel. Streams go on."""
        for task, channel in self._connecting.items():
            task.cancel()
            channel.abort()

    async def _connect(self, channel: Channel, start: Start) -> bool:
        endpoint = self._endpoints.get(start.service)
        if endpoint is None:
            self._fail(channel, start, "no-such-service", f"service {shorten(start.service)} is not offered")
            return False
        if len(self._streams) + len(self._connecting) > STREAMS_MAX:
            self._fail(channel, start, "limit", f"{STREAMS_MAX} streams are running")
            return False
        try:
            sock, _target = await dial(await resolve(endpoint, CONNECT_TIMEOUT), CONNECT_TIMEOUT)
        except Unreachable as error:
            number = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
            self._fail(channel, start, _CODES.get(number or 0, "unreachable"), str(error))
            return False
        keep_probing(sock, SERVICE_KEEPALIVE)
        if not channel.live:  # the server gave up meanwhile
            sock.close()
            return False
        return self._begin_stream(channel, sock, start)

    def _begin_stream(self, channel: Channel, sock: socket.socket, start: Start) -> bool:
        channel.send(Started())
        try:
            link = channel.release()
        except PeerError:
            sock.close()
            return False
        try:
            self._streams.begin(sock, link, start)
        except LocalError as error:
            sock.close()
            self._log_failure(start, str(error))
            return False
        return True

    def _fail(self, channel: Channel, start: Start, code: str, text: str) -> None:
        self._log_failure(start, text)
        channel.send(Failed(code, text[:512]))
        channel.close()

    def _log_failure(self, start: Start, text: str) -> None:
        event = events.ServiceFailed(
            robot=self._robot, service=start.service[:64] or "default", stream=start.stream[:64]
        )
        text = f"robot {self._robot}: visitor not connected: {text}"
        self._log.log(event, logging.WARNING, text)


def _ignore_frame(frame: Frame) -> None:
    """Nothing may come between START and STARTED; the conversation has already refused it."""


def _ignore_loss(error: PeerError | None) -> None:
    """The server gave up while we were connecting; ``Channel.live`` says so."""
