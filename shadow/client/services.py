"""The robot's local services: connects visitors to them and keeps count of the streams."""

import asyncio
import errno
import functools
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import LocalError, PeerError, Unreachable
from ..events import Event
from ..net.address import Endpoint, dial
from ..net.lines import Lines
from ..net.liveness import keep_probing
from ..net.resolving import resolve
from ..relay.durable import DurableStreams
from ..relay.ending import Ending, Words, log_end
from ..relay.flow import Pump
from ..relay.pool import OnEnd
from ..text import printable, shorten
from ..transport.channel import Channel
from ..transport.link import Link
from ..wire.frames import Failed, Frame, Start, Started
from .sparing import Sparing

CONNECT_TIMEOUT = (
    5.0  # seconds a local service has to accept; half of the server's --start-timeout by default
)
SERVICE_KEEPALIVE = 30.0  # seconds between probes of an idle connection to a service on another host
STREAMS_MAX = 4096  # streams at once; a robot does not take more from its server, whatever it asks for

# Lines of the log: how often visitors come is the server's business, how much is written to our disk is not.
_STARTS_AT_ONCE, _STARTS_A_MINUTE = 500, 600.0
_FAILURES_AT_ONCE, _FAILURES_A_MINUTE = 30, 30.0

_WORDS = Words(plain="service", link="server", target="service")
_CODES = {
    errno.ECONNREFUSED: "refused", errno.ETIMEDOUT: "timeout",
    errno.EMFILE: "limit", errno.ENFILE: "limit",
}  # fmt: skip


OnOutcome = Callable[[bool], None]
"""Called with whether a visitor was connected."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What is known of a running stream."""

    id: str
    service: str
    since: float


class Services:
    """The services of one robot.

    Attributes:
        lines: over which it is connected to the server.
    """

    def __init__(self, robot: str, endpoints: Mapping[str, Endpoint], durable: DurableStreams) -> None:
        self.lines = Lines()
        self._robot = robot
        self._endpoints = endpoints
        self._durable = durable
        self._loop = asyncio.get_running_loop()
        self._streams: dict[Pump, Stream] = {}
        self._connecting: dict[asyncio.Task[bool], Channel] = {}
        self._unlogged: set[Pump] = set()  # streams that have begun without a line, and end without one
        self._started_log = Sparing(self._loop.time, _STARTS_AT_ONCE, _STARTS_A_MINUTE)
        self._failed_log = Sparing(self._loop.time, _FAILURES_AT_ONCE, _FAILURES_A_MINUTE)

    @property
    def streams(self) -> int:
        """How many streams are running."""
        return len(self._streams)

    def connect(self, channel: Channel, start: Start, outcome: OnOutcome) -> None:
        """Connect a visitor: answer START on ``channel``, let the relay have it, and say how that went."""
        channel.on_frame = _ignore_frame
        channel.on_lost = _ignore_loss
        task = self._loop.create_task(self._connect(channel, start))
        self._connecting[task] = channel
        task.add_done_callback(functools.partial(self._connected, outcome))

    def _connected(self, outcome: OnOutcome, task: asyncio.Task[bool]) -> None:
        del self._connecting[task]
        connected = False
        try:
            connected = not task.cancelled() and task.result()
        finally:
            outcome(connected)

    def stop(self) -> None:
        """Connect nobody any more; the server offers those under way another channel. Streams go on."""
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
        stream = Stream(start.stream[:64], start.service or "default", self._loop.time())
        try:
            pump = self._durable.start(sock, link, asdict(stream), self._report_end)
        except LocalError as error:
            sock.close()
            link.abort()
            self._log_failure(start, str(error))
            return False
        pump.line = self.lines.of(link.sock)
        self._started(pump, stream)
        return True

    def _started(self, pump: Pump, stream: Stream) -> None:
        self._streams[pump] = stream
        logged = self._started_log.log(
            Event.STREAM_STARTED,
            logging.INFO,
            f"robot {self._robot}: stream {printable(stream.id)} to service {stream.service} started",
            robot=self._robot,
            service=stream.service,
            stream=stream.id,
            ktls="yes" if pump.link.in_kernel else "no",
        )
        if not logged:
            self._unlogged.add(pump)

    def resume(self, check: Callable[[Link], None]) -> None:
        """Go on with the streams that the client before us has left; ``check`` says whether its link may."""
        self._durable.resume(functools.partial(self._resume_stream, check))

    def _resume_stream(self, check: Callable[[Link], None], pump: Pump, facts: Mapping[str, Any]) -> OnEnd:
        check(pump.link)
        pump.line = self.lines.of(pump.link.sock)
        self._streams[pump] = Stream(str(facts["id"])[:64], str(facts["service"]), float(facts["since"]))
        return self._report_end

    def _report_end(self, pump: Pump) -> None:
        self._loop.call_soon_threadsafe(self._ended, pump)

    def _ended(self, pump: Pump) -> None:
        self._durable.ended(pump)
        stream = self._streams.pop(pump)
        if pump in self._unlogged:
            self._unlogged.remove(pump)
            return
        duration = self._loop.time() - stream.since
        moved = (pump.down.moved, pump.up.moved)
        log_end(pump, Ending(self._robot, stream.service, stream.id, *moved, duration), _WORDS)

    def _fail(self, channel: Channel, start: Start, code: str, text: str) -> None:
        self._log_failure(start, text)
        channel.send(Failed(code, text[:512]))
        channel.close()

    def _log_failure(self, start: Start, text: str) -> None:
        self._failed_log.log(
            Event.SERVICE_FAILED,
            logging.WARNING,
            f"robot {self._robot}: visitor not connected: {text}",
            robot=self._robot,
            service=start.service[:64] or "default",
            stream=start.stream[:64],
        )


def _ignore_frame(frame: Frame) -> None:
    """Nothing may come between START and STARTED; the conversation has already refused it."""


def _ignore_loss(error: PeerError | None) -> None:
    """The server gave up while we were connecting; ``Channel.live`` tells."""
