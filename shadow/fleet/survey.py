"""What this server knows of the others and their robots, for its API and its metrics: all from the view.

What the view does not have, they can be asked (``asking``).
"""

import asyncio
from collections.abc import Callable, Mapping

from ..events import RobotConnected, RobotDisconnected
from ..server.overview import Companion, Happening, Overview, Remote, Tally
from ..server.robots import Robots
from ..text import many
from .asking import Asking
from .keys import Entry
from .peers import Peers
from .people import People
from .registrar import Registrar

JOINED, LEFT = "server-joined", "server-left"  # of happenings


class Survey(Overview):
    """See ``overview.Overview``; it is told what the view is told (``view.Subscriber``)."""

    def __init__(
        self,
        robots: Robots,
        registrar: Registrar,
        visits: Mapping[str, Mapping[str, int]],
        peers: Peers,
        people: People,
    ) -> None:
        """Look at the view from now on.

        Args:
            robots: those of this server.
            registrar: has the view.
            visits: how many there were, by their direction and by what has come of them; it changes.
            peers: the channels to other servers.
            people: knows the names of users here.
        """
        self._robots = robots
        self._registrar = registrar
        self._view = registrar.view
        self._visits = visits
        self._asking = Asking(peers, people)
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()
        self._lives: dict[str, str] = {}  # ``inc`` of each server that is alive
        self._tell: Callable[[Happening], None] | None = None

    @property
    def server(self) -> str:
        """See ``Overview``."""
        return self._registrar.name

    @property
    def age(self) -> float:
        """See ``Overview``; before the first word from the engine, since we have begun."""
        return min(self._view.age, self._loop.time() - self._begun)

    @property
    def servers(self) -> list[Companion]:
        """See ``Overview``."""
        holders = self._view.entries.holders
        names = {self.server, *self._view.servers, *(holder.server for holder in holders)}
        return [self._companion(name) for name in sorted(names)]

    def _companion(self, name: str) -> Companion:
        here, live, robots = name == self.server, self._view.live(name), self._robots.connected
        if not here:
            held = (item for item in self._view.entries.holders.items() if item[0].server == name)
            robots = sum(count for holder, count in held if live is None or holder.inc == live.inc)
        if live is None:  # we are here, whatever the engine has
            return Companion(name, here, here, False, "", "", robots)
        peer = "" if live.peer is None else str(live.peer)
        return Companion(name, here, True, live.draining, live.software, peer, robots, *live.progress)

    @property
    def figures(self) -> Tally:
        """See ``Overview``."""
        claims, writer = self._registrar.claims, self._registrar.writer
        made = {"written": writer.done, "overtaken": writer.lost, "unanswered": writer.failed}
        visits = {
            (path, result): count for path, counts in self._visits.items() for result, count in counts.items()
        }
        robots = sum(companion.robots for companion in self.servers if companion.live)
        return Tally(robots, claims.unclaimed, made, visits, self._robots.drainer.moves)

    @property
    def others(self) -> Asking:
        """See ``Overview``."""
        return self._asking

    def names(self) -> list[str]:
        """See ``Overview``; of 300,000 robots it takes some ten milliseconds."""
        names: list[str] = []
        for holder in self._view.entries.holders:
            if self._is_elsewhere(holder.server) and self._view.counts(holder):
                names += self._view.entries.held_by(holder)
        return names

    def find(self, name: str) -> Remote | None:
        """See ``Overview``."""
        entry = self._view.robot(name)
        if entry is None or not self._is_elsewhere(entry.server):
            return None
        live = self._view.counts(entry)
        return Remote(entry.server, live, entry.services, entry.address, entry.since, entry.serial)

    def _is_elsewhere(self, server: str) -> bool:
        return server != self.server

    # What happens

    def watch(self, tell: Callable[[Happening], None] | None) -> None:
        """See ``Overview``."""
        self._tell = tell

    def on_change(self, robot: str, entry: Entry | None, revision: int) -> None:
        """See ``view.Subscriber``: what robots here do, the log says."""
        del revision
        if self._tell is None:
            return
        before = self._view.entries.before
        if entry is None:
            if before is not None and self._is_elsewhere(before.server):
                text = f"robot {robot} disconnected from server {before.server}"
                fields = {"ROBOT": robot, "SERVER": before.server}
                self._tell(Happening(RobotDisconnected.kind(), text, fields))
        elif self._is_elsewhere(entry.server) and self._view.counts(entry):
            text = f"robot {robot} connected to server {entry.server} from {entry.address}"
            fields = {"ROBOT": robot, "SERVER": entry.server, "PEER": entry.address}
            self._tell(Happening(RobotConnected.kind(), text, fields))

    def on_live(self, server: str) -> None:
        """See ``view.Subscriber``."""
        live = self._view.live(server)
        before = self._lives.pop(server, None)
        if live is not None:
            self._lives[server] = live.inc
        if self._tell is None or not self._is_elsewhere(server) or before == self._lives.get(server):
            return
        fields = {"SERVER": server}
        if live is None:
            self._tell(Happening(LEFT, f"server {server} is gone", fields))
        else:
            robots = many(self._companion(server).robots, "robot")
            self._tell(Happening(JOINED, f"server {server} is there, with {robots}", fields))

    def on_reset(self) -> None:
        """See ``view.Subscriber``: what differs was told."""

    def on_engine(self, *, up: bool) -> None:
        """See ``view.Subscriber``: what was known is known."""
