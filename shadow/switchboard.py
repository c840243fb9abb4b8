"""Who gets which channel: pairs a robot's visitors with its standby channels, first come first served.

No I/O and no clock. The server asks it what to do at each arrival and does it.
"""

from collections import deque
from typing import Generic, TypeVar

Visitor = TypeVar("Visitor")
Channel = TypeVar("Channel")

DIAL_MAX = 64  # channels asked of a robot and not yet come; more would be a storm of handshakes


class Switchboard(Generic[Visitor, Channel]):
    """The visitors that wait for a channel and the channels that wait for a visitor; never both."""

    def __init__(self) -> None:
        self.visitors: deque[Visitor] = deque()
        self.standbys: deque[Channel] = deque()
        self._dialled = 0  # channels asked for that have not come yet

    def visitor_came(self, visitor: Visitor) -> tuple[Channel | None, int]:
        """A visitor arrived: the channel to start it on or None, and how many channels to DIAL for."""
        if self.standbys:
            return self.standbys.popleft(), 0
        self.visitors.append(visitor)
        return None, self._missing()

    def channel_came(self, channel: Channel) -> tuple[Visitor | None, int]:
        """A data channel arrived: the visitor to start on it or None, and how many more to DIAL for."""
        self._dialled = max(0, self._dialled - 1)
        if not self.visitors:
            self.standbys.append(channel)
            return None, 0
        # More visitors than DIAL_MAX may wait: each channel that comes makes room to ask for another.
        return self.visitors.popleft(), self._missing()

    def visitor_back(self, visitor: Visitor) -> tuple[Channel | None, int]:
        """A visitor's channel broke before it was started: it goes to the head of the queue."""
        if self.standbys:
            return self.standbys.popleft(), 0
        self.visitors.appendleft(visitor)
        return None, self._missing()

    def visitor_left(self, visitor: Visitor) -> None:
        """A visitor gave up or its time is over; harmless if it is not waiting."""
        if visitor in self.visitors:
            self.visitors.remove(visitor)

    def channel_left(self, channel: Channel) -> None:
        """A standby channel broke; harmless if it is not standing by."""
        if channel in self.standbys:
            self.standbys.remove(channel)

    def dials_lost(self) -> int:
        """No dialled channel has come in time: forget them, and say how many to DIAL anew."""
        self._dialled = 0
        return self._missing()

    def _missing(self) -> int:
        """How many channels to ask for now: one for each visitor that none is on its way for."""
        count = max(0, min(len(self.visitors), DIAL_MAX) - self._dialled)
        self._dialled += count
        return count
