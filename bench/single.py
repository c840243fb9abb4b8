"""One server with thousands of robots, all of them at rest.

How fast they connect, what they cost the server while nothing happens, and how soon they are back after the
server was gone.
"""

import argparse
import contextlib
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .processes import BenchError, Group
from .robots import Robots
from .servers import Probe, Server
from .tunnels import Keys, client_command, start_service

Figures = dict[str, float]

_VISITED = "011.sock"
_PATIENCE = 900.0  # seconds for a whole fleet to connect


def measure(words: argparse.Namespace, keys: Keys, folder: Path) -> Figures:
    """All of it."""
    with Group(folder / "service") as service, _robots(words, service, keys, folder) as (server, robots):
        figures = _connect(words, server, robots)
        figures |= _rest(words, server)
        return figures | _storm(words, server, robots)


@contextlib.contextmanager
def _robots(
    words: argparse.Namespace, group: Group, keys: Keys, folder: Path
) -> Iterator[tuple[Server, Robots]]:
    port = start_service(group)
    options = f"--ktls={words.ktls}", f"--keepalive={words.keepalive}"
    server = Server(keys, folder / "server", *options)
    server.start()
    visited = server.sockets / _VISITED
    # The one that is visited has a process of its own: it is the server's answers that are measured.
    group.start("011", *client_command(keys, server.port, port), f"--ktls={words.ktls}")
    group.wait_for(visited.exists, "the socket of robot 011")
    robots = Robots(words.robots, words.standby, words.ktls, words.processes)
    try:
        robots.start(server.port, port, keys.folder)
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


def _connect(words: argparse.Namespace, server: Server, robots: Robots) -> Figures:
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


def _rest(words: argparse.Namespace, server: Server) -> Figures:
    time.sleep(words.keepalive)  # until everyone is at its pace
    before = server.cpu
    time.sleep(words.window)
    used = (server.cpu - before) / words.window
    return {f"server CPU at rest, % of a core, keepalive {words.keepalive} s": used * 100}


def _storm(words: argparse.Namespace, server: Server, robots: Robots) -> Figures:
    """The server is killed, and comes back: nothing is kept, all robots dial anew."""
    server.stop(signal.SIGKILL)
    for path in server.sockets.iterdir():
        path.unlink()
    server.start()
    before = server.cpu
    probe = Probe(lambda: server.sockets / _VISITED)
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
