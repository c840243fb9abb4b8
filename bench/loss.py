"""Three servers with real robots, and one of them is killed: how soon its robots are back and can be visited.

Robots, servers and the engine share this machine.
"""

import argparse
import contextlib
import random
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from shadow.ctl.query import Answers

from .engine import Engine
from .load import begin
from .processes import BenchError, Group, cpu_of, free_port
from .robots import Robots
from .servers import API, Probe, Server, member_options
from .tunnels import Keys, start_service

Figures = dict[str, float]

_HOSTS = "127.0.1.1", "127.0.1.2", "127.0.1.3"
_FLEET = "loss"
_PATIENCE = 900.0  # seconds
_LOOK = 0.1  # seconds
_AT_ONCE = 200  # robots of each process that are on their way at first, all of which it has to serve
_SAMPLE = 300  # robots that are visited when all are back


def measure(words: argparse.Namespace, keys: Keys, folder: Path) -> Figures:
    """All of it; ``words.robots`` for each server."""
    count = words.robots * len(_HOSTS)
    with (
        Engine(folder / "engine") as engine,
        Group(folder / "service") as service,
        _servers(words, engine, keys, folder) as servers,
    ):
        robots = Robots(count, words.standby, words.ktls, words.processes)
        try:
            robots.start(servers[0].port, start_service(service), keys.folder, _HOSTS)
            figures = _come(count, robots, servers)
            figures |= _rest(words, servers, engine)
            return figures | _kill(count, servers)
        finally:
            robots.close()


@contextlib.contextmanager
def _servers(
    words: argparse.Namespace, engine: Engine, keys: Keys, folder: Path
) -> Iterator[Sequence[Server]]:
    port, servers = free_port(), []
    options = f"--ktls={words.ktls}", f"--keepalive={words.keepalive}"
    with contextlib.ExitStack() as stack:
        for number, host in enumerate(_HOSTS, 1):
            place = folder / f"s{number}"
            passed = {"shadow-server": f"{host}:{port}", "shadow-api": str(place / "sockets" / API)}
            member = member_options(_FLEET, f"s{number}", engine, keys)
            server = Server(keys, place, *member, *options, passed=passed)
            server.start()
            stack.callback(server.stop)
            server.wait_for_log("following the fleet's engine")
            servers.append(server)
        yield servers


def _wait_until_all(count: int, server: Server, dead: str = "") -> float:
    """Seconds until all robots are somewhere, by the word of one server; of a dead one they count nothing."""
    began = time.monotonic()
    while sum(robots for name, robots in _robots_at(server).items() if name != dead) < count:
        if time.monotonic() - began > _PATIENCE:
            raise BenchError(f"after {_PATIENCE:g} s not all robots are connected")
        time.sleep(_LOOK)
    return time.monotonic() - began


def _robots_at(server: Server) -> dict[str, int]:
    with Answers(server.sockets) as answers:
        return {one["name"]: one["robots"] for one in answers.call("Servers")["servers"]}


def _come(count: int, robots: Robots, servers: Sequence[Server]) -> Figures:
    robots.say(f"start {_AT_ONCE}")
    seconds = _wait_until_all(count, servers[0])
    return {f"{count} robots come to three servers: a second": count / seconds}


def _rest(words: argparse.Namespace, servers: Sequence[Server], engine: Engine) -> Figures:
    time.sleep(words.keepalive)  # until everyone is at its pace, and stands by
    before = [server.cpu for server in servers], [cpu_of(member.pid) for member in engine.members]
    time.sleep(words.window)
    after = [server.cpu for server in servers], [cpu_of(member.pid) for member in engine.members]
    ours, theirs = (
        max(new - old for new, old in zip(*pair, strict=True)) / words.window * 100
        for pair in zip(after, before, strict=True)
    )
    return {
        f"at rest: CPU of a server, % of a core, keepalive {words.keepalive} s": ours,
        "at rest: CPU of a member of etcd, % of a core": theirs,
        "at rest: memory of a server, MiB": max(server.memory for server in servers) / 1024,
        "at rest: its descriptors": max(len(_descriptors(server)) for server in servers),
    }


def _descriptors(server: Server) -> list[Path]:
    return list(Path(f"/proc/{server.pid}/fd").iterdir())


def _kill(count: int, servers: Sequence[Server]) -> Figures:
    """Robots of the dead server are visited through another one, all the time, each time another robot."""
    dead, survivor = servers[-1], servers[0]
    lost = [robot for robot in _listed(dead) if (survivor.sockets / f"{robot}.sock").exists()]
    before = {server: server.cpu for server in servers[:-1]}
    dead.stop(signal.SIGKILL)
    probe = Probe(lambda: survivor.sockets / f"{random.choice(lost)}.sock")  # noqa: S311
    try:
        began = time.monotonic()
        back = _wait_until_all(count, survivor, f"s{len(servers)}")
        waits = _visit(survivor, random.sample(lost, min(_SAMPLE, len(lost))))
        visitable = time.monotonic() - began
    finally:
        probe.close()
    return {
        f"a server with {len(lost)} robots is killed: seconds until all were back": back,
        "and until a sample of 300 had been visited, one after the other": visitable,
        "those visits: slowest, ms to the first byte": max(waits) * 1e3,
        "visitors of the lost robots in the meantime": len(probe.waits),
        "their wait: median, ms": statistics.median(probe.waits) * 1e3,
        "their wait: longest, s": max(probe.waits),
        "CPU seconds of the other two": sum(server.cpu - used for server, used in before.items()),
    }


def _listed(server: Server) -> list[str]:
    """The robots that a server has."""
    with Answers(server.sockets) as answers:
        return [robot["name"] for reply in answers.more("List") for robot in reply["robots"]]


def _visit(server: Server, robots: Sequence[str]) -> list[float]:
    waits = []
    for robot in robots:
        began = time.monotonic()
        with begin(str(server.sockets / f"{robot}.sock"), "echo 1"):
            waits.append(time.monotonic() - began)
    return waits
