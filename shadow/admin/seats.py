"""Seats for callers: who has to leave when somebody comes and all are taken; no I/O and no clock."""

from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Guest:
    """Somebody with a seat.

    Attributes:
        source: where it comes from, e.g. a user or an address.
        first: it has priority over all others, and they cannot make it leave.
        busy: it is being answered; otherwise it is its turn to say something.
    """

    source: str
    first: bool = False
    busy: bool = False


class Seats:
    """A limited number of seats; when all are taken, a newcomer gets one from the source with the most.

    So silent guests keep nobody out, and a source that takes many seats loses them to the others.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._guests: dict[Guest, None] = {}  # the one that has been silent longest comes first

    def came(self, guest: Guest) -> Guest | None:
        """Somebody came; return who has to leave: nobody, somebody else, or the newcomer."""
        self._guests[guest] = None
        if len(self._guests) <= self._number:
            return None
        leaver = self._who_leaves(guest)
        del self._guests[leaver]
        return leaver

    def stirred(self, guest: Guest, *, busy: bool) -> None:
        """A guest has said or taken something."""
        guest.busy = busy
        if guest in self._guests:
            del self._guests[guest]
            self._guests[guest] = None

    def left(self, guest: Guest) -> None:
        """A guest has left."""
        self._guests.pop(guest, None)

    def _who_leaves(self, newcomer: Guest) -> Guest:
        parties: dict[str, list[Guest]] = {}
        for guest in self._guests:
            parties.setdefault(guest.source, []).append(guest)
        own = parties.pop(newcomer.source)
        others = [party for party in parties.values() if not party[0].first]
        crowd = max(others, key=len, default=[])
        if len(crowd) > (0 if newcomer.first else len(own)):
            return _least_missed(crowd)
        if newcomer.first and len(own) > 1:
            return _least_missed(own[:-1])
        return _least_missed(own)


def _least_missed(party: list[Guest]) -> Guest:
    """One that is not being answered, if there is one; of those, the one that has been silent longest."""
    return min(party, key=lambda guest: guest.busy)
