"""Who gets which channel: pairs a robot's visitors with its standby channels, first come first served.

No I/O and no clock. At each arrival the server asks it what to do, and does that.
"""

from collections import deque
from typing import Generic, TypeVar

Visitor = TypeVar("Visitor")
Channel = TypeVar("Channel")

DIAL_MAX = 64  # channels asked of a robot that have not come yet; more would be a storm of handshakes


class Switchboard(Generic[Visitor, Channel]):
    """The visitors that wait for a channel and the channels that wait for a visitor; never both.

    Attributes:
        wanted: standbys that the robot keeps by itself, as far as we have seen.
    """

    def __init__(self) -> None:
        self.visitors: deque[Visitor] = deque()
        self.standbys: deque[Channel] = deque()
        self.wanted = 0
        self._dialled = 0  # channels asked for that have not come yet
        self._owed = 0  # the same, plus those that nobody expects any more
        self._extra = 0  # standbys asked for on behalf of visitors who had left when they came
        self._fewest = 0  # minimum number of standbys since the last look for a surplus

    def visitor_came(self, visitor: Visitor) -> tuple[Channel | None, int]:
        """A visitor arrived: the channel to start it on or None, and how many channels to DIAL for."""
        if self.standbys:
            return self.take_standby(), 0
        self.visitors.append(visitor)
        return None, self._missing()

    def channel_came(self, channel: Channel) -> tuple[Visitor | None, int]:
        """A data channel arrived: the visitor to start on it or None, and how many more to DIAL for."""
        unasked = not self._owed
        self._dialled, self._owed = max(0, self._dialled - 1), max(0, self._owed - 1)
        if not self.visitors:
            self.standbys.append(channel)
            if unasked:
                self.wanted = max(self.wanted, len(self.standbys) - self._extra)
            else:
                self._extra += 1
            return None, 0
        # More visitors than DIAL_MAX may wait: each channel that comes makes room to ask for another.
        return self.visitors.popleft(), self._missing()

    def visitor_back(self, visitor: Visitor) -> tuple[Channel | None, int]:
        """A visitor's channel broke before it was started: it goes to the head of the queue."""
        if self.standbys:
            return self.take_standby(), 0
        self.visitors.appendleft(visitor)
        return None, self._missing()

    def visitor_left(self, visitor: Visitor) -> None:
        """A visitor gave up or its time has run out; harmless if it is not waiting."""
        if visitor in self.visitors:
            self.visitors.remove(visitor)

    def channel_left(self, channel: Channel) -> None:
        """A standby channel broke; harmless if it is not standing by."""
        if channel in self.standbys:
            self.standbys.remove(channel)
            self._one_less()

    def take_standby(self) -> Channel:
        """Take the one that has stood by longest; there must be one."""
        channel = self.standbys.popleft()
        self._one_less()
        return channel

    def _one_less(self) -> None:
        self._extra = max(0, self._extra - 1)
        self._fewest = min(self._fewest, len(self.standbys))

    def surplus(self) -> list[Channel]:
        """Standbys that nobody has needed since the last call, beyond those the robot keeps; take them out.

        They were dialled for visitors who have left meanwhile.
        """
        channels = [self.take_standby() for _ in range(self._fewest - self.wanted)]
        if channels:
            self._owed = 0  # what comes now, the robot opens by itself
        self._fewest = len(self.standbys)
        return channels

    def dials_lost(self) -> int:
        """No channel that we asked for has come in time: forget them; return how many to DIAL again."""
        self._dialled = 0
        return self._missing()

    def _missing(self) -> int:
        """How many channels to ask for now: one for each visitor for whom none is on its way."""
        count = max(0, min(len(self.visitors), DIAL_MAX) - self._dialled)
        self._dialled += count
        self._owed += count
        return count
