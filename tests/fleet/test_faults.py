"""A fleet on machines of its own (network namespaces), where everything fails in turn under visitors.

Three members of an engine, three servers, a balancer, and robots, each a process that is killed, stopped,
unplugged, or cut off from some of the others, for a minute. What is tried when, and on whom, a seed decides:
it is printed, and ``SHADOW_FAULTS_SEED`` has the same happen again. Needs root: ``make test-faults``.
"""

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import Authority, Daemon, Tunnel, wait_for
from tests.support.balancer import Balancer
from tests.support.call import INTERFACE, Call
from tests.support.engine import Member, Members
from tests.support.namespaces import Net
from tests.support.sites import Fleet, Site
from tests.support.visiting import Visit, Visitors, serve, visit

SECONDS = 60.0
STOPPED = 15.0  # seconds: longer than a lease lasts
SETTLED_WITHIN = 240.0  # seconds on a busy machine; what it took is printed
AFTERMATH = 60.0  # seconds for which a fault may end streams: until then a silent peer is given up
ROBOTS = ["011", "012", "013", "014"]
SERVERS = ["s1", "s2", "s3"]
ENGINE = ["n1", "n2", "n3"]
BALANCER, ROBOTS_PLACE = "balancer", "robots"
LOSSY = "delay 5ms 2ms loss 1%"

Cause = tuple[AbstractContextManager[None], set[str], float]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make network namespaces: make test-faults"),
]


class Engine(Members):
    """Each member is on a machine of its own."""

    def __init__(self, folder: Path, net: Net) -> None:
        self.net = net
        super().__init__(folder, len(ENGINE), hosts=[net.add(name) for name in ENGINE])

    def start(self, member: Member, *more: str) -> None:
        with self.net.inside(member.name):
            super().start(member, *more)


class Machine(Site):
    """One with a server, which can be asked."""

    def boot(self) -> None:
        assert isinstance(self.fleet, Town)
        net = self.fleet.net
        host = net.address(self.name)
        with net.inside(self.name):
            self.start_with_api(
                f"--peer={host}:{self.peer}", f"--advertise={host}:{self.tunnel.port}", "--keepalive=5",
                f"--proxy-protocol={net.address(BALANCER)}",
            )  # fmt: skip

    def listed(self, *, fleet: bool) -> dict[str, str]:
        """At which server each robot is, as this one knows; or those that are here."""
        with Call(self.tunnel.ldir / INTERFACE) as call:
            found = call.get("List", {"fleet": fleet})["robots"]
        return {one["name"]: one.get("server") or self.name for one in found if one["connected"]}


@dataclass
class Robot:
    """One, in its present life.

    Attributes:
        boots: in its how-many-th life it is.
        lives: when each of them began and ended.
    """

    name: str
    town: "Town"
    boots: int = 0

    def __post_init__(self) -> None:
        self.lives: list[list[float]] = []
        self._stack = ExitStack()

    def boot(self) -> None:
        self.boots += 1
        town = self.town
        with town.net.inside(ROBOTS_PLACE):
            service = self._stack.enter_context(serve(self.name, self.boots))
            words = town.robots_tunnel.client_arguments(
                f"--rport={town.balancer.port}", "--server-name=localhost", "--lhost=127.0.0.1",
                f"--lport={service.port}", robot=self.name, rhost=town.net.address(BALANCER),
            )  # fmt: skip
            self.lives.append([time.monotonic(), float("inf")])
            self.daemon: Daemon = town.robots_tunnel.daemon(words)

    def kill(self) -> None:
        self.daemon.process.kill()
        self.daemon.process.wait()
        self.lives[-1][1] = time.monotonic()
        self._stack.close()


