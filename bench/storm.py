"""A hundred thousand robots a server, hollow ones: claims, what everybody's view costs, list and drain.

Three servers and an engine of three members share this machine. What a server needs per robot besides, its
handshakes, sockets and TLS, ``single`` and ``loss`` measure.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from shadow import text as texts

from .engine import Engine
from .processes import BenchError, children_cpu, free_port, memory_of
from .servers import API, member_options
from .tunnels import CHECKOUT, Keys, server_options

Figures = dict[str, float]

_SERVERS = 3
_PATIENCE = 900.0  # seconds
_LOOK = 0.25  # seconds
_DRAINED = 10.0  # seconds that we watch a server being drained, at most
_ALONE, _PAUSE = 50, 0.05  # claims at rest, and seconds between them


class HollowServer:
    """One of them.

    Attributes:
        empty: its report when it had started.
        memory: KiB of its own, then.
    """

    def __init__(self, fleet: str, server: str, engine: Engine, keys: Keys, folder: Path) -> None:
        """Start it; returns when it follows the engine."""
        self.folder = folder / f"{fleet}-{server}"
        self.folder.mkdir()
        api = self.folder / API
        options = [
            *server_options(keys, free_port(), self.folder),
            *member_options(fleet, server, engine, keys), "--max-fleet-sockets=0", "--max-robots=1000000",
        ]  # fmt: skip
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.hollow", str(api), *map(str, options)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=CHECKOUT,
            )  # fmt: skip
        self.empty, self.memory = self.answer(), memory_of(self._process.pid)
        self.wait_until(lambda report: report["up"])

    def answer(self) -> dict[str, Any]:
        """Wait for what it has to say to a line."""
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"a server has ended: {(self.folder / 'log').read_text()[-1000:]}")
        said: dict[str, Any] = json.loads(line)
        return said

    @property
    def grown(self) -> float:
        """KiB that it has taken since it had started."""
        return memory_of(self._process.pid) - self.memory

    def say(self, line: str) -> None:
        """Have it do something; its ``answer`` has to be taken."""
        print(line, file=self._process.stdin, flush=True)

    def ask(self, line: str) -> dict[str, Any]:
        """Have it do something; its answer."""
        self.say(line)
        return self.answer()

    def wait_until(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Ask for reports until one is as it should be; that one."""
        end = time.monotonic() + _PATIENCE
        while not condition(report := self.ask("report")):
            if time.monotonic() > end:
                raise BenchError(f"waited in vain, the last report was {report}")
            time.sleep(_LOOK)
        return report

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def _servers(
    fleet: str, count: int, engine: Engine, keys: Keys, folder: Path
) -> Iterator[list[HollowServer]]:
    with contextlib.ExitStack() as stack:
        servers = []
        for number in range(1, count + 1):
            server = HollowServer(fleet, f"s{number}", engine, keys, folder)
            stack.callback(server.close)
            servers.append(server)
        yield servers


