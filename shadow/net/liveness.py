"""Whether the peer of a TCP connection is gone: what we tell the kernel to do, and what we ask it.

A peer is gone if nothing came from it for ``MISSED_MAX`` keepalive intervals. A shorter outage of the line
should cost no stream, whatever it was doing; after a longer one, every stream must have ended by the time
another quarter of that limit has passed. The kernel has three ways to find out, and only one at a time is at
work on a connection (``net/ipv4/tcp_timer.c``):

* **Idle**, half-closed or not: keepalive probes, at most one a second. The kernel does not resend a lost one,
  so there must be many. They also show our peer that *we* are there. ``TCP_USER_TIMEOUT`` replaces their
  count (``TCP_KEEPCNT``), and setting ``TCP_KEEPIDLE`` sends one at once, if it is time.
* **Data in flight** (``tcpi_unacked``): each retransmission waits twice as long as the one before, so the
  line may have been back for as long as it was down before anybody notices. The peer's probes tell us
  earlier, unless it is waiting for an acknowledgement, too. (``TCP_USER_TIMEOUT`` would bound the interval,
  but also cut off live peers: the kernel counts from the first retransmission, which on a bad line may be
  long before the silence began. ``TCP_RTO_MAX_MS`` of Linux 6.15 would bound it as well, but makes the
  kernel give up much sooner.)
* **A closed window** (data in the queue, nothing in flight): the persist timer asks for room, in the end
  only once in two minutes, and for ever as long as the peer answers. ``TCP_USER_TIMEOUT`` would cut off a
  peer that is well and takes its time, and keepalive waits. What tells a live peer from a dead one is
  whether anything arrives: answers (``tcpi_probes`` counts those that are due), or the peer's own probes.

So a stream may not notice that its line is back before it would count as dead. But the session does, and so
do the robot's other streams; they share what they hear (``Line``). While the line is up, a stream is dead
only when the kernel has tried three times in vain to reach its peer: one may be a lost packet, and so may the
next. A probe is a try as well, and some of them may have been lost just before the line went down. The
longest interval between retransmissions is two minutes (``TCP_RTO_MAX``), so the decision takes up to some
six minutes after the limit. A line that goes down again and again may make it longer, up to a quarter of an
hour: about as long as TCP itself tries (``net.ipv4.tcp_retries2``).

See tcp(7), socket(7), ``struct tcp_info`` in include/uapi/linux/tcp.h.
"""

import math
import socket
import struct

from ..wire.timing import MISSED_MAX
from .lines import UNNOTICED, Line

# tcpi_state, tcpi_retransmits (in a row), tcpi_probes, tcpi_unacked (packets), tcpi_last_data_recv and
# tcpi_last_ack_recv (milliseconds), tcpi_segs_in, tcpi_notsent_bytes
_INFO = struct.Struct("=BxBB20xI24xII80xII")
_OPTIONS = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
_GONE = frozenset({6, 7})  # TCP_TIME_WAIT, TCP_CLOSE: both have said all (include/net/tcp_states.h)
_LOOKS = 24  # at a connection within its limit; twice as many once it is silent
_TRIES = 3  # of the kernel over a line that is up, before we conclude that the peer is gone
_SPARED_MAX = 900.0  # seconds after the limit, whatever the line does


def keep_probing(sock: socket.socket, interval: float) -> None:
    """Have the kernel find a dead peer of an idle connection.

    After half an interval of silence the kernel sends a probe, then one a second (fewer if the interval is
    longer than half a minute), for ``MISSED_MAX`` intervals and one probe more. So whenever the line goes
    down, the kernel still tries ``MISSED_MAX`` intervals later, and gives up half an interval after that. It
    counts whole seconds: with intervals of less than four it takes up to two seconds longer.

    Small writes are sent at once: people type through the connection.
    """
    between = math.ceil(interval / 32)  # else there would be more than 127, TCP_KEEPCNT's limit
    count = math.ceil(MISSED_MAX * interval / between) + 1
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(interval / 2)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def watch_for_death(sock: socket.socket, interval: float) -> None:
    """Have the kernel find a dead peer, idle or not, of a connection that speaks frames.

    A peer that speaks frames also reads them, so no window stays closed, and the kernel can do everything by
    itself. It applies ``TCP_USER_TIMEOUT`` to probes, too, whatever their count. When the connection becomes
    a stream, ``Channel.release`` clears it, because it would count the time for which a healthy peer does not
    *read*; see ``Watch``.
    """
    keep_probing(sock, interval)
    milliseconds = MISSED_MAX * 1000 * max(1, round(interval))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


