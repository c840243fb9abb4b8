"""All robots' entries in little memory: some 500 bytes each, and nothing that the garbage collector looks at.

An entry is kept as its value's bytes, which have been checked, behind a short head; it is parsed again when
somebody asks for it. 300,000 objects instead would stop everything for a tenth of a second whenever the
collector goes through them.
"""

import struct
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from .keys import Entry, reread_entry

_HEAD = struct.Struct("<QI")  # revision, number of the holder


class Holder(NamedTuple):
    """Who an entry leads to: a server, in one of its lives."""

    server: str
    inc: str


class Entries(Mapping[str, Entry]):
    """Entries by the robots' names, and the names by who has them.

    Attributes:
        before: who had the robot whose entry changed last, until then.
    """

    def __init__(self) -> None:
        self.before: Holder | None = None
        self._packed: dict[str, bytes] = {}
        self._holders: list[Holder] = []
        self._names: list[set[str]] = []  # of the robots of each of them
        self._numbers: dict[Holder, int] = {}  # where it is in both lists

    def __getitem__(self, name: str) -> Entry:
        packed = self._packed[name]
        return reread_entry(packed[_HEAD.size :], _HEAD.unpack_from(packed)[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def __contains__(self, name: object) -> bool:
        return name in self._packed

    def put(self, name: str, entry: Entry, value: bytes) -> bool:
        """This is the robot's entry now, ``value`` as it stands at the engine; whether that is new."""
        number = self._number(Holder(entry.server, entry.inc))
        packed = _HEAD.pack(entry.revision, number) + value
        if self._packed.get(name) == packed:
            return False
        self.remove(name)
        self._packed[name] = packed
        self._names[number].add(name)
        return True

    def remove(self, name: str) -> bool:
        """The robot has no entry; whether that is new."""
        packed = self._packed.pop(name, None)
        self.before = None
        if packed is None:
            return False
        number = _HEAD.unpack_from(packed)[1]
        self.before = self._holders[number]
        self._names[number].discard(name)
        return True

    def revision(self, name: str) -> int:
        """The revision of a robot's entry; 0: it has none."""
        packed = self._packed.get(name)
        revision: int = 0 if packed is None else _HEAD.unpack_from(packed)[0]
        return revision

    def kept(self, name: str) -> tuple[int, bytes] | None:
        """The revision of a robot's entry, and its value as it stands at the engine."""
        packed = self._packed.get(name)
        return None if packed is None else (_HEAD.unpack_from(packed)[0], packed[_HEAD.size :])

    @property
    def holders(self) -> Mapping[Holder, int]:
        """Who has robots, and how many."""
        counted = zip(self._holders, map(len, self._names), strict=True)
        return {holder: count for holder, count in counted if count}

    def held_by(self, holder: Holder) -> Collection[str]:
        """The names of the robots that somebody has; it changes with the entries."""
        number = self._numbers.get(holder)
        return () if number is None else self._names[number]

    def _number(self, holder: Holder) -> int:
        """Where a holder is in the lists; a new one takes the place of one that has no robots any more."""
        number = self._numbers.get(holder)
        if number is None:
            number = next((place for place, names in enumerate(self._names) if not names), len(self._names))
            if number == len(self._names):
                self._holders.append(holder)
                self._names.append(set())
            else:
                del self._numbers[self._holders[number]]
                self._holders[number] = holder
            self._numbers[holder] = number
        return number
