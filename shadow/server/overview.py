"""What a server knows of other servers and their robots, for those who look after it: its API, its metrics.

A server by itself knows of none (``Overview``). One of a fleet has another overview in its place.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from .questions import Others


class Remote(NamedTuple):
    """A robot, as another server has announced it.

    Attributes:
        server: which server.
        live: that server is alive, so the robot counts as connected.
        services: the names of what the robot offers.
        peer: where it comes from.
        since: when its session began, in seconds since 1970 by that server's clock.
        serial: serial number of its certificate, in hexadecimal.
    """

    server: str
    live: bool
    services: tuple[str, ...]
    peer: str
    since: float
    serial: str


class Companion(NamedTuple):
    """A server of the fleet, as it has announced itself.

    Attributes:
        name: its name.
        here: it is this one.
        live: it is alive; else it is gone, and robots of its may not have turned up elsewhere yet.
        draining: it wants to be rid of its robots.
        software: its program and version; empty if it is gone.
        peer: where other servers reach it; empty: nowhere.
        robots: how many it has.
        visited: while it is drained, how many robots have streams left there; None: it does not say.
        ends: in how many seconds these are ended; None: they end by themselves.
        surplus: how many of its robots are too many, and go to other servers; None: none goes.
    """

    name: str
    here: bool
    live: bool
    draining: bool
    software: str
    peer: str
    robots: int
    visited: int | None = None
    ends: int | None = None
    surplus: int | None = None


class Happening(NamedTuple):
    """Something that has happened at another server.

    Attributes:
        kind: a word for it, as for an event of our own.
        text: one line for a human.
        fields: facts, by the names of journal fields.
    """

    kind: str
    text: str
    fields: Mapping[str, str]


class Tally(NamedTuple):
    """What is measured.

    Attributes:
        robots: how many all servers have that are alive.
        unclaimed: sessions here of which the others do not know.
        claims: how many were made, by what came of it.
        visits: how many visitors went to other servers (``out``) or came from there (``in``), by that and by
            what came of it.
        moves: how many robots were told to go to other servers, by why, and by what came of it.
    """

    robots: int
    unclaimed: int
    claims: Mapping[str, int]
    visits: Mapping[tuple[str, str], int]
    moves: Mapping[tuple[str, str], int]


class Overview:
    """Nothing: there are no other servers."""

    @property
    def server(self) -> str:
        """The name of ours among them; empty if there are none."""
        return ""

    @property
    def age(self) -> float | None:
        """For how many seconds nothing new could be learnt; None: there is nothing to learn."""
        return None

    @property
    def servers(self) -> list[Companion]:
        """All of them, ours included, in the order of their names."""
        return []

    @property
    def figures(self) -> Tally | None:
        """What is measured; None: there are no other servers."""
        return None

    @property
    def others(self) -> Others:
        """Of whom more can be asked."""
        return Others()

    def names(self) -> list[str]:
        """The robots that are at other servers now, in no order."""
        return []

    def find(self, name: str) -> Remote | None:
        """A robot that is at another server, or was there last; None: at none that we know of."""
        del name
        return None

    def watch(self, tell: Callable[[Happening], None] | None) -> None:
        """Tell what happens at other servers from now on; None: nobody any more."""
