"""Robots by the hundred thousand at one server: sessions without sockets, everything else is the real thing.

    hollow.py API OPTION ...

It is shadow-server with these options, its port for robots and its API (at the path API) included. What it
lacks is robots: the sessions are made here, each with a channel that leads nowhere. It obeys lines of input,
and answers each with one of JSON:

    prepare FIRST COUNT ATTEMPT robots of these numbers are about to come
    come                        they say HELLO, all at once
    alone NUMBER TIMES PAUSE    one robot says HELLO so many times; how long each waited for its WELCOME
    steadily CLAIMS SECONDS PAUSE
                                so many robots say HELLO, then PAUSE, and so on; the longest time in which no
                                claim was ``written``, and in which nothing new was ``heard`` from the engine
    report                      figures; what was the longest, since ``anew``
    anew                        the same, and forget what was the longest
"""

import asyncio
import functools
import gc
import json
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from cryptography import x509

from shadow.admin.methods import Methods, make_service
from shadow.admin.varlink import Api
from shadow.daemon.config import parse_server
from shadow.daemon.life import raise_descriptor_limit
from shadow.errors import Refused
from shadow.fleet.joining import Member
from shadow.fleet.registrar import Registrar
from shadow.relay.durable import DurableStreams
from shadow.relay.pool import Relay
from shadow.server.robot import Robot
from shadow.server.server import Extra, Server
from shadow.server.session import Session
from shadow.systemd.fdstore import Store
from shadow.transport.channel import Channel
from shadow.transport.link import KernelLink
from shadow.wire.frames import Frame, Move
from shadow.wire.timing import Keepalive

from .crowd import name

_SUITE = "ECDHE-ECDSA-AES128-GCM-SHA256"
_SILENT = 10**6  # seconds: these robots send no PING, and need not
_AT_ONCE = 100  # robots before everybody else has a turn
_LOOK = 0.005  # seconds
_SHORT = 0.01  # seconds


class HollowChannel:
    """A robot's end of a session: it hears what the server says, and it says nothing."""

    __slots__ = ("_on_move", "link", "on_frame", "on_lost")

    def __init__(self, link: KernelLink, on_move: Callable[[], bool]) -> None:
        self.link = link
        self.on_frame: object = None
        self.on_lost: Callable[[None], None]
        self._on_move = on_move

    def send(self, frame: Frame) -> None:
        """A robot that is to move leaves: that it has come elsewhere before is the other server's concern."""
        if isinstance(frame, Move) and self._on_move():
            asyncio.get_running_loop().call_soon(lambda: self.on_lost(None))

    def close(self) -> None:
        """Nothing is open."""

    abort = close


class Collector:
    """CPU time of the garbage collector, which mostly looks at sessions: they are many objects each.

    Attributes:
        total: seconds.
        longest: seconds at once.
    """

    def __init__(self) -> None:
        self.total = self.longest = self._began = 0.0

    def hear(self, phase: str, _facts: object) -> None:
        """See gc.callbacks."""
        if phase == "start":
            self._began = time.thread_time()
        else:
            seconds = time.thread_time() - self._began
            self.total += seconds
            self.longest = max(self.longest, seconds)


class Welcoming:
    """CPU time that is spent on sessions that begin, which is not measured here.

    Attributes:
        total: seconds, without the collector's.
    """

    def __init__(self) -> None:
        self.total = self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.thread_time() - COLLECTOR.total

    def __exit__(self, *_: object) -> None:
        self.total += time.thread_time() - COLLECTOR.total - self._began


COLLECTOR, WELCOMING = Collector(), Welcoming()


class HollowCandidate:
    """A robot that has said HELLO; see ``directory.Candidate``."""

    def __init__(self, robot: Robot, session: Session) -> None:
        self._robot = robot
        self.session = session
        self.waits = True
        self.welcomed = asyncio.get_running_loop().create_future()

    @property
    def name(self) -> str:
        """Its name."""
        return self._robot.name

    def welcome(self) -> None:
        """It is welcome: as ``Robot.begin_session``, without sockets and logs."""
        with WELCOMING:
            self._welcome()

    def _welcome(self) -> None:
        self.waits = False
        self.welcomed.set_result(None)
        if self._robot.session is not None:
            self._robot.session.rest()
        self._robot.have_session(self.session)

    def refuse(self, refused: Refused) -> None:
        """It is not."""
        self.waits = False
        raise refused


class Watch:
    """How long anything keeps the event loop from everything else, in CPU time: others may have the CPU.

    Attributes:
        longest: seconds.
    """

    def __init__(self) -> None:
        self.longest = self._used = 0.0
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        """Look from now on."""
        self._used = time.thread_time()
        self._loop.call_later(_LOOK, self._look)

    def _look(self) -> None:
        used = time.thread_time()
        self.longest = max(self.longest, used - self._used)
        self._used = used
        self._loop.call_later(_LOOK, self._look)


class Gap:
    """For how long something has not changed.

    Attributes:
        longest: seconds, so far.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self._last, self._since = count(), time.monotonic()
        self.longest = 0.0

    def look(self) -> None:
        """See whether it has."""
        now, count = time.monotonic(), self._count()
        self.longest = max(self.longest, now - self._since)
        if count != self._last:
            self._last, self._since = count, now


class HollowApi(Extra):
    """The API of the server, at a path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, server: Server) -> None:
        """Answer."""
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self._path))
        sock.listen()
        sock.setblocking(False)
        self._api = Api(make_service(Methods(server)), server.robots.elsewhere.overview)
        self._api.listen(sock, server.robots.descriptors)

    async def close(self) -> None:
        """Answer no more."""
        await self._api.close()