class Town(Fleet):
    """All of it. Faults are context managers: things are as before when the block ends."""

    def __init__(self, authority: Authority, folder: Path, net: Net) -> None:
        self.net = net
        super().__init__(authority, Engine(folder / "engine", net), folder, "town", SERVERS)
        for name in (*SERVERS, BALANCER, ROBOTS_PLACE):
            net.add(name)
        (folder / "robots").mkdir()
        self.machines = [site for site in self.sites if isinstance(site, Machine)]
        self.robots_tunnel = Tunnel(authority, folder / "robots")
        self.balancer = Balancer(
            folder, [one.tunnel.port for one in self.machines],
            host=net.address(BALANCER), at=[net.address(name) for name in SERVERS],
        )  # fmt: skip
        self.robots = {name: Robot(name, self) for name in ROBOTS}

    def site(self, name: str) -> Site:
        return Machine(self, name)

    @contextmanager
    def running(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(self.members)
            for tunnel in (*(one.tunnel for one in self.machines), self.robots_tunnel):
                stack.enter_context(tunnel)
            for machine in self.machines:
                machine.boot()
            for machine in self.machines:
                machine.follow()
            self.start_balancer()
            stack.callback(self.balancer.__exit__, None, None, None)
            for robot in self.robots.values():
                robot.boot()
                stack.callback(robot.kill)
            self.settle()
            yield

    def start_balancer(self) -> None:
        with self.net.inside(BALANCER):
            self.balancer.__enter__()

    def settle(self) -> float:
        """Wait until all know the same and every visitor gets through everywhere; when all knew the same."""
        wait_for(self._agree, "all servers to know where all robots are", SETTLED_WITHIN)
        agreed = time.monotonic()
        for machine in self.machines:
            for robot in self.robots.values():
                wait_for(lambda: self._reaches(machine, robot), f"{robot.name} at {machine.name}", 120)  # noqa: B023
        return agreed

    def _agree(self) -> bool:
        time.sleep(0.2)  # nobody should be kept from work by being asked
        try:
            views = [machine.listed(fleet=True) for machine in self.machines]
            here = {name: one.name for one in self.machines for name in one.listed(fleet=False)}
            at_engine = {name: (self.home(name) or ("",))[0] for name in ROBOTS}
        except OSError:
            return False
        return len(here) == len(ROBOTS) and all(view == here for view in (*views, at_engine))

    def _reaches(self, machine: Machine, robot: Robot) -> bool:
        made = visit(
            machine.name, machine.tunnel.socket_path(robot.name), robot.name, lambda made: made.blocks < 3
        )
        assert not made.wrong, made
        return made.how == "done" and made.boot == robot.boots

    # What goes wrong: for some time, chosen by chance; who is touched by it

    def fault(self, what: str, chance: random.Random) -> "Cause":
        """One of its kind, whom it touches, and for how many seconds it should last."""
        server, member = chance.choice(self.machines), chance.choice(self.members.members)
        robot = self.robots[chance.choice(ROBOTS)]
        name, some = server.name, chance.uniform
        others = [one for one in SERVERS if one != name]
        net, one, nobody = self.net, {name}, set[str]()
        kinds: dict[str, Callable[[], Cause]] = {
            "server killed": lambda: (self._dead(server.crash, server.boot), one, some(0, 5)),
            "server stopped": lambda: (stopped(server.daemon.process), one, STOPPED),
            "server unplugged": lambda: (net.unplugged(name), one, some(4, 12)),
            "server without its engine": lambda: (net.apart(name, ENGINE), nobody, 12.0),
            "server without its peers": lambda: (net.apart(name, others), one, some(4, 10)),
            "server alone": lambda: (net.apart(name, [*others, *ENGINE]), one, some(4, 12)),
            "member killed": lambda: (
                self._dead(member.kill, lambda: self.members.start(member)),
                nobody,
                some(0, 5),
            ),
            "leader stopped": lambda: (self.members.leader.stopped(), nobody, some(3, STOPPED)),
            "member unplugged": lambda: (net.unplugged(member.name), nobody, some(3, 8)),
            "balancer killed": lambda: (
                self._dead(self.balancer.kill, self.start_balancer),
                nobody,
                some(0, 2),
            ),
            "balancer stopped": lambda: (stopped(self.balancer.process), nobody, STOPPED),
            "robot stopped": lambda: (stopped(robot.daemon.process), {robot.name}, STOPPED),
            "robot killed": lambda: (self._dead(robot.kill, robot.boot), {robot.name}, some(0, 3)),
        }
        return kinds[what]()

    @contextmanager
    def _dead(self, kill: Callable[[], None], start: Callable[[], None]) -> Iterator[None]:
        kill()
        try:
            yield
        finally:
            start()


@contextmanager
def stopped(process: "subprocess.Popen[bytes] | None") -> Iterator[None]:
    """It believes that it lives; so do those who only see that its port takes connections."""
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@dataclass
class Fault:
    """One that has happened."""

    what: str
    touches: set[str]
    begin: float
    end: float = float("inf")


class Lane:
    """Faults one after the other, each kind in turn, in an order of their own. A context manager."""

    def __init__(self, town: Town, kinds: list[str], seed: str, seconds: float) -> None:
        self.faults: list[Fault] = []
        self._town, self._kinds, self._seconds = town, kinds, seconds
        self._chance = random.Random(f"{seed} {kinds}")  # noqa: S311
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Lane":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        end = time.monotonic() + self._seconds
        try:
            while not self.faults or time.monotonic() < end:
                for what in self._chance.sample(self._kinds, len(self._kinds)):
                    if len(self.faults) < len(self._kinds) or time.monotonic() < end:
                        self._cause(what)
        except BaseException as error:  # noqa: BLE001 - for who waits for us
            self._error = error

    def _cause(self, what: str) -> None:
        cause, touches, seconds = self._town.fault(what, self._chance)
        fault = Fault(what, touches, time.monotonic())
        self.faults.append(fault)
        with cause:
            time.sleep(seconds)
        fault.end = time.monotonic()
        time.sleep(self._chance.uniform(0.5, 3))


@pytest.fixture
def town(authority: Authority, tmp_path: Path) -> Iterator[Town]:
    with Net(LOSSY) as net:
        made = Town(authority, tmp_path, net)
        with made.running():
            yield made


OF_THE_ENGINE = ["member killed", "leader stopped", "member unplugged"]
OF_THE_REST = ["balancer killed", "balancer stopped", "robot killed", "robot stopped"]
OF_SERVERS = [
    "server killed", "server stopped", "server unplugged", "server without its engine",
    "server without its peers", "server alone",
]  # fmt: skip


@pytest.mark.parametrize(
    ("lanes", "seconds"),
    [([OF_THE_ENGINE], SECONDS / 2), ([OF_SERVERS, [*OF_THE_ENGINE, *OF_THE_REST]], SECONDS)],
    ids=["the engine", "everything"],
)
def test_whatever_fails_visitors_reach_the_right_robot(
    town: Town, lanes: list[list[str]], seconds: float
) -> None:
    seed = os.environ.get("SHADOW_FAULTS_SEED") or f"{random.SystemRandom().randrange(10**6)}"
    lines = town.net.lossy or "without loss: this kernel has no netem"
    print(f"SHADOW_FAULTS_SEED={seed}, lines {lines}")  # noqa: T201 - for whoever wants the same again
    with ExitStack() as stack:
        visitors = [
            stack.enter_context(
                Visitors(one.name, one.tunnel.ldir, ROBOTS, seed, lambda name, one=one: knows(one, name))  # type: ignore[misc]
            )
            for one in town.machines
        ]
        with ExitStack() as going_wrong:
            running = [going_wrong.enter_context(Lane(town, kinds, seed, seconds)) for kinds in lanes]
        agreed = town.settle()
    faults = [fault for lane in running for fault in lane.faults]
    visits = [made for one in visitors for made in one.visits]
    print(report(faults, visits, agreed))  # noqa: T201
    check(town, faults, visits, [stay for one in visitors for stay in one.stays])
    if lanes == [OF_THE_ENGINE]:
        assert {made.how for made in visits} == {"done"}, "the engine is on nobody's way"


def knows(machine: Machine, robot: str) -> str:
    """At which server a machine takes a robot to be; nothing, if it does not say."""
    with contextlib.suppress(OSError, EOFError, AssertionError):
        return machine.listed(fleet=True).get(robot, "")
    return ""


def report(faults: list[Fault], visits: list[Visit], agreed: float) -> str:
    """For whoever looks at how it went."""
    begin, end = min(fault.begin for fault in faults), max(fault.end for fault in faults)
    told = [
        f"{fault.begin - begin:6.1f} to {fault.end - begin:6.1f} s: {fault.what} {sorted(fault.touches)}"
        for fault in sorted(faults, key=lambda fault: fault.begin)
    ]
    ways = Counter(made.how for made in visits)
    slowest = max(made.end - made.begin for made in visits if made.how == "done" and made.blocks < 20)
    told.append(f"{len(visits)} visits: {', '.join(f'{count} {how}' for how, count in ways.items())}")
    told.append(
        f"all knew the same {agreed - end:.1f} s after the last fault; slowest short visit: {slowest:.1f} s"
    )
    return "\n".join(told)


def check(town: Town, faults: list[Fault], visits: list[Visit], stays: list[tuple[Visit, str]]) -> None:
    assert [made for made in visits if made.wrong] == []
    for made in visits:
        if made.boot:
            ended = town.robots[made.robot].lives[made.boot - 1][1]
            assert ended > made.begin, f"a life that was over has answered: {made}"
    for made, home in stays:
        ends = {made.server, made.robot, home}
        why = [
            fault for fault in faults
            if fault.touches & ends and fault.begin < made.end < fault.end + AFTERMATH
        ]  # fmt: skip
        assert made.how == "done" or why, f"nothing has touched its ends, and yet it was cut: {made}, {home}"
    logs = [path for path in town.folder.rglob("*.log") if path.name.startswith(("server-", "client-"))]
    assert len(logs) >= len(SERVERS) + len(ROBOTS)
    for path in logs:
        text = path.read_text(errors="replace")
        for unwanted in ("please report", "Traceback", "seem to fight"):
            assert unwanted not in text, f"{path}: {unwanted}"