def measure(words: argparse.Namespace, keys: Keys, folder: Path) -> Figures:
    """All of it."""
    with Engine(folder / "engine") as engine:
        figures: Figures = {}
        with _servers("alone", 1, engine, keys, folder) as (server,):
            figures |= _at_rest(server)
        with _servers("single", 1, engine, keys, folder) as (server,):
            figures |= _by_itself(engine, server, words.hollow // 10)
        with _servers("storm", _SERVERS, engine, keys, folder) as servers:
            figures |= _storm(engine, servers, words.hollow // _SERVERS, "first come")
            figures |= _members(engine, words.hollow)
            figures |= _storm(engine, servers, words.hollow // _SERVERS, "all move", shift=1)
        with _servers("large", _SERVERS, engine, keys, folder) as servers:
            figures |= _storm(engine, servers, words.hollow, "first come")
            figures |= _members(engine, words.hollow * _SERVERS)
            figures |= _view(words.hollow * _SERVERS, engine, keys, folder)
            figures |= _list(servers[0], words.hollow * _SERVERS)
            figures |= _drain(servers[0], min(_DRAINED, words.window))
    return figures


def _at_rest(server: HollowServer) -> Figures:
    waited = sorted(server.ask(f"alone 0 {_ALONE} {_PAUSE}")["waited"])
    return {
        "one claim at rest, ms, median": waited[len(waited) // 2] * 1e3,
        "one claim at rest, ms, slowest of 50": waited[-1] * 1e3,
    }


def _by_itself(engine: Engine, server: HollowServer, count: int) -> Figures:
    """What claims cost the server that makes them, and hears of them, if there is no other."""
    figures = _storm(engine, [server], count, "first come")
    return {title: value for title, value in figures.items() if "CPU" in title}


def _storm(engine: Engine, servers: Sequence[HollowServer], each: int, title: str, shift: int = 0) -> Figures:
    """So many robots come to each server; ``shift``: those of the server that is so many further."""
    total = each * len(servers)
    for number, server in enumerate(servers):
        server.ask(f"prepare {(number + shift) % len(servers) * each} {each} {1 + shift}")
    before = [server.ask("anew") for server in servers]
    began, used = time.monotonic(), engine.cpu
    for server in servers:
        server.say("come")
    for server in servers:
        server.answer()
    after = [_settled(server, each, total) for server in servers]
    seconds, used = time.monotonic() - began, engine.cpu - used
    what = f"{total} claims of {texts.many(len(servers), 'server')}, {title}"
    return {
        f"{what}: a second": total / seconds,
        f"{what}: CPU µs each, of all servers": _more("cpu", after, before) / total * 1e6,
        f"{what}: CPU µs each, of all members of etcd": used / total * 1e6,
        f"{what}: CPU µs each, of the servers' garbage collectors": _more("collected", after, before)
        / total
        * 1e6,
        f"{what}: loop held up, CPU ms": max(report["held"] for report in after) * 1e3,
        f"{what}: of this by the collector, CPU ms": max(report["collection"] for report in after) * 1e3,
    }


def _settled(server: HollowServer, robots: int, total: int) -> dict[str, Any]:
    """Wait until it has made its claims, has heard of all others, and has lost the robots that they took."""
    return server.wait_until(
        lambda report: (report["robots"], report["view"], report["unclaimed"]) == (robots, total, 0)
    )


def _more(what: str, after: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]) -> float:
    return float(sum(new[what] - old[what] for new, old in zip(after, before, strict=True)))


def _members(engine: Engine, count: int) -> Figures:
    largest = max(memory_of(member.pid) for member in engine.members)
    return {f"{count} entries: memory of a member of etcd, MiB": largest / 1024}


def _view(count: int, engine: Engine, keys: Keys, folder: Path) -> Figures:
    """What a server needs to know of the robots of the others: one that has none, and comes late."""
    began = time.monotonic()
    late = HollowServer("large", "late", engine, keys, folder)
    try:
        report = late.wait_until(lambda report: report["view"] == count)
        seconds = time.monotonic() - began
        return {
            f"{count} entries: memory of the view, bytes each":
                late.grown * 1024 / count,
            f"{count} entries: seconds until a new server has them": seconds,
            f"{count} entries: CPU seconds for that": report["cpu"] - late.empty["cpu"],
        }  # fmt: skip
    finally:
        late.close()


def _list(server: HollowServer, count: int) -> Figures:
    before = server.ask("anew")
    began, ours = time.monotonic(), children_cpu()
    command = [sys.executable, "-m", "shadow.cli.ctl", "list", f"--dir={server.folder}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT, check=False)
    seconds, ours = time.monotonic() - began, children_cpu() - ours
    after = server.ask("report")
    if done.returncode != 0 or not done.stdout.endswith(f"{count} robots\n"):
        raise BenchError(f"shadowctl list: {done.stdout[-100:]}{done.stderr}")
    return {
        f"shadowctl list of {count}: seconds": seconds,
        f"shadowctl list of {count}: its CPU seconds": ours,
        f"shadowctl list of {count}: the server's CPU seconds": after["cpu"] - before["cpu"],
        f"shadowctl list of {count}: loop held up, CPU ms": after["held"] * 1e3,
    }


def _drain(server: HollowServer, watched: float) -> Figures:
    before = server.ask("anew")
    command = [sys.executable, "-m", "shadow.cli.ctl", "drain", f"--dir={server.folder}"]
    subprocess.run(command, capture_output=True, cwd=CHECKOUT, check=True)
    began = time.monotonic()
    time.sleep(watched)
    after = server.ask("report")
    seconds = time.monotonic() - began
    what = f"a server with {before['robots']} robots is drained"
    return {
        f"{what}: robots sent away a second": (after["moved"] - before["moved"]) / seconds,
        f"{what}: CPU, % of a core": (after["cpu"] - before["cpu"]) / seconds * 100,
        f"{what}: loop held up, CPU ms": after["held"] * 1e3,
    }
