"""Keeps the claims of this server's robots: what they do becomes claims, and what these order is done.

``Registrar`` takes the place of the robots' directory (``server.directory``), so a robot is welcomed when its
claim is written, or after a second.
"""

import asyncio
import logging
import time

from .. import events
from ..errors import Refused
from ..server.directory import Alone, Candidate
from ..server.robots import Robots
from ..server.session import Cause, Session
from ..wire.frames import Moved, Ping, Refusal
from .claims import WELCOME_WITHIN, Ask, Claim, Claims, Delete, End, Order, Put, Settle
from .etcd import Engine
from .keys import Entry, Keys
from .turns import in_turns
from .view import Audience, View
from .writer import Command, Writer

_TICK = 0.25  # seconds
_FIGHT_AGE, _FIGHT_LOSSES = 60.0, 3  # as in a single server: so many losses in so many seconds


class Registrar:
    """See the module.

    Attributes:
        name: the server's, in the fleet.
        view: what the engine has.
        audience: who is told what the view is told: first we, then others.
        claims: which of it is ours.
        writer: carries out what they order.
    """

    def __init__(self, robots: Robots, name: str, inc: str, keys: Keys, engine: Engine) -> None:
        """Claim what is here already, and whatever comes.

        Args:
            robots: of this server.
            name: the server's, in the fleet.
            inc: which life of it this is; see ``keys.Live``.
            keys: of the fleet.
            engine: where all servers meet.
        """
        self._robots = robots
        self.name = name
        self._inc = inc
        self._loop = asyncio.get_running_loop()
        self.audience = Audience([self])
        self.view = View(engine, keys, self.audience)
        self.claims = Claims(name, inc, self.view.counts)
        self.writer = Writer(engine, keys, self)
        self._candidates: dict[str, Candidate] = {}
        self._tracked: dict[str, tuple[Claim, Session]] = {}
        self._asked: dict[Claim, float] = {}
        self._lost: dict[str, list[float]] = {}  # when the last sessions were lost to other boots
        self._reading: asyncio.Task[None] | None = None
        self._is_anew = False  # the view was read as a whole, and ours not yet compared with it
        robots.directory = self
        for robot in robots.values():
            if robot.session is not None:
                self.note(robot.name, robot.session)

    async def close(self) -> None:
        """Say nothing more."""
        self._robots.directory = Alone()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self.writer.close()

    # What the server's robots do (directory.Directory)

    def came(self, candidate: Candidate) -> None:
        """See ``Directory``."""
        self._candidates[candidate.name] = candidate
        claim = self._track(candidate.name, candidate.session)
        self._carry_out(self.claims.came(claim, self.view.robot(candidate.name), self._loop.time()))
        if candidate.waits:  # not up to a tick longer; and thousands may come at once, so look at no other
            self._loop.call_later(WELCOME_WITHIN, self._look_at, candidate.name)

    def note(self, name: str, session: Session | None) -> None:
        """See ``Directory``."""
        candidate = self._candidates.get(name)
        if candidate is not None and candidate.waits:
            return  # the session that it is going to replace has ended
        self._candidates.pop(name, None)
        claim, known = self._tracked.get(name, (None, None))
        if known is session:
            return
        now = self._loop.time()
        if session is not None:
            claim = self._track(name, session)
            self._carry_out(self.claims.came(claim, self.view.robot(name), now, session.since))
        elif claim is not None:
            del self._tracked[name]
            self._carry_out(self.claims.ended(claim, now))

    def moved(self, name: str) -> Moved:
        """Where a robot is that is not here, as far as we know."""
        entry = self.view.robot(name)
        if entry is None or entry.server == self.name:
            return Moved()
        return Moved(entry.server, entry.revision)

    def _track(self, name: str, session: Session) -> Claim:
        claim = Claim(name, session.sid, session.boot, session.attempt)
        self._tracked[name] = claim, session
        return claim

    # What the claims order

    def _carry_out(self, orders: list[Order]) -> None:
        for order in orders:
            match order:
                case Put() | Delete():
                    self.writer.give(order)
                case Settle(claim):
                    candidate = self._answer(claim)
                    if candidate is not None:
                        candidate.welcome()
                case Ask(claim):
                    self._ask(claim)
                case End(claim, newer):
                    self._end(claim, newer)

    def _answer(self, claim: Claim) -> Candidate | None:
        """The candidate of this claim, who is about to be answered."""
        candidate = self._candidates.get(claim.robot)
        if candidate is None or candidate.session.sid != claim.sid:
            return None
        del self._candidates[claim.robot]
        return candidate

    def _ask(self, claim: Claim) -> None:
        """Have the robot prove that it is here: its answer counts, like all that it says."""
        _, session = self._tracked[claim.robot]
        self._asked[claim] = self._loop.time()
        session.channel.send(Ping(self._loop.time()))

    def _end(self, claim: Claim, newer: Entry) -> None:
        _, session = self._tracked.pop(claim.robot, (None, None))
        text = f"the robot is connected to server {newer.server} now"
        if session is not None and newer.boot != claim.boot:
            self._watch_for_fights(claim.robot, session, newer)
        candidate = self._answer(claim)
        if candidate is not None:
            candidate.refuse(Refused("superseded", text))
            return
        robot = self._robots.get(claim.robot)
        if robot is not None and robot.session is not None and robot.session.sid == claim.sid:
            robot.end_session(text, Cause.SUPERSEDED, Refusal("superseded", text))

    def _watch_for_fights(self, name: str, session: Session, newer: Entry) -> None:
        """One device starts anew now and then; two with one name take it from each other all the time."""
        now = self._loop.time()
        lost = self._lost.setdefault(name, [])
        lost.append(now)
        del lost[:-_FIGHT_LOSSES]
        if len(lost) == _FIGHT_LOSSES and now - lost[0] < _FIGHT_AGE:
            text = f"robot {name}: two devices seem to fight over this name, at {session.peer} "
            text += f"here and at {newer.address} at server {newer.server}"
            events.log(events.RobotTakenOver(robot=name, peer=newer.address), logging.WARNING, text)

    def _look_at(self, name: str) -> None:
        self._carry_out(self.claims.look(name, self._loop.time()))

    async def run(self) -> None:
        """Look at what time brings, for ever."""
        while True:
            await asyncio.sleep(_TICK)
            now = self._loop.time()
            for claim, since in list(self._asked.items()):
                tracked, session = self._tracked.get(claim.robot, (None, None))
                if tracked != claim or session is None:
                    del self._asked[claim]
                elif session.keepalive.heard_at > since:
                    del self._asked[claim]
                    self._carry_out(self.claims.heard(claim, now))
            self._carry_out(self.claims.tick(now))
            for name in [name for name, lost in self._lost.items() if now - lost[-1] > _FIGHT_AGE]:
                del self._lost[name]

    # What the writer asks and tells (writer.Client)

    def entry_of(self, put: Put) -> Entry | None:
        """See ``writer.Client``."""
        claim, session = self._tracked.get(put.robot, (None, None))
        if claim != put.claim or session is None:
            return None
        since = time.time() - (self._loop.time() - session.since)
        serial = f"{session.channel.link.certificate.serial_number:x}"
        return Entry(
            self.name, self._inc, claim.sid, claim.boot, claim.attempt,
            session.services, session.peer, round(since, 3), serial,
        )  # fmt: skip

    def answered(self, order: Command, entry: Entry | None, revision: int, *, done: bool) -> None:
        """See ``writer.Client``."""
        self._carry_out(self.claims.answered(order, entry, revision, self._loop.time(), done=done))

    def unanswered(self, order: Command) -> None:
        """See ``writer.Client``."""
        self._carry_out(self.claims.unanswered(order, self._loop.time()))

    # What the view tells (view.Subscriber)

    def on_change(self, robot: str, entry: Entry | None, revision: int) -> None:
        """See ``view.Subscriber``."""
        self._carry_out(self.claims.changed(robot, entry, revision, self._loop.time()))

    def on_live(self, server: str) -> None:
        """See ``view.Subscriber``."""

    def on_reset(self) -> None:
        """See ``view.Subscriber``."""
        self._is_anew = True
        if self.view.up:
            self._read_anew()

    def on_engine(self, *, up: bool) -> None:
        """See ``view.Subscriber``."""
        if not up:
            self._is_anew = self._is_anew or self._stop_reading()
            self._carry_out(self.claims.lost_engine())
        elif self._is_anew:
            self._read_anew()
        else:
            self._carry_out(self.claims.found_engine(self._loop.time()))

    def _read_anew(self) -> None:
        self._stop_reading()
        self._is_anew = False
        self._reading = self._loop.create_task(self._read_all())

    def _stop_reading(self) -> bool:
        """Whether that was necessary."""
        reading, self._reading = self._reading, None
        return reading is not None and reading.cancel()

    async def _read_all(self) -> None:
        """Compare all that is ours with what the engine has; only then do what has to be done about it."""
        holders = [holder for holder in self.view.entries.holders if holder.server == self.name]
        ours = [name for holder in holders for name in self.view.entries.held_by(holder)]
        async for name in in_turns(list(dict.fromkeys([*self.claims.names, *ours]))):
            entry, revision = self.view.robot(name), self.view.revision
            self._carry_out(self.claims.read(name, entry, revision, self._loop.time()))
        self._carry_out(self.claims.found_engine(self._loop.time()))
