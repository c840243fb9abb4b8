"""What a server knows of the fleet's directory: whatever the test says."""

from typing import Any

from shadow.fleet.entries import Entries
from shadow.fleet.keys import Entry
from shadow.fleet.registrar import Registrar
from shadow.wire.frames import Moved
from tests.support.fleet import entry


class Directory:
    """Stands in for the registrar, its view, and its claims.

    Attributes:
        open: it takes what servers write.
        claimed: the revision of the claim of each robot here.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries = Entries()
        self.up = True
        self.revision = 0
        self.claimed: dict[str, int] = {}
        self.audience: list[object] = []
        self.open = True

    @property
    def view(self) -> "Directory":
        return self

    @property
    def claims(self) -> "Directory":
        return self

    @property
    def intake(self) -> "Directory":
        return self

    def say(self, robot: str, server: str, sid: str, revision: int) -> None:
        """A robot is there, as of a revision."""
        found = entry(server, sid=sid, revision=revision)
        self.entries.put(robot, found, found.encode())
        self.revision = max(self.revision, revision)

    def live(self, _server: str) -> None:
        """Nobody says anything about itself."""

    def robot(self, name: str) -> Entry | None:
        return self.entries.get(name)

    def counts(self, _entry: Entry) -> bool:
        return True

    def revision_of(self, name: str) -> int:
        return self.claimed.get(name, 0)

    def moved(self, name: str) -> Moved:
        registrar: Any = self
        return Registrar.moved(registrar, name)