class Watch:
    """Checks from time to time whether the peer of a stream's connection is gone.

    The socket itself stores how long the peer may be silent (``keep_probing``), so the limit is the same in
    the next daemon, whatever its settings are.

    Attributes:
        step: seconds from one look to the next.
        patience: seconds of silence after which the peer counts as gone, unless the line says otherwise.
    """

    __slots__ = (
        "_counted",
        "_grace",
        "_heard",
        "_idle",
        "_limit",
        "_line_heard",
        "_line_since",
        "_probes_us",
        "_segments",
        "_sock",
        "_timeout",
        "_tries",
        "patience",
        "step",
    )

    def __init__(self, sock: socket.socket, now: float, *, probes_us: bool) -> None:
        """Begin to watch.

        Args:
            sock: of a TCP connection.
            now: by a monotonic clock, as for ``is_dead``.
            probes_us: the peer has called ``keep_probing``, too.
        """
        idle, between, count, timeout = (
            sock.getsockopt(socket.IPPROTO_TCP, name)
            for name in (
                socket.TCP_KEEPIDLE,
                socket.TCP_KEEPINTVL,
                socket.TCP_KEEPCNT,
                socket.TCP_USER_TIMEOUT,
            )
        )
        self._sock = sock
        self._idle = idle
        self._limit = between * count
        self.patience = self._limit + idle
        self.step = self._limit / _LOOKS
        self._probes_us = probes_us
        self._timeout: int = timeout  # the previous daemon may have left one
        self._segments = -1
        self._heard = now
        self._line_since = self._line_heard = -math.inf  # as it was at the last look
        self._tries = 0  # of the kernel when the line was heard last
        self._counted = 0  # those before count for nothing
        self._grace = now  # until when the last one that counts may be answered

    def silence(self, now: float) -> float:
        """Seconds since we heard the peer, or since we last expected nothing of it."""
        return now - self._heard

    def is_dead(self, now: float, *, reading: bool, line: Line | None = None) -> bool:
        """Whether the peer is gone: it was silent for all of ``patience`` while it should have been heard.

        Args:
            now: the time.
            reading: we take what it sends from the socket, so that it is free to send.
            line: the connection's; it is updated and consulted.
        """
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
        state, resent, probes, unacked, data, acknowledged, segments, unsent = _INFO.unpack(info)
        waits = unsent and not unacked
        # If both ends wait for room from each other, they probe for nothing else, and in the end rarely.
        expected = state not in _GONE and (not waits or probes or (reading and self._probes_us))
        if line is not None and self._segments not in {-1, segments}:
            line.heard(now, self._interval)
        if segments != self._segments or not expected:
            self._segments, self._heard = segments, now
        silence = self.silence(now)
        heard = self._heard if line is None else max(self._heard, line.times[1])
        left = min(heard, self._heard + _SPARED_MAX) + self.patience - now  # until nobody can be there
        worried = silence >= self._idle + 2 * self._limit / _LOOKS
        self.step = self._limit / _LOOKS / (2 if worried else 1)
        # What we heard may be the peer's own probe. Ours count as lost until one is answered, and without a
        # timeout the kernel would go by their number.
        if not (unacked or unsent) and (worried or (probes and self._timeout)):
            self._probe(left, min(data, acknowledged))
        else:
            self._cut_off_after(0)
        spared = line is not None and self._is_spared(now, resent + probes, line)
        return left <= 0 or (silence >= self.patience and not spared)

    @property
    def _interval(self) -> float:
        """Seconds between two frames of a session, or a little more: what ``keep_probing`` was told."""
        return self._limit / MISSED_MAX

    def _is_spared(self, now: float, tries: int, line: Line) -> bool:
        """Whether the kernel may not have had the chance to notice that the line is up.

        Args:
            now: the time.
            tries: how many times in a row the kernel has tried to get an answer.
            line: the connection's.
        """
        since, last = line.times
        if self.silence(now) < UNNOTICED * self._interval:
            self._counted = self._tries = tries
        elif last != self._line_heard:
            if since != self._line_since:
                self._counted += tries - self._tries  # the line was down, so those do not count
            self._tries = tries
        self._line_since, self._line_heard = since, last
        if self._tries < self._counted + _TRIES:
            self._grace = now + self._idle
        return now < self._grace

    def _probe(self, left: float, since: int) -> None:
        """Send a probe, and have the kernel go on for ``left`` seconds, however many probes are lost.

        Args:
            left: until nobody can be there any more; we may find out earlier.
            since: milliseconds since the peer last sent data or acknowledged anything, a probe included: what
                the kernel counts.
        """
        self._cut_off_after(since + int(1000 * left))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self._idle)

    def _cut_off_after(self, milliseconds: int) -> None:
        if milliseconds != self._timeout:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            self._timeout = milliseconds
