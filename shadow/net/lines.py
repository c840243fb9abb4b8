"""Lines: whether anything comes over one, on whichever connection.

Each connection alone may notice only late that its line is back after an outage: TCP sends again at ever
greater distances. What one has heard the others may know (``liveness``).
"""

import math
import socket
import weakref

from .tcp import is_tcp

UNNOTICED = 1.25  # keepalive intervals: a session says a word in each, so a shorter outage may show nowhere


class Line:
    """When anything was heard on any connection between two addresses that belong to one robot.

    Threads share it without a lock: each writes and reads a whole tuple, and if one overwrites what another
    has just heard, that is heard again within an interval.
    """

    __slots__ = ("__weakref__", "_times")

    def __init__(self) -> None:
        """Nothing was heard yet."""
        self._times = (-math.inf, -math.inf)

    @property
    def times(self) -> tuple[float, float]:
        """Since when the line has been there, as far as one can know, and when it was heard last."""
        return self._times

    def heard(self, now: float, interval: float) -> None:
        """Something has come, be it a frame, data, or a probe.

        Args:
            now: by the monotonic clock.
            interval: between two words of a session, in seconds.
        """
        since, last = self._times
        self._times = (since if now - last <= UNNOTICED * interval else now, now)


class Lines:
    """The lines of one robot, each as long as somebody has a connection over it.

    A robot that comes back from another address has lost its connections, so its session says nothing about
    them. Ports do not matter: behind NAT all are different. For the event loop's thread.
    """

    def __init__(self) -> None:
        """None yet."""
        self._lines: weakref.WeakValueDictionary[tuple[str, ...], Line] = weakref.WeakValueDictionary()

    def of(self, sock: socket.socket) -> Line | None:
        """The line of a TCP connection; None if it has gone, or is no such thing."""
        if not is_tcp(sock):
            return None
        try:
            ends = str(sock.getsockname()[0]), str(sock.getpeername()[0])
        except OSError:
            return None
        return self._lines.setdefault(ends, Line())
