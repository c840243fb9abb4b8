"""A server with more robots than others sends some to them, a few a second: those that nobody visits.

That happens when a server was down for a while: its robots have gone to others, and do not come back by
themselves. ``balance`` decides; this is the timer around it.
"""

import asyncio
import itertools
import logging
from collections.abc import Iterator

from .. import events
from ..server.robot import Robot
from ..server.robots import Robots
from ..text import many
from .balance import Balance
from .entries import Holder
from .moves import Moves, takers
from .view import View


class Rebalancing:
    """See the module; somebody calls ``tick`` once a second.

    Attributes:
        moves: the robots that were told to go.
        surplus: how many robots are to go; None: we send none away.
    """

    def __init__(self, robots: Robots, name: str, view: View, balance: Balance) -> None:
        """Send nobody away yet.

        Args:
            robots: of our server.
            name: our name in the fleet.
            view: knows how many robots each server has.
            balance: decides.
        """
        self.moves = Moves(robots)
        self.surplus: int | None = None
        self._robots = robots
        self._name = name
        self._view = view
        self._balance = balance
        self._loop = asyncio.get_running_loop()
        self._stayed: dict[str, float] = {}  # robots that have, and when
        self._begun = 0.0
        self._before = self.moves.count.copy()

    def tick(self, *, drained: bool) -> None:
        """See whether somebody has to go; ``drained``: all are to go anyway."""
        now = self._loop.time()
        self._note_stayed(now)
        if drained:
            self.moves.forget()
        here, others = self._counts
        count = self._balance.look(now, here, None if drained else others, len(self.moves))
        chosen = list(itertools.islice(self._candidates(now), count))
        if count and not chosen and not self.moves:
            self._balance.rest(now)
        self._report(now, here, begins=bool(chosen))
        for robot in chosen:
            if robot.session is not None:
                self.moves.tell(robot, robot.session)

    def describe(self) -> Iterator[str]:
        """Lines for debugging."""
        here, _others = self._counts
        state = self._balance.state(self._loop.time())
        yield f"rebalancing: {here} here, {state}; {self.moves}, {len(self._stayed)} not to be asked again"

    @property
    def _counts(self) -> tuple[int, dict[Holder, int] | None]:
        """How many robots are here, and at each of the servers that take robots; None: it is not known."""
        view, held = self._view, self._view.entries.holders
        holders = {name: Holder(name, live.inc) for name, live in takers(view).items()}
        here = held.get(holders.pop(self._name), 0) if self._name in holders else None
        counts = {holder: held.get(holder, 0) for holder in holders.values()}
        return here or 0, counts if view.up and here is not None else None

    def _candidates(self, now: float) -> Iterator[Robot]:
        """Robots that can go without anybody noticing."""
        settled = now - self._balance.terms.settled
        for robot in self._robots.values():
            session = robot.session
            if session is None or not session.moves or session.since > settled:
                continue
            visited = robot.streams or robot.visitors.starting or session.board.visitors
            if not visited and robot.name not in self.moves and robot.name not in self._stayed:
                yield robot

    def _note_stayed(self, now: float) -> None:
        """Whoever has stayed knows no other server, or is sent here by a balancer: leave it alone."""
        self._stayed.update(dict.fromkeys(self.moves.look(), now))
        since = now - self._balance.terms.again
        for name in [name for name, when in self._stayed.items() if when < since]:
            del self._stayed[name]

    def _report(self, now: float, here: int, *, begins: bool) -> None:
        """Say so when it begins, and when it is over."""
        before = self.surplus
        self.surplus = self._balance.surplus(here) if self._balance.sheds else None
        if before is None and not begins:
            self.surplus = None  # nobody goes, for nobody can
        elif before is None:
            self._begun, self._before = now, self.moves.count.copy()
            text = f"rebalancing: {many(here, 'robot')} here, and {self._balance.mean:.0f} on average: "
            text += f"{self.surplus} to go to other servers"
            events.log(events.RebalanceBegun(), logging.INFO, text)
        elif self.surplus is None:
            done = self.moves.count - self._before
            gone, stayed = many(done["gone"], "robot"), done["stayed"]
            text = f"rebalancing is over after {now - self._begun:.0f} s: {gone} gone to other servers, "
            text += f"{stayed} stayed; {many(here, 'robot')} here, and {self._balance.mean:.0f} on average"
            events.log(events.RebalanceOver(), logging.INFO, text)
