"""Whose robots are whose: each server claims those that are connected to it, and the newest session wins.

What stands at the engine for a robot is an *entry*: the server that was last to claim it. A claim is one
compare-and-swap on the entry's revision, so two servers never both succeed on the same state. Who is newer
is decided without the clock of another machine: a HELLO carries the *boot* of the robot's program, a random
number, and the *attempt* within it. Of one boot, the higher attempt is newer. Of two boots nobody can tell;
so whoever claims late must first have heard from the robot, after having seen the other's entry.

No I/O and no clock: the caller says what has happened and when, and carries out the *orders* that come back.
The same code runs in the server and in the model that tests it under partitions, outages and late messages.
Everything is about one server, and all revisions are the engine's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from .keys import Entry

FRESH = 2.0  # seconds after its HELLO for which a session counts as the robot's newest
WELCOME_WITHIN = 1.0  # seconds that a robot waits for the engine, at most
_PROOF_PAUSE = 5.0  # seconds between two PINGs to a robot that is to prove that it is here
_RETRY_FIRST, _RETRY_MAX = 0.5, 8.0  # seconds until an order that nobody has answered is given again
_GRACE = 60.0  # seconds for which entries of before a crash stay: their robots are about to return


class Claim(NamedTuple):
    """A session that is here, as far as others are concerned.

    Attributes:
        robot: the robot's name.
        sid: names the session; not the secret that data channels show.
        boot: of the robot's program, random.
        attempt: the number of this HELLO within the boot.
    """

    robot: str
    sid: str
    boot: str
    attempt: int


class Put(NamedTuple):
    """Order: write a claim's entry, if the present one has the revision ``expected``; 0: if there is none."""

    claim: Claim
    expected: int

    @property
    def robot(self) -> str:
        """Whose entry it is."""
        return self.claim.robot


class Delete(NamedTuple):
    """Order: remove a robot's entry, if it has the revision ``expected``."""

    robot: str
    expected: int


class Settle(NamedTuple):
    """Order: welcome the robot. ``claimed``: its entry is written; if not, that is still to be done."""

    claim: Claim
    claimed: bool


class Ask(NamedTuple):
    """Order: PING the robot, which is to prove that it is here."""

    claim: Claim


class End(NamedTuple):
    """Order: end a session, because the robot has a newer one, that of the entry."""

    claim: Claim
    newer: Entry


Order = Put | Delete | Settle | Ask | End


@dataclass(slots=True)
class _Robot:
    """What is known of one robot.

    Attributes:
        name: its name.
        entry: the newest entry at the engine that we know of; None: it has none.
        known: the revision as of which that is so.
        claim: its session here.
        since: when that session's HELLO came.
        settled: it has been welcomed, or need not be.
        revision: of the session's entry; 0: the session is not claimed.
        doubted: since when the robot is to prove that it is here; None: it need not.
        heard: when it was last heard.
        under_way: the order that has no answer yet.
        pause: seconds until the next one if there is no answer.
        due: when to look again even if nothing happens.
    """

    name: str
    entry: Entry | None = None
    known: int = 0
    claim: Claim | None = None
    since: float = 0.0
    settled: bool = True
    revision: int = 0
    doubted: float | None = None
    heard: float = 0.0
    under_way: Put | Delete | None = None
    pause: float = _RETRY_FIRST
    due: float | None = None

    def learns(self, entry: Entry | None, revision: int) -> None:
        """This was the entry as of ``revision``."""
        if revision >= self.known:
            if entry != self.entry:
                self.doubted = None
            self.entry, self.known = entry, revision


