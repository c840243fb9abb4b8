"""The relay: a few threads, each with an edge-triggered epoll over many streams.

splice(2), OpenSSL and socket calls release the interpreter's lock, so the threads run in parallel where it
matters. A stream belongs to one thread for life; requests of other threads go through that thread's inbox.
Streams that have more to do take turns (``flow.TURN_BUDGET``), so none starves another.
"""

import bisect
import collections
import contextlib
import errno
import logging
import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable

from ..errors import LocalError, no_thread
from ..net.liveness import Watch
from ..net.tcp import is_tcp
from ..transport.link import Link
from . import splice, userspace
from .ends import End, Side
from .flow import Pump, StreamCut
from .progress import private_entry

_EVENTS = select.EPOLLIN | select.EPOLLPRI | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_EVENTS_AT_ONCE = 256
_LINGER = 0.1  # seconds between checks whether the last bytes of a stream have been acknowledged

TURN_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Histogram of the seconds that a thread is busy before it waits again; see ``Relay.measure_turns``."""

OnEnd = Callable[[Pump], object]


class Relay:
    """The pool of threads."""

    def __init__(self, threads: int | None = None) -> None:
        """Start the threads: unless told otherwise, as many as there are CPUs for us.

        Raises:
            LocalError: no more threads or descriptors; those that were started have ended.
        """
        self._workers: list[_Worker] = []
        count = threads or len(os.sched_getaffinity(0))
        try:
            for number in range(count):
                self._workers.append(_Worker(f"relay-{number}"))
        except (RuntimeError, OSError) as error:
            self.stop()
            raise no_thread(f"{count} threads", error) from error

    @property
    def streams(self) -> int:
        """How many streams are running."""
        return sum(worker.load for worker in self._workers)

    def make(self, near: End, link: Link) -> Pump:
        """A stream between two non-blocking sockets; no byte of it moves before ``adopt``.

        Args:
            near: the end on this side: the visitor's or the service's socket, or a link from another server.
            link: the end that leads through the tunnel. Links have nothing left to flush.

        Returns:
            The pump; the sockets are the caller's until it is adopted; ``Pump.close_stores`` frees the rest.

        Raises:
            LocalError: no descriptors left, or the threads have ended.
        """
        home = self._idlest()
        pump = home.make_pump(near, link)
        pump.home = home
        return pump

    def adopt(self, pump: Pump, on_end: OnEnd) -> None:
        """Begin to move a stream's bytes, or continue; its sockets belong to the relay from now on.

        Args:
            pump: made by ``make``, or a stream that another process has left.
            on_end: called from the relay's thread when the stream is over and its sockets are closed.

        Raises:
            LocalError: the threads have ended; the pump is still the caller's.
        """
        pump.on_end = on_end
        pump.home = pump.home or self._idlest()
        pump.home.adopt(pump)

    def _idlest(self) -> "_Worker":
        if not self._workers:
            raise LocalError("the daemon is stopping")
        return min(self._workers, key=lambda worker: worker.load)

    def cut(self, pump: Pump, why: str) -> None:
        """Cut a stream off from this side; harmless if it has ended meanwhile."""
        home = pump.home
        if home is not None and home in self._workers:
            home.cut(pump, why)

    def ping(self) -> None:
        """Wake every thread, so that ``turning`` can tell whether they all still turn."""
        for worker in self._workers:
            worker.ping()

    @property
    def turning(self) -> bool:
        """True if every thread has come around since the last ``ping``."""
        return all(worker.answered for worker in self._workers)

    def measure_turns(self) -> None:
        """From now on, record how long each thread is busy before it waits again; see ``turns``."""
        for worker in self._workers:
            worker.spans = _Spans()

    @property
    def turns(self) -> tuple[list[int], float]:
        """Rounds of all threads: counts for each of ``TURN_BUCKETS`` and for longer ones, total seconds."""
        spans = [worker.spans for worker in self._workers if worker.spans is not None]
        counts = [sum(column) for column in zip(*(one.counts for one in spans), strict=True)]
        return counts or [0] * (len(TURN_BUCKETS) + 1), sum(one.seconds for one in spans)

    def stop(self) -> None:
        """End the threads for good; return when they have ended.

        Streams that the service manager keeps are left as they are, the others are cut off.
        """
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join()
        self._workers.clear()


class _Spans:
    """How long rounds took: a count for each of ``TURN_BUCKETS`` and for longer ones, and the sum.

    Only one thread writes; a concurrent reader may see a round in the counts that is not yet in the sum.
    """

    def __init__(self) -> None:
        self.counts = [0] * (len(TURN_BUCKETS) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(TURN_BUCKETS, seconds)] += 1
        self.seconds += seconds


class _Worker:
    """One thread of the pool; other threads call the public methods."""

    def __init__(self, name: str) -> None:
        self.spans: _Spans | None = None
        self.load = 0  # streams adopted and not ended; both sides write it, under the lock
        self._lock = threading.Lock()
        self._scratch = userspace.Scratch()
        self._inbox: collections.deque[Callable[[], None]] = collections.deque()
        self._pings = 0
        self._turns = 0
        self._stopping = False
        self._sides: dict[int, tuple[Pump, Side]] = {}
        self._hungry: dict[Pump, None] = {}  # in order of their turns
        self._lingering: dict[Pump, None] = {}
        self._linger_due = math.inf  # when to check those
        self._watches: dict[Pump, list[tuple[Side, Watch]]] = {}
        self._watch_due = math.inf  # when to check whether their peers are there
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._close()
            raise

    def make_pump(self, near: End, link: Link) -> Pump:
        if near.in_kernel and link.in_kernel:
            return splice.make_pump(near, link, private_entry())
        return userspace.make_pump(near, link, self._scratch)

    def adopt(self, pump: Pump) -> None:
        with self._lock:
            self.load += 1
        self._post(lambda: self._begin(pump))

    def cut(self, pump: Pump, why: str) -> None:
        self._post(lambda: self._cut(pump, why))

    def ping(self) -> None:
        wanted = self._turns + 1
        self._pings = wanted
        os.eventfd_write(self._wake, 1)

    @property
    def answered(self) -> bool:
        return self._turns >= self._pings

    def stop(self) -> None:
        self._post(self._stop)

    def join(self) -> None:
        self._thread.join()
        # Not earlier: another thread may still write to it, and its number would soon be another file's.
        self._close()

    def _close(self) -> None:
        self._epoll.close()
        os.close(self._wake)

    def _post(self, task: Callable[[], None]) -> None:
        self._inbox.append(task)
        os.eventfd_write(self._wake, 1)

    # Everything below runs in the worker's own thread.

    def _run(self) -> None:
        while not self._stopping:
            events = self._epoll.poll(self._patience, _EVENTS_AT_ONCE)
            spans = self.spans  # read once: another thread sets it
            now = time.monotonic()
            self._turns += 1
            for descriptor, mask in events:
                self._heed(descriptor, mask)
            for pump in list(self._hungry):
                self._take_turn(pump)
            if now >= self._linger_due:
                self._look_after_the_lingering(now)
            if now >= self._watch_due:
                self._bury_the_dead(now)
            if spans:
                spans.add(time.monotonic() - now)

    @property
    def _patience(self) -> float | None:
        """Seconds to wait for events: no event says that a peer has acknowledged all, or that it is gone."""
        if self._hungry:
            return 0
        due = min(self._linger_due, self._watch_due)
        return None if due == math.inf else max(0.0, due - time.monotonic())

    def _heed(self, descriptor: int, mask: int) -> None:
        if descriptor == self._wake:
            self._read_inbox()
        elif descriptor in self._sides:  # its stream may have ended earlier in this very round
            pump, side = self._sides[descriptor]
            if self._guard(pump, pump.ready, side, mask):
                self._hungry[pump] = None

    def _read_inbox(self) -> None:
        os.eventfd_read(self._wake)
        while self._inbox:
            self._inbox.popleft()()

    def _begin(self, pump: Pump) -> None:
        self._guard(pump, self._watch, pump)
        # epoll reports what is already there, but not what OpenSSL has already read. And a stream that we
        # cannot watch, for lack of memory or of /proc/sys/fs/epoll/max_user_watches, must end.
        self._hungry[pump] = None

    def _watch(self, pump: Pump) -> None:
        for side, end in pump.ends.items():
            # Urgent data is data (RFC 6093): keep it in its place, else the kernel would take it out.
            end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            self._sides[end.sock.fileno()] = (pump, side)
            self._epoll.register(end.sock, _EVENTS)
        now = time.monotonic()
        # The other end of a link is one of ours, and probes; a service may be anything.
        self._watches[pump] = [
            (side, Watch(end.sock, now, probes_us=isinstance(end, Link)))
            for side, end in pump.ends.items()
            if is_tcp(end.sock)
        ]
        self._expect_look(pump, now)

    def _take_turn(self, pump: Pump) -> None:
        # Remove and re-add: a stream that wants more goes to the end of the queue.
        del self._hungry[pump]
        if self._guard(pump, pump.turn):
            self._hungry[pump] = None
        self._end_if_over(pump)

    def _end_if_over(self, pump: Pump) -> None:
        if pump.running:
            return
        if pump.over:
            self._end(pump)
        elif pump not in self._lingering:
            self._lingering[pump] = None
            self._linger_due = min(self._linger_due, time.monotonic() + _LINGER)

    def _look_after_the_lingering(self, now: float) -> None:
        """Not at every wake-up: there may be many, and each takes four system calls."""
        for pump in list(self._lingering):
            self._guard(pump, pump.look_after)
            self._end_if_over(pump)
        self._linger_due = now + _LINGER if self._lingering else math.inf

    def _guard(self, pump: Pump, step: Callable[..., bool | None], *arguments: object) -> bool:
        """Run one step of a stream: whatever goes wrong in it ends that stream and nothing else.

        Returns:
            Whether the stream wants a turn, even if only to end.
        """
        try:
            return False if pump.over else bool(step(*arguments))
        except Exception as error:
            logging.getLogger("shadow").exception("unexpected error: stream aborted (please report)")
            pump.cut = StreamCut(None, OSError(errno.ECONNABORTED, f"internal error: {error!r}"))
            return True

    def _cut(self, pump: Pump, why: str) -> None:
        if self._sides.get(pump.link.sock.fileno(), (None,))[0] is pump and not pump.over:
            pump.cut = StreamCut(None, OSError(errno.ECONNABORTED, why))
            self._end(pump)

    def _bury_the_dead(self, now: float) -> None:
        self._watch_due = math.inf
        for pump in list(self._watches):
            if self._guard(pump, self._has_died, pump, now):
                self._end(pump)
            else:
                self._expect_look(pump, now)

    def _expect_look(self, pump: Pump, now: float) -> None:
        steps = [watch.step for _side, watch in self._watches[pump]]
        self._watch_due = min(self._watch_due, now + min(steps, default=math.inf))

    def _has_died(self, pump: Pump, now: float) -> bool:
        """Cut a stream if one of its peers is gone; return whether it was."""
        for side, watch in self._watches[pump]:
            if watch.is_dead(now, reading=pump.reads(side), line=pump.ends[side].line):
                error = OSError(errno.ECONNABORTED, f"nothing heard for {watch.silence(now):.0f} s")
                pump.cut = StreamCut(side, error)
                return True
        return False

    def _forget(self, pump: Pump) -> None:
        self._hungry.pop(pump, None)
        self._lingering.pop(pump, None)
        self._watches.pop(pump, None)
        for end in pump.ends.values():
            self._sides.pop(end.sock.fileno(), None)
            with contextlib.suppress(OSError):  # one that could not be watched
                self._epoll.unregister(end.sock)

    def _end(self, pump: Pump) -> None:
        self._forget(pump)
        pump.close()
        with self._lock:
            self.load -= 1
        if pump.on_end is not None:
            pump.on_end(pump)

    def _stop(self) -> None:
        for pump in {pump for pump, _side in self._sides.values()}:
            if pump.kept:
                self._forget(pump)
                pump.leave()
            elif pump.passed_on:
                self._end(pump)
            else:
                self._cut(pump, "the daemon is stopping")
        self._stopping = True
