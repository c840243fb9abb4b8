"""A fleet in which everything goes wrong: what ``claims`` is tested in.

Servers that run the real ``Claims``, an engine that is linearizable and slow, watches that lag, partitions,
robots that lose their network silently or in order, reboot, move, and whose HELLOs arrive late. Time is
simulated, and all chance comes from one seed, so a run that fails can be run again.
"""

import functools
import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from shadow.fleet.claims import WELCOME_WITHIN, Ask, Claim, Claims, Delete, End, Order, Put, Settle
from shadow.fleet.keys import Entry

LEASE = 10.0  # seconds without the engine after which a server counts as gone
KEEPALIVE = 30.0
TICK = 0.25
PATIENCE = 3.0  # seconds after which an answer of the engine is not expected any more


class Trouble(NamedTuple):
    """One thing that goes wrong: ``after`` seconds from the one before it, with ``kind``, to ``whom``."""

    after: float
    kind: str
    whom: int
    lasts: float


KINDS = ("silent", "orderly", "reboot", "gone", "crash", "partition", "outage")


class Store:
    """The engine: the present entries, and everything that has happened."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.revision = 0
        self.log: list[tuple[int, str, Entry | None]] = []

    def swap(self, order: Put | Delete, server: str, inc: int) -> tuple[bool, Entry | None]:
        """Carry out an order; tell whether it was, and what the entry is now."""
        present = self.entries.get(order.robot)
        if (present.revision if present else 0) != order.expected:
            return False, present
        self.revision += 1
        if isinstance(order, Put):
            claim = order.claim
            self.entries[claim.robot] = Entry(
                server, str(inc), claim.sid, claim.boot, claim.attempt, revision=self.revision
            )
        else:
            del self.entries[order.robot]
        entry = self.entries.get(order.robot)
        self.log.append((self.revision, order.robot, entry))
        return True, entry


@dataclass(eq=False)
class Session:
    """A session as its server has it; whether the robot is still in it only the robot knows."""

    claim: Claim
    began: float
    heard: float
    welcomed: bool = False


class Server:
    """One server: the real claims, a lagging view, sessions."""

    def __init__(self, world: "World", name: str, claims: type[Claims]) -> None:
        self.world, self.name = world, name
        self.sessions: dict[str, Session] = {}
        self.view: dict[str, Entry] = {}
        self.read = 0  # entries of the log that the view has
        self.seen = 0  # revision
        self.cut_off_until = -1.0
        self.up = False
        self.renewed = 0.0
        self.inc = 0
        self._kind = claims
        self.claims = claims(name, str(self.inc), world.counts)

    @property
    def reaches_engine(self) -> bool:
        return self.cut_off_until <= self.world.now

    # What robots do

    def hello(self, claim: Claim) -> None:
        world, old = self.world, self.sessions.get(claim.robot)
        if old is not None:
            if old.claim.boot == claim.boot and claim.attempt <= old.claim.attempt:
                world.refused(claim)
                return
            self._drop(old, "local")
        self.sessions[claim.robot] = session = Session(claim, world.now, world.now)
        world.later(KEEPALIVE, self._keepalive, session)
        self._obey(self.claims.came(claim, self.view.get(claim.robot), world.now))

    def hung_up(self, claim: Claim) -> None:
        session = self.sessions.get(claim.robot)
        if session is not None and session.claim == claim:
            self._drop(session, "fin")

    def _drop(self, session: Session, why: str) -> None:
        del self.sessions[session.claim.robot]
        self._obey(self.claims.ended(session.claim, self.world.now))
        self.world.dropped(session.claim, why)

    def _keepalive(self, session: Session) -> None:
        if self.sessions.get(session.claim.robot) is not session:
            return
        if self.world.is_in(session.claim):
            self._heard(session)
        elif self.world.now - session.heard > 3 * KEEPALIVE:
            self._drop(session, "silent")
            return
        self.world.later(KEEPALIVE, self._keepalive, session)

    def _heard(self, session: Session) -> None:
        if self.sessions.get(session.claim.robot) is session and self.world.is_in(session.claim):
            session.heard = self.world.now
            self._obey(self.claims.heard(session.claim, self.world.now))

    def crash(self) -> None:
        """The daemon is killed, and starts again: its sessions are gone, and their robots notice."""
        sessions, self.sessions = list(self.sessions.values()), {}
        self.up, self.inc = False, self.inc + 1
        self.claims = self._kind(self.name, str(self.inc), self.world.counts)
        for session in sessions:
            self.world.dropped(session.claim, "fin")

    # What happens at the engine

    def tick(self) -> None:
        world = self.world
        if self.reaches_engine:
            self.renewed = world.now
            if not self.up:
                self.up = True
                self.view, self.read, self.seen = (
                    dict(world.store.entries),
                    len(world.store.log),
                    world.store.revision,
                )
                self._obey(self.claims.found_engine(world.now))
                for name in dict.fromkeys([*self.claims.names, *self.view]):
                    entry = self.view.get(name)
                    self._obey(self.claims.read(name, entry, self.seen, world.now))
        elif self.up and world.random.random() < 0.2:  # it takes some time until that is noticed
            self.up = False
            self._obey(self.claims.lost_engine())
        self._obey(self.claims.tick(world.now))
        self._check()
        world.later(TICK, self.tick)

    def _check(self) -> None:
        """What must be so at any time."""
        for name, session in self.sessions.items():
            if not session.welcomed and self.world.now - session.began > WELCOME_WITHIN + TICK:
                self.world.faults.append(f"{name} waits for its WELCOME by {self.name}")
            entry, claim = self.view.get(name), session.claim
            if not self.up or entry != self.world.store.entries.get(name):
                continue  # it does not see, or it sees something that it may know to be over
            if entry and entry.boot == claim.boot and entry.attempt > claim.attempt:
                self.world.faults.append(f"{self.name} sees {entry}, and keeps {claim}")

    def watch(self) -> None:
        world, log = self.world, self.world.store.log
        while self.up and self.reaches_engine and self.read < len(log) and world.random.random() < 0.8:
            self.seen, name, entry = log[self.read]
            self.read += 1
            if entry is None:
                self.view.pop(name, None)
            else:
                self.view[name] = entry
            self._obey(self.claims.changed(name, entry, self.seen, world.now))
        world.later(world.random.choice([0.005, 0.02, 0.3]), self.watch)

    def _obey(self, orders: Iterable[Order]) -> None:
        for order in orders:
            match order:
                case Put() | Delete():
                    self._send(order)
                case Settle(claim):
                    session = self.sessions.get(claim.robot)
                    if session is not None and session.claim == claim:
                        session.welcomed = True
                case Ask(claim):
                    session = self.sessions[claim.robot]
                    self.world.later(0.1 + 0.2 * self.world.random.random(), self._heard, session)
                case End(claim):
                    session = self.sessions[claim.robot]
                    assert session.claim == claim
                    self._drop(session, "superseded")

    def _send(self, order: Put | Delete) -> None:
        world, claims, inc = self.world, self.claims, self.inc

        def land() -> None:
            done, entry = world.store.swap(order, self.name, inc)
            arrive = functools.partial(answer, entry, world.store.revision, done=done)
            world.later(world.random.choice([0.001, 0.01, 0.2]), arrive)

        def answer(entry: Entry | None, revision: int, *, done: bool) -> None:
            if self.claims is not claims or not self.reaches_engine:
                return  # nobody is there any more who gave it; or the answer is lost on its way
            self._obey(claims.answered(order, entry, revision, world.now, done=done))

        def give_up() -> None:
            if self.claims is claims:  # which ignores it if the answer was there in time
                self._obey(claims.unanswered(order, world.now))

        world.later(PATIENCE, give_up)
        if self.reaches_engine:
            world.later(world.random.choice([0.003, 0.02, 0.02, 1.5, 4.0]), land)


@dataclass
class Robot:
    """A robot: at most one session is its newest."""

    name: str
    boot: int = 0
    attempt: int = 0
    claim: Claim | None = None
    server: Server | None = None
    away: bool = False


class World:
    """Servers, robots, an engine, and what goes wrong."""

    def __init__(
        self,
        seed: int,
        troubles: Iterable[Trouble],
        claims: type[Claims] = Claims,
        servers: int = 3,
        robots: int = 6,
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311
        self.now = 0.0
        self.store = Store()
        self.faults: list[str] = []
        self.sids = self.moves = self.wrongly_ended = 0
        self._events: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = 0
        self.servers = {f"s{number}": Server(self, f"s{number}", claims) for number in range(servers)}
        self.robots = {f"r{number}": Robot(f"r{number}") for number in range(robots)}
        for server in self.servers.values():
            server.tick()
            server.watch()
        for robot in self.robots.values():
            self.later(self.random.random(), self.dial, robot)
        when = 1.0
        for trouble in troubles:
            when += trouble.after
            self.later(when, self._make_trouble, trouble)
        self.calm_from = when

    def later(self, delay: float, do: Callable[..., object], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, do, arguments))

    def run(self) -> list[str]:
        """Live through all troubles and some quiet; return what is wrong at the end."""
        end, quiet = self.calm_from + 240.0, False
        while self._events and self.now < end:
            self.now, _, do, arguments = heapq.heappop(self._events)
            if not quiet and self.now > self.calm_from:
                quiet = True
                for server in self.servers.values():
                    server.cut_off_until = -1.0
            do(*arguments)
        return self.faults + [
            complaint for robot in self.robots.values() for complaint in self._complaints(robot)
        ]

    def _complaints(self, robot: Robot) -> Iterable[str]:
        claim, entry = robot.claim, self.store.entries.get(robot.name)
        if robot.server is None:
            if entry is not None:
                yield f"{robot.name} has gone for good, and the entry is {entry}"
            return
        if claim is None:
            yield f"{robot.name} has no session"
            return
        here = [server.name for server in self.servers.values() if robot.name in server.sessions]
        if here != [robot.server.name]:
            yield f"{robot.name} is at {robot.server.name}, and has sessions at {here}"
        if entry is None or entry.sid != claim.sid or entry.server != robot.server.name:
            yield f"{robot.name}: the entry is {entry}, the session {claim}"
        for server in self.servers.values():
            if server.view.get(robot.name) != entry:
                yield f"{robot.name}: {server.name} sees {server.view.get(robot.name)}, and it is {entry}"
        session = robot.server.sessions.get(robot.name)
        if session is not None and not session.welcomed:
            yield f"{robot.name} was not welcomed"
        revision = robot.server.claims.revision_of(robot.name)
        if entry is not None and revision != entry.revision:
            yield f"{robot.name}: its server believes in revision {revision}, and it is {entry.revision}"

    # Robots

    def is_in(self, claim: Claim) -> bool:
        return self.robots[claim.robot].claim == claim

    def counts(self, entry: Entry) -> bool:
        server = self.servers[entry.server]
        return self.now - server.renewed < LEASE and entry.inc == str(server.inc)

    def dial(self, robot: Robot) -> None:
        if robot.claim is not None or robot.away:
            return
        self.sids += 1
        self.moves += 1
        robot.attempt += 1
        robot.claim = Claim(robot.name, str(self.sids), f"{robot.name}.{robot.boot}", robot.attempt)
        robot.server = self.random.choice(list(self.servers.values()))
        self.later(self.random.choice([0.02, 0.1, 3.0]), robot.server.hello, robot.claim)

    def refused(self, claim: Claim) -> None:
        self.dropped(claim, "superseded")

    def dropped(self, claim: Claim, why: str) -> None:
        """A server has ended a session; the robot dials again if it was in it."""
        robot = self.robots[claim.robot]
        if robot.claim == claim:
            self.wrongly_ended += why == "superseded"
            self._leave(robot, self.random.random() * 0.5)

    def _leave(self, robot: Robot, pause: float) -> None:
        robot.claim = None
        self.later(pause, self.dial, robot)

    # Troubles

    def _make_trouble(self, trouble: Trouble) -> None:
        robot = list(self.robots.values())[trouble.whom % len(self.robots)]
        server = list(self.servers.values())[trouble.whom % len(self.servers)]
        match trouble.kind:
            case "silent" if robot.claim is not None:
                self._leave(robot, self.random.random() * 0.5)
            case "orderly" if robot.claim is not None and robot.server is not None:
                claim, at = robot.claim, robot.server
                self._leave(robot, self.random.random() * 0.5)
                self.later(self.random.choice([0.01, 0.5]), at.hung_up, claim)
            case "reboot" if robot.server is not None:
                robot.boot, robot.attempt, robot.claim = robot.boot + 1, 0, None
                robot.away = True
                self.later(self.random.choice([0.5, 20.0]), self._up_again, robot)
            case "gone":  # for good
                left, was_in = robot.server, robot.claim
                robot.away, robot.claim, robot.server = True, None, None
                if left is not None and was_in is not None and self.random.random() < 0.7:
                    self.later(self.random.choice([0.0, 0.01, 2.0]), left.hung_up, was_in)
            case "crash":
                server.crash()
            case "partition":
                server.cut_off_until = self.now + trouble.lasts
            case "outage":
                for each in self.servers.values():
                    each.cut_off_until = self.now + trouble.lasts
            case _:  # it has no session to lose
                pass

    def _up_again(self, robot: Robot) -> None:
        robot.away = False
        self.dial(robot)


def random_troubles(seed: int, count: int = 150) -> list[Trouble]:
    """Troubles in the proportions that were found to be the hardest."""
    chance = random.Random(seed)  # noqa: S311
    weights = (30, 20, 14, 1, 3, 15, 3)
    return [
        Trouble(
            chance.expovariate(0.5),
            chance.choices(KINDS, weights)[0],
            chance.randrange(60),
            chance.choice([1, 8, 40]),
        )
        for _ in range(count)
    ]
