"""What must be known about streams even if the daemon dies: a few words of shared memory for each.

The memory is a memfd. The service manager keeps a copy of its descriptor (sd_notify(3), FDSTORE=1), so a
word once written survives SIGKILL, and the next daemon reads it. Writing costs no system call.
"""

import enum
import mmap
import os

from ..errors import LocalError, reason

SLOTS = 2**16  # streams at once; untouched pages take no memory
_WORDS = 8  # of 64 bits, for each stream
_SIZE = SLOTS * _WORDS * 8
_UP, _DOWN, _CUT, _TRIES = 0, 3, 6, 7

MOVED, STAGE, MARK = range(3)
"""Words of a flow's record: bytes taken from the source; a ``Stage``; the flow's private note."""

Record = memoryview
"""The three words of one flow, to be indexed by ``MOVED``, ``STAGE`` and ``MARK``."""


class Stage(enum.IntEnum):
    """How far a flow has come; it only ever grows."""

    MOVING = 0
    ENDED = 1
    """The source has said end of file; the store may still hold bytes."""
    FINISHING = 2
    """The end is being passed on; the reader of the record must find out whether it was."""
    DONE = 3


_STAGES = frozenset(Stage)
_MOVED_MAX = 2**63  # bytes: more than any stream will move, and more can be added to it


class Entry:
    """What is known about one stream.

    Attributes:
        up: the record of the flow from near to link.
        down: the record of the flow from link to near.
    """

    __slots__ = ("_words", "down", "up")

    def __init__(self, words: memoryview) -> None:
        self._words = words
        self.up: Record = words[_UP:_DOWN]
        self.down: Record = words[_DOWN:_CUT]

    @property
    def cut(self) -> bool:
        """The stream was cut off, or is about to be."""
        return bool(self._words[_CUT])

    @cut.setter
    def cut(self, value: bool) -> None:
        self._words[_CUT] = value

    @property
    def tries(self) -> int:
        """How often it was resumed without having made a turn since."""
        return int(self._words[_TRIES])

    @tries.setter
    def tries(self, value: int) -> None:
        self._words[_TRIES] = value

    @property
    def makes_sense(self) -> bool:
        """False if another version wrote something that this one does not know."""
        states_known = all(record[STAGE] in _STAGES for record in (self.up, self.down))
        return states_known and max(self.up[MOVED], self.down[MOVED]) <= _MOVED_MAX

    def clear(self) -> None:
        """Reset it to the state of a stream that has not begun."""
        for number in range(_WORDS):
            self._words[number] = 0


def private_entry() -> Entry:
    """An entry in memory that ends with the process: for streams that cannot outlive it."""
    return Entry(memoryview(bytearray(_WORDS * 8)).cast("Q"))


class ProgressTable:
    """All entries of a daemon, in shared memory."""

    def __init__(self, descriptor: int) -> None:
        """Use the memory behind a memfd that ``create`` has made, here or in another process, and close it.

        Raises:
            LocalError: no memory, or it is something else.
        """
        try:
            if os.fstat(descriptor).st_size != _SIZE:
                raise LocalError("what the service manager kept is not our progress table")
            self._map = mmap.mmap(descriptor, _SIZE)  # with a descriptor of its own
        except OSError as error:
            raise LocalError(f"no shared memory for streams: {reason(error)}") from error
        finally:
            os.close(descriptor)
        self._memory = memoryview(self._map).cast("Q")
        self._free: list[int] = []
        self._next = 0
        self._taken: set[int] = set()

    def take(self) -> tuple[int, Entry]:
        """A free slot, and its entry, which is still empty.

        Raises:
            LocalError: there is none.
        """
        while not self._free:
            if self._next == SLOTS:
                raise LocalError(f"more than {SLOTS} streams")
            if self._next not in self._taken:
                self._free.append(self._next)
            self._next += 1
        slot = self._free.pop()
        self._taken.add(slot)
        entry = self.entry(slot)
        entry.clear()
        return slot, entry

    def retake(self, slot: int) -> Entry:
        """The entry of a stream that continues.

        Raises:
            LocalError: no such slot, or it is another stream's, or its content makes no sense.
        """
        if not 0 <= slot < SLOTS or slot in self._taken:
            raise LocalError(f"slot {slot} of the table is not to be had")
        if not self.entry(slot).makes_sense:
            raise LocalError(f"slot {slot} of the table says what this version does not understand")
        self._taken.add(slot)
        if slot in self._free:
            self._free.remove(slot)
        return self.entry(slot)

    def give_back(self, slot: int) -> None:
        """The stream is over."""
        self._taken.discard(slot)
        self._free.append(slot)

    def entry(self, slot: int) -> Entry:
        """What is known about the stream in ``slot``."""
        return Entry(self._memory[slot * _WORDS : (slot + 1) * _WORDS])


def create() -> int:
    """A memfd for a new, empty table.

    Raises:
        LocalError: no memory or no descriptors.
    """
    try:
        descriptor = os.memfd_create("shadow-progress")
        os.ftruncate(descriptor, _SIZE)
    except OSError as error:
        raise LocalError(f"no shared memory for streams: {reason(error)}") from error
    return descriptor
