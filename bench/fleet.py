"""A fleet of thousands of robots, all of them at rest: ``python -m bench.fleet``.

How fast they connect, what they cost the server while nothing happens, and how soon they are back after the
server was gone. The robots are real clients in a few processes (``crowd``), and their handshakes are real.
"""

import argparse
import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import load, report
from .processes import BenchError, Group, cpu_of, free_port, listens
from .tunnels import Keys, client_command, make_keys, server_command, start_service

CHECKOUT = Path(__file__).resolve().parents[1]
_PATIENCE = 900.0  # seconds for a whole fleet to connect
_PROBE = 0.2  # seconds between visitors during the storm


class Robots:
    """The processes with the robots in them."""

    def __init__(self, words: argparse.Namespace, ports: tuple[int, int], folder: Path) -> None:
        share = -(-words.robots // words.processes)
        self._running = []
        for first in range(0, words.robots, share):
            numbers = [first, min(share, words.robots - first), words.standby]
            command = [sys.executable, "-m", "bench.crowd", *map(str, numbers), words.ktls, *map(str, ports)]
            self._running.append(
                subprocess.Popen(
                    [*command, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                    cwd=CHECKOUT,
                )
            )  # fmt: skip
        self._answers()

    def _answers(self) -> list[str]:
        lines = [process.stdout.readline() for process in self._running if process.stdout]
        if not all(lines):
            raise BenchError("a process of the simulator has ended")
        return lines

    def say(self, line: str) -> None:
        """Say a line to all."""
        for process in self._running:
            print(line, file=process.stdin, flush=True)

    @property
    def connected(self) -> int:
        """How many robots say that they are connected."""
        self.say("?")
        return sum(json.loads(line)["connected"] for line in self._answers())

    def close(self) -> None:
        """End them."""
        for process in self._running:
            process.kill()
            process.wait()


class Server:
    """shadow-server for many robots."""

    def __init__(self, words: argparse.Namespace, keys: Keys, folder: Path) -> None:
        self._words, self._keys, self._folder = words, keys, folder
        self.port = free_port()
        self.sockets = folder / "sockets"
        self.sockets.mkdir()
        self.visited = self.sockets / "011.sock"
        self._process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start it; returns when it listens."""
        options = f"--ktls={self._words.ktls}", f"--keepalive={self._words.keepalive}"
        command = [*server_command(self._keys, self.port, self.sockets), *options]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, cwd=CHECKOUT)
        while not listens(self.port):
            if self._process.poll() is not None:
                raise BenchError(f"shadow-server ended, see {log.name}")
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        self._process.send_signal(number)
        self._process.wait()

    @property
    def cpu(self) -> float:
        """Seconds of CPU time."""
        return cpu_of(self._process.pid)

    @property
    def memory(self) -> float:
        """KiB of its own."""
        text = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()
        return float(sum(map(int, re.findall(r"^Private_\w+: +(\d+) kB$", text, re.MULTILINE))))

    @property
    def connections(self) -> int:
        """Connections of robots that it has."""
        ours = f":{self.port:04X}"
        lines = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        fields = (line.split(None, 4) for line in lines.splitlines())
        return sum(
            1 for _number, local, _peer, state, _rest in fields if local.endswith(ours) and state == "01"
        )


class Probe:
    """A visitor that comes again and again, to a robot of its own.

    Attributes:
        waits: seconds until each had its first byte.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ended = threading.Event()
        self.waits: list[float] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(_PROBE):
            began = time.monotonic()
            try:
                with load.begin(str(self._path), "echo 1"):
                    self.waits.append(time.monotonic() - began)
            except (OSError, EOFError):
                continue  # the server or the robot is not there yet

    def close(self) -> None:
        """No more visits."""
        self._ended.set()
        self._thread.join()


def main() -> int:
    """Measure and report; the exit status."""
    words = _arguments()
    try:
        with tempfile.TemporaryDirectory(prefix="shadow-fleet-") as folder:
            outcome = measure(words, Path(folder))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    words.output.mkdir(parents=True, exist_ok=True)
    (words.output / "fleet.json").write_text(json.dumps(outcome, indent=1) + "\n")
    for title, value in outcome["figures"].items():
        print(f"  {title:58}{report.figure(value):>8}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.fleet", description=__doc__, allow_abbrev=False)
    parser.add_argument("--robots", type=int, default=1000)
    parser.add_argument("--standby", type=int, default=2, help="channels standing by, for each robot")
    parser.add_argument("--processes", type=int, default=2, help="that the robots are in")
    parser.add_argument("--ktls", choices=["auto", "require", "off"], default="auto")
    parser.add_argument("--keepalive", type=int, default=30)
    parser.add_argument("--window", type=float, default=60.0, help="seconds to look at a fleet at rest")
    parser.add_argument("--output", type=Path, default=Path("build/bench"))
    return parser.parse_args()


def measure(words: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All of it; the outcome."""
    keys = make_keys(folder / "keys")
    with Group(folder / "service") as service, _robots(words, service, keys, folder) as (server, robots):
        figures = _connect(words, server, robots)
        figures |= _rest(words, server)
        figures |= _storm(words, server, robots)
    settings = {
        name: getattr(words, name) for name in ("robots", "standby", "processes", "ktls", "keepalive")
    }
    return {"machine": report.machine(), "settings": settings, "figures": figures}


@contextlib.contextmanager
def _robots(
    words: argparse.Namespace, group: Group, keys: Keys, folder: Path
) -> Iterator[tuple[Server, Robots]]:
    port = start_service(group)
    server = Server(words, keys, folder)
    server.start()
    # The one that is visited has a process of its own: it is the server's answers that are measured.
    group.start("011", *client_command(keys, server.port, port), f"--ktls={words.ktls}")
    group.wait_for(server.visited.exists, "the socket of robot 011")
    robots = Robots(words, (server.port, port), keys.folder)
    try:
        yield server, robots
    finally:
        robots.close()
        server.stop()


def _wait_until_there(words: argparse.Namespace, server: Server, *, channels: bool) -> float:
    """Seconds until all robots have their sockets, or all their channels too."""
    if not channels:
        return _wait_until(lambda: len(list(server.sockets.iterdir())) > words.robots)
    wanted = words.robots * (1 + words.standby) + 3  # robot 011 has two standbys
    return _wait_until(lambda: server.connections >= wanted)


def _wait_until(condition: Callable[[], object]) -> float:
    """Seconds until something is true."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > _PATIENCE:
            raise BenchError(f"after {_PATIENCE:g} s not all robots are connected")
        time.sleep(0.25)
    return time.monotonic() - began


def _connect(words: argparse.Namespace, server: Server, robots: Robots) -> dict[str, float]:
    before, memory, slab = server.cpu, server.memory, _slab()
    robots.say("start")
    began = time.monotonic()
    _wait_until_there(words, server, channels=False)
    connected = time.monotonic() - began
    _wait_until_there(words, server, channels=True)
    complete = time.monotonic() - began
    return {
        "robots connected per second": words.robots / connected,
        "connections per second, standbys too": words.robots * (1 + words.standby) / complete,
        "server CPU ms per connection": (server.cpu - before) * 1e3 / (words.robots * (1 + words.standby)),
        "server memory, KiB per robot": (server.memory - memory) / words.robots,
        "kernel memory, KiB per robot (half of both ends')": (_slab() - slab) / 2 / words.robots,
    }


def _slab() -> float:
    """KiB of the kernel's own: sockets, and the state of kernel TLS (proc(5), /proc/meminfo)."""
    return float(re.findall(r"^Slab: +(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)[0])


def _rest(words: argparse.Namespace, server: Server) -> dict[str, float]:
    time.sleep(words.keepalive)  # until everyone is at its pace
    before = server.cpu
    time.sleep(words.window)
    used = (server.cpu - before) / words.window
    return {f"server CPU at rest, % of a core, keepalive {words.keepalive} s": used * 100}


def _storm(words: argparse.Namespace, server: Server, robots: Robots) -> dict[str, float]:
    """The server is killed, and comes back: nothing is kept, all robots dial anew."""
    server.stop(signal.SIGKILL)
    for path in server.sockets.iterdir():
        path.unlink()
    server.start()
    before = server.cpu
    probe = Probe(server.visited)
    try:
        back = _wait_until_there(words, server, channels=False)
        complete = back + _wait_until_there(words, server, channels=True)
        _wait_until(lambda: probe.waits and robots.connected == words.robots)
    finally:
        probe.close()
    return {
        "storm: seconds until all robots were back": back,
        "storm: seconds until all their channels stood by": complete,
        "storm: server CPU seconds": server.cpu - before,
        "storm: visitors served meanwhile": len(probe.waits),
        "storm: longest wait of one, s": max(probe.waits),
        "storm: median wait, ms": sorted(probe.waits)[len(probe.waits) // 2] * 1e3,
    }


if __name__ == "__main__":
    raise SystemExit(main())
