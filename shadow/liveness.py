"""Whether the peer of a TCP connection is gone: what the kernel is told, and what is asked of it.

A peer is gone after ``MISSED_MAX`` keepalive intervals in which nothing came from it: a shorter outage
of the line must cost no stream, whatever it was doing, and after a longer one none may be left when a quarter
of that time more has passed. The kernel has three ways to find out, and only one at a time is at work on a
connection (``net/ipv4/tcp_timer.c``):

* **Idle**, half-closed or not: keepalive probes. One that is lost is not sent again, so there must be many,
  close to each other. They also show our peer that *we* are there.
* **Data under way** (``tcpi_unacked``): it is sent again at twice the distance each time, and the line may
  have been back for as long as it was away before that is noticed. ``TCP_USER_TIMEOUT`` bounds the distance:
  the last time is put at its end. There the connection is cut, unless the limit was raised meanwhile.
* **A closed window** (data in the queue, nothing under way): the persist timer asks for room, in the end
  only once in two minutes, and for ever as long as the peer answers. ``TCP_USER_TIMEOUT`` would cut off a
  peer that is well and takes its time, and keepalive waits. What tells a live peer from a dead one is
  whether anything comes: answers (``tcpi_probes`` counts those that are due), or the peer's own probes.

See tcp(7), socket(7), ``struct tcp_info`` in include/uapi/linux/tcp.h.
"""

import math
import socket
import struct

from .protocol import MISSED_MAX

# tcpi_ca_state, tcpi_probes, tcpi_unacked (packets), tcpi_segs_in, tcpi_notsent_bytes
_INFO = struct.Struct("=xBxB20xI112xII")
_LOSS = 3  # tcpi_ca_state from which on something is being sent again: TCP_CA_Recovery, TCP_CA_Loss
_STEPS = 24  # looks at a connection within its limit


def keep_probing(sock: socket.socket, interval: float) -> None:
    """Have the kernel find a dead peer of an idle connection.

    Nothing heard for half an interval: a probe; then one each eighth of it, for ``MISSED_MAX`` intervals and
    one probe more. So whenever the line goes away, ``MISSED_MAX`` intervals later it is still being tried,
    and half an interval after that it is over. The kernel counts whole seconds: with intervals of less than
    four it takes up to two seconds longer.

    Small writes are sent at once: people type through it.
    """
    between = max(1, int(interval / 8))
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
    """Looks from time to time whether the peer of a stream's connection is gone; the idle are the kernel's.

    How long it may be silent is written in the socket (``keep_probing``), so it is the same in the next
    daemon, whatever that one's settings are.

    Attributes:
        step: seconds from one look to the next.
        patience: seconds of silence after which the peer is gone.
    """

    __slots__ = (
        "_calm",
        "_heard",
        "_limit",
        "_probes_us",
        "_segments",
        "_sock",
        "_timeout",
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
        self._limit = between * count
        self.patience = self._limit + idle
        self.step = self._limit / _STEPS
        self._probes_us = probes_us
        self._timeout: int = timeout  # the daemon before us may have left one
        self._segments = -1
        self._heard = self._calm = now

    def is_dead(self, now: float, *, reading: bool) -> bool:
        """Whether the peer is gone while it owes us something: it was silent for all of ``patience``.

        Args:
            now: the time.
            reading: what it sends is taken from the socket, so that it is free to send.
        """
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
        state, probes, unacked, segments, unsent = _INFO.unpack(info)
        # Two that wait for room from each other probe for nothing but that, and in the end rarely.
        expected = unacked or (unsent and (probes or (reading and self._probes_us)))
        if segments != self._segments or not expected:
            self._segments, self._heard = segments, now
        if state < _LOSS:
            self._calm = now
        silence = now - self._heard
        self._bound_distance(silence if unacked else 0.0)
        return silence >= self.patience

    def _bound_distance(self, silence: float) -> None:
        """Let data that is under way be sent again while it makes sense: ever more often before the end.

        The kernel counts from when it sent again for the first time, which may have been long before the
        silence began. The longest that this can be is what it is told in addition: it must cut off none
        that was just heard.
        """
        if silence < self.patience - self._limit:
            wanted = 0
        else:
            seconds = min(self.patience, max(self._limit - 4 * self.step, silence + 2 * self.step))
            wanted = int(1000 * (seconds + self._heard - self._calm))
        if wanted != self._timeout:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, wanted)
            self._timeout = wanted
