"""Whether the peer of a TCP connection is gone: what the kernel is told, and what is asked of it.

A peer is gone after ``MISSED_MAX`` keepalive intervals in which nothing came from it: a shorter outage of the
line should cost no stream, whatever it was doing, and after a longer one none may be left when a quarter of
that time more has passed. The kernel has three ways to find out, and only one at a time is at work on a
connection (``net/ipv4/tcp_timer.c``):

* **Idle**, half-closed or not: keepalive probes, one a second at most. One that is lost is not sent again, so
  there must be many. They also show our peer that *we* are there. ``TCP_USER_TIMEOUT`` takes the place of
  their count (``TCP_KEEPCNT``), and setting ``TCP_KEEPIDLE`` sends one at once, if it is time.
* **Data under way** (``tcpi_unacked``): it is sent again at twice the distance each time, so the line may
  have been back for as long as it was away before that is noticed. The peer's probes tell earlier, unless it
  waits for an acknowledgement, too. (``TCP_USER_TIMEOUT`` would bound the distance, and cut off the living:
  the kernel counts from the first time that anything was sent again, which on a bad line may be long before
  the silence began. ``TCP_RTO_MAX_MS`` of Linux 6.15 would as well, and has the kernel give up much sooner.)
* **A closed window** (data in the queue, nothing under way): the persist timer asks for room, in the end
  only once in two minutes, and for ever as long as the peer answers. ``TCP_USER_TIMEOUT`` would cut off a
  peer that is well and takes its time, and keepalive waits. What tells a live peer from a dead one is
  whether anything comes: answers (``tcpi_probes`` counts those that are due), or the peer's own probes.

So a stream may not notice that its line is back before it would count as dead. But the session does, and the
robot's other streams, which share what they hear (``Line``). While the line is there, a stream is dead only
when the kernel has tried three times in vain to reach its peer: one may be a lost packet, and so may the
next. A probe is a try as well, and some of them may have been lost just before the line went away. Two
minutes are the greatest distance of retransmissions (``TCP_RTO_MAX``), so that is over some six minutes after
the limit. A line that goes away again and again may make it longer, up to a quarter of an hour: about as
long as TCP itself tries (``net.ipv4.tcp_retries2``).

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
_TRIES = 3  # of the kernel over a line that is there, before nobody is at its other end
_SPARED_MAX = 900.0  # seconds after the limit, whatever the line does


def keep_probing(sock: socket.socket, interval: float) -> None:
    """Have the kernel find a dead peer of an idle connection.

    Nothing heard for half an interval: a probe; then one a second (with intervals of more than half a minute
    fewer), for ``MISSED_MAX`` intervals and one probe more. So whenever the line goes away, ``MISSED_MAX``
    intervals later it is still being tried, and half an interval after that it is over. The kernel counts
    whole seconds: with intervals of less than four it takes up to two seconds longer.

    Small writes are sent at once: people type through it.
    """
    between = math.ceil(interval / 32)  # or there were more than 127, TCP_KEEPCNT's limit
    count = math.ceil(MISSED_MAX * interval / between) + 1
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(interval / 2)))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, count)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def watch_for_death(sock: socket.socket, interval: float) -> None:
    """Have the kernel find a dead peer, idle or not, of a connection that speaks frames.

    Who speaks frames reads them, so no closed window lasts, and the kernel can do all by itself. With
    ``TCP_USER_TIMEOUT`` it goes by that for probes, too, whatever their count. A connection that becomes a
    stream is relieved of it (``Channel.release``), for it would count the time for which a peer that is well
    does not *read*; see ``Watch``.
    """
    keep_probing(sock, interval)
    milliseconds = MISSED_MAX * 1000 * max(1, round(interval))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


class Watch:
    """Looks from time to time whether the peer of a stream's connection is gone.

    How long it may be silent is written in the socket (``keep_probing``), so it is the same in the next
    daemon, whatever that one's settings are.

    Attributes:
        step: seconds from one look to the next.
        patience: seconds of silence after which the peer is gone, if the line does not say otherwise.
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
            probes_us: the peer has done ``keep_probing``, too.
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
        self._timeout: int = timeout  # the daemon before us may have left one
        self._segments = -1
        self._heard = now
        self._line_since = self._line_heard = -math.inf  # as it was at the last look
        self._tries = 0  # of the kernel when the line was heard last
        self._counted = 0  # those before count for nothing
        self._grace = now  # until when the last one that counts may be answered

    def silence(self, now: float) -> float:
        """Seconds since the peer was heard, or anything was expected of it."""
        return now - self._heard

    def is_dead(self, now: float, *, reading: bool, line: Line | None = None) -> bool:
        """Whether the peer is gone: it was silent for all of ``patience`` while something had to come of it.

        Args:
            now: the time.
            reading: what it sends is taken from the socket, so that it is free to send.
            line: the connection's; is told, and asked.
        """
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
        state, resent, probes, unacked, data, acknowledged, segments, unsent = _INFO.unpack(info)
        waits = unsent and not unacked
        # Two that wait for room from each other probe for nothing but that, and in the end rarely.
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
        # What was heard may be the peer's own probe. Ours count as lost until one is answered, and without a
        # time the kernel would go by their number.
        if not (unacked or unsent) and (worried or (probes and self._timeout)):
            self._probe(left, min(data, acknowledged))
        else:
            self._cut_off_after(0)
        spared = line is not None and self._is_spared(now, resent + probes, line)
        return left <= 0 or (silence >= self.patience and not spared)

    @property
    def _interval(self) -> float:
        """Seconds between two words of a session, or a little more: what ``keep_probing`` was told."""
        return self._limit / MISSED_MAX

    def _is_spared(self, now: float, tries: int, line: Line) -> bool:
        """Whether the kernel may not have had the chance to notice that the line is there.

        Args:
            now: the time.
            tries: of the kernel to have an answer, in a row.
            line: the connection's.
        """
        since, last = line.times
        if self.silence(now) < UNNOTICED * self._interval:
            self._counted = self._tries = tries
        elif last != self._line_heard:
            if since != self._line_since:
                self._counted += tries - self._tries  # it was away, and those do not count
            self._tries = tries
        self._line_since, self._line_heard = since, last
        if self._tries < self._counted + _TRIES:
            self._grace = now + self._idle
        return now < self._grace

    def _probe(self, left: float, since: int) -> None:
        """Send a probe, and have the kernel go on for ``left`` seconds, however many are lost.

        Args:
            left: until nobody can be there; before that we may find out that it is so.
            since: milliseconds since the peer has last sent data or acknowledged anything, a probe included:
                what the kernel counts.
        """
        self._cut_off_after(since + int(1000 * left))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self._idle)

    def _cut_off_after(self, milliseconds: int) -> None:
        if milliseconds != self._timeout:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            self._timeout = milliseconds