class Claims:
    """One server's claims.

    Attributes:
        up: the engine answers.
    """

    def __init__(self, server: str, inc: str, counts: Callable[[Entry], bool]) -> None:
        """Begin without sessions, and without the engine.

        Args:
            server: our name.
            inc: which life of ours this is; see ``keys.Live``.
            counts: tells whether an entry's server lives, and is still the one that wrote it.
        """
        self.up = False
        self._server = server
        self._inc = inc
        self._counts = counts
        self._robots: dict[str, _Robot] = {}
        self._due: dict[str, None] = {}  # a set whose order does not change from run to run
        self._orders: list[Order] = []

    @property
    def unclaimed(self) -> int:
        """How many sessions are here that have no entry."""
        return sum(robot.claim is not None and not robot.revision for robot in self._robots.values())

    def revision_of(self, name: str) -> int:
        """The revision of the entry of the robot's session here; 0: it has none."""
        robot = self._robots.get(name)
        return 0 if robot is None else robot.revision

    # What happens to sessions

    def came(self, claim: Claim, entry: Entry | None, now: float, since: float | None = None) -> list[Order]:
        """A session is here from now on; an older one of the same robot is not, any more.

        Args:
            claim: the session.
            entry: the newest entry that we know of.
            now: in seconds, by our own clock.
            since: if the robot was welcomed before, when its HELLO came.
        """
        robot = self._robots.setdefault(claim.robot, _Robot(claim.robot))
        if entry is not None:
            robot.learns(entry, entry.revision)
        robot.claim, robot.heard = claim, now
        robot.since, robot.settled = (now, False) if since is None else (since, True)
        robot.revision, robot.doubted, robot.pause = 0, None, _RETRY_FIRST
        self._look_again(robot, None if robot.settled else now + WELCOME_WITHIN)
        if not self.up:
            self._settle(robot, claimed=False)
        self._reconsider(robot, now)
        return self._taken()

    def ended(self, claim: Claim, now: float) -> list[Order]:
        """A session is over."""
        robot = self._of(claim)
        if robot is not None:
            robot.claim, robot.revision = None, 0
            self._reconsider(robot, now)
        return self._taken()

    def heard(self, claim: Claim, now: float) -> list[Order]:
        """The robot has said something in this session."""
        robot = self._of(claim)
        if robot is not None:
            robot.heard = now
            if robot.doubted is not None:
                self._reconsider(robot, now)
        return self._taken()

    # What happens at the engine

    def changed(self, name: str, entry: Entry | None, revision: int, now: float) -> list[Order]:
        """A robot has another entry since ``revision``; None: it has none."""
        robot = self._robots.get(name)
        if robot is None and entry is not None and entry.server == self._server:
            # Written by an order of ours that nobody answered, for a session that has ended since.
            robot = self._robots[name] = _Robot(name)
        if robot is not None and revision > robot.known:
            robot.learns(entry, revision)
            self._reconsider(robot, now)
        return self._taken()

    def answered(
        self, order: Put | Delete, entry: Entry | None, revision: int, now: float, *, done: bool
    ) -> list[Order]:
        """There is an answer: whether an order was carried out, and what the entry is as of ``revision``."""
        robot = self._robots.get(order.robot)
        if robot is not None and robot.under_way is order:
            robot.under_way = None
            if done and isinstance(order, Put) and order.claim == robot.claim:
                if entry is None or entry.sid != order.claim.sid:
                    # It cannot be read as it was written: a bug, and no reason to write without a pause.
                    robot.learns(entry, revision)
                    self._try_later(robot, now)
                    return self._taken()
                robot.revision = revision
            robot.pause = _RETRY_FIRST
            robot.learns(entry, revision)
            self._reconsider(robot, now)
        return self._taken()

    def unanswered(self, order: Put | Delete, now: float) -> list[Order]:
        """There will be no answer: nobody knows whether an order was, is, or will be carried out."""
        robot = self._robots.get(order.robot)
        if robot is not None and robot.under_way is order:
            robot.under_way = None
            self._try_later(robot, now)
        return self._taken()

    def lost_engine(self) -> list[Order]:
        """The engine is away: nobody waits for it, and what others do in the meantime remains unseen."""
        self.up = False
        for robot in self._robots.values():
            self._settle(robot, claimed=False)
        return self._taken()

    def found_engine(self, now: float) -> list[Order]:
        """The engine is back: what could not be done meanwhile is done now.

        Unless every change of the meantime is told with ``changed``, ``read`` has to follow for each robot.
        """
        self.up = True
        for robot in list(self._robots.values()):
            if not robot.revision:
                self._reconsider(robot, now)
        return self._taken()

    @property
    def names(self) -> list[str]:
        """The robots that something is known about."""
        return list(self._robots)

    def read(self, name: str, entry: Entry | None, revision: int, now: float) -> list[Order]:
        """This was a robot's entry as of ``revision``, whatever we knew before; None: it had none.

        Names for which it is needed: ``names``, and those whose entries name us.
        """
        if name not in self._robots and (entry is None or entry.server != self._server):
            return []
        robot = self._robots.setdefault(name, _Robot(name))
        if revision < robot.known:  # an engine that was restored from a backup has gone back
            robot.known = robot.revision = 0
        robot.learns(entry, revision)
        if robot.claim is None and entry is not None and not self._counts(entry):
            self._look_again(robot, now + _GRACE)
        else:
            self._reconsider(robot, now)
        return self._taken()

    def tick(self, now: float) -> list[Order]:
        """Time has passed; to be called several times a second."""
        for robot in [self._robots[name] for name in self._due]:
            self._look_at(robot, now)
        return self._taken()

    def look(self, name: str, now: float) -> list[Order]:
        """Time has passed for one robot: the same, and the others need not be looked at."""
        if name in self._due:
            self._look_at(self._robots[name], now)
        return self._taken()

    # What is to be done

    def _reconsider(self, robot: _Robot, now: float) -> None:
        """Give the next order about a robot, if there is one to give."""
        claim, entry = robot.claim, robot.entry
        if claim is None:
            self._clear_away(robot)
        elif entry is not None and entry.sid == claim.sid and self._is_by_us(entry):
            robot.revision, robot.doubted = entry.revision, None
            self._settle(robot, claimed=True)
        elif entry is not None and _supersedes(entry, claim, robot.revision):
            self._orders.append(End(claim, entry))
            robot.claim, robot.revision = None, 0
            self._clear_away(robot)
        else:
            robot.revision = 0
            if self.up and robot.under_way is None:
                self._claim(robot, claim, now)

    def _claim(self, robot: _Robot, claim: Claim, now: float) -> None:
        entry = robot.entry
        if entry is not None and self._is_doubtful(robot, entry, claim, now):
            if robot.doubted is None:
                robot.doubted = now
            if robot.heard <= robot.doubted:
                if robot.due is None:
                    self._orders.append(Ask(claim))
                    self._look_again(robot, now + _PROOF_PAUSE)
                return
        self._order(robot, Put(claim, 0 if entry is None else entry.revision))

    def _is_doubtful(self, robot: _Robot, entry: Entry, claim: Claim, now: float) -> bool:
        """Whether the entry may be the newer one, so that the robot has to prove that it is here."""
        late = now - robot.since > FRESH
        return late and entry.boot != claim.boot and self._counts(entry)

    def _is_by_us(self, entry: Entry) -> bool:
        """Whether we have written it, and not as another server, nor before a crash: so others believe it."""
        return (entry.server, entry.inc) == (self._server, self._inc)

    def _clear_away(self, robot: _Robot) -> None:
        """There is no session: remove the entry if it is ours, and forget the robot."""
        if robot.under_way is not None:
            return
        self._look_again(robot, None)
        if robot.entry is None or robot.entry.server != self._server:
            del self._robots[robot.name]
        elif self.up:
            self._order(robot, Delete(robot.name, robot.entry.revision))

    def _settle(self, robot: _Robot, *, claimed: bool) -> None:
        if robot.claim is not None and not robot.settled:
            robot.settled = True
            self._orders.append(Settle(robot.claim, claimed))

    def _try_later(self, robot: _Robot, now: float) -> None:
        self._settle(robot, claimed=False)
        self._look_again(robot, now + robot.pause)
        robot.pause = min(2 * robot.pause, _RETRY_MAX)

    def _order(self, robot: _Robot, order: Put | Delete) -> None:
        robot.under_way = order
        self._orders.append(order)

    def _look_at(self, robot: _Robot, now: float) -> None:
        if robot.due is not None and robot.due <= now:
            self._look_again(robot, None)
            if now - robot.since >= WELCOME_WITHIN:
                self._settle(robot, claimed=False)
            self._reconsider(robot, now)

    def _look_again(self, robot: _Robot, when: float | None) -> None:
        robot.due = when
        if when is None:
            self._due.pop(robot.name, None)
        else:
            self._due[robot.name] = None

    def _of(self, claim: Claim) -> _Robot | None:
        robot = self._robots.get(claim.robot)
        return robot if robot is not None and robot.claim == claim else None

    def _taken(self) -> list[Order]:
        orders, self._orders = self._orders, []
        return orders


def _supersedes(entry: Entry, claim: Claim, revision: int) -> bool:
    """Whether an entry is newer than a claim, whose own entry was written at ``revision`` (0: not yet)."""
    if entry.boot == claim.boot:
        return entry.attempt > claim.attempt
    return 0 < revision < entry.revision