class Simulator:
    """One server, and its robots."""

    def __init__(self, server: Server, certificate: x509.Certificate) -> None:
        self._server = server
        self._registrar = cast("Registrar", server.robots.directory)
        sock = socket.socket()  # nobody reads or writes, so one is enough for all
        self._link = KernelLink(sock, _SUITE, [certificate])
        self._watch = Watch()
        self._watch.start()
        self._moved = 0
        self._coming: list[HollowCandidate] = []
        self._next = 10**7  # number of a robot that was never here
        self._loop = asyncio.get_running_loop()

    async def obey(self, line: str) -> dict[str, Any]:
        """Do what a line says; the answer."""
        word, *numbers = line.split()
        if word == "prepare":
            return await self._prepare(*map(int, numbers))
        if word == "come":
            return await self._come()
        if word == "alone":
            return await self._alone(int(numbers[0]), int(numbers[1]), float(numbers[2]))
        if word == "steadily":
            return await self._steadily(int(numbers[0]), float(numbers[1]), float(numbers[2]))
        report = self._report()
        if word == "anew":
            self._watch.longest = COLLECTOR.longest = 0.0
        return report

    def _session(self, number: int, attempt: int) -> Session:
        channel = cast("Channel", HollowChannel(self._link, self._note_move))
        now = self._loop.time()
        services = ("",)
        session = Session(
            channel, f"{number:08x}.{attempt}", services, Keepalive(_SILENT, now), "[::1]:7", now
        )
        session.boot, session.attempt, session.moves = f"{number:016x}", attempt, True
        return session

    def _note_move(self) -> bool:
        """A robot is to move; whether it does: not if that is only to spread them evenly over the servers."""
        draining = self._server.robots.draining
        self._moved += draining
        return draining

    def _candidates(self, numbers: range, attempt: int) -> Iterator[HollowCandidate]:
        for number in numbers:
            robot = self._server.robots.provide(name(number))
            yield HollowCandidate(robot, self._session(number, attempt))

    async def _prepare(self, first: int, count: int, attempt: int) -> dict[str, Any]:
        for candidate in self._candidates(range(first, first + count), attempt):
            self._coming.append(candidate)
            if len(self._coming) % _AT_ONCE == 0:
                await asyncio.sleep(0)
        return {}

    async def _come(self) -> dict[str, Any]:
        for number, candidate in enumerate(self._coming, 1):
            self._registrar.came(candidate)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        self._coming.clear()
        return {}

    async def _alone(self, number: int, times: int, pause: float) -> dict[str, Any]:
        waited = []
        for attempt in range(1, times + 1):
            (candidate,) = self._candidates(range(number, number + 1), attempt)
            began = time.perf_counter()
            self._registrar.came(candidate)
            await candidate.welcomed
            waited.append(time.perf_counter() - began)
            await asyncio.sleep(pause)
        return {"waited": waited}

    async def _steadily(self, claims: int, seconds: float, pause: float) -> dict[str, Any]:
        view, writer = self._registrar.view, self._registrar.writer
        written, heard = Gap(lambda: writer.done), Gap(lambda: view.revision)
        end = self._loop.time() + seconds
        due = self._loop.time()
        while self._loop.time() < end:
            if self._loop.time() >= due:
                due += pause
                for candidate in self._candidates(range(self._next, self._next + claims), 1):
                    self._registrar.came(candidate)
                self._next += claims
            written.look()
            heard.look()
            await asyncio.sleep(_SHORT)
        return {"written": written.longest, "heard": heard.longest}

    def _report(self) -> dict[str, Any]:
        registrar, robots = self._registrar, self._server.robots
        return {
            "cpu": time.process_time() - WELCOMING.total - COLLECTOR.total,
            "collected": COLLECTOR.total,
            "collection": COLLECTOR.longest,
            "held": self._watch.longest,
            "robots": robots.connected,
            "view": len(registrar.view.entries),
            "up": registrar.view.up,
            "unclaimed": registrar.claims.unclaimed,
            "moved": self._moved,
        }


async def main() -> None:
    """Do what the command line says."""
    config = parse_server(sys.argv[2:])
    membership = config.membership
    assert membership is not None  # noqa: S101 - it is given
    certificate = x509.load_pem_x509_certificate(config.crt.read_bytes())
    api, member = HollowApi(Path(sys.argv[1])), Member(membership, config)
    server = Server(config, DurableStreams(Relay(1), Store()), [member, api])
    await server.start()
    simulator = Simulator(server, certificate)
    reader = asyncio.StreamReader()
    pipe = functools.partial(asyncio.StreamReaderProtocol, reader)
    await asyncio.get_running_loop().connect_read_pipe(pipe, sys.stdin)
    print(json.dumps(await simulator.obey("report")), flush=True)
    while line := (await reader.readline()).decode():
        print(json.dumps(await simulator.obey(line)), flush=True)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # a line for each robot that comes: what the log costs is known
    raise_descriptor_limit()
    gc.callbacks.append(COLLECTOR.hear)
    asyncio.run(main())
