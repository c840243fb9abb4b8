"""Lines: whether anything arrives over one, on any connection.

Each connection alone may notice only late that its line is back after an outage: TCP retransmits at ever
longer intervals. So connections share what they have heard (``liveness``).
"""

import math
import socket
import weakref

from .tcp import is_tcp

UNNOTICED = 1.25  # keepalive intervals: a session sends a frame in each, so a shorter outage may go unseen


class Line:
    """When anything was heard on any connection between two addresses that belong to one robot.

    Threads share it without a lock: each writes and reads a whole tuple, and if one overwrites what another
    has just heard, something is heard again within an interval.
    """

    __slots__ = ("__weakref__", "_times")

    def __init__(self) -> None:
        """Nothing was heard yet."""
        self._times = (-math.inf, -math.inf)

    @property
    def times(self) -> tuple[float, float]:
        """Since when the line has been up, as far as we can know, and when we last heard anything on it."""
        return self._times

    def heard(self, now: float, interval: float) -> None:
        """Something has arrived: a frame, data, or a probe.

        Args:
            now: by the monotonic clock.
            interval: between two frames of a session, in seconds.
        """
        since, last = self._times
        self._times = (since if now - last <= UNNOTICED * interval else now, now)


class Lines:
    """The lines of one robot, each kept as long as there is a connection over it.

    A robot that comes back from another address has lost its connections, so its session says nothing about
    them. Ports do not matter: behind NAT all are different. For the event loop's thread only.
    """

    def __init__(self) -> None:
        """None yet."""
        self._lines: weakref.WeakValueDictionary[tuple[str, ...], Line] = weakref.WeakValueDictionary()

    def of(self, sock: socket.socket) -> Line | None:
        """The line of a TCP connection; None if it is gone, or is not TCP."""
        if not is_tcp(sock):
            return None
        try:
            ends = str(sock.getsockname()[0]), str(sock.getpeername()[0])
        except OSError:
            return None
        return self._lines.setdefault(ends, Line())
