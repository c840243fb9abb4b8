"""The engine's leader is killed: how long nobody can claim, or hears of claims; local visitors meanwhile."""

import argparse
import contextlib
import statistics
import time
from pathlib import Path

from .engine import Engine
from .processes import Group
from .servers import Probe, Server, member_options
from .storm import HollowServer
from .tunnels import Keys, client_command, start_service

Figures = dict[str, float]

_FLEET, _ROBOT = "outage", "011"
_SHORTEST, _LONGEST = 4.0, 10.0  # seconds that we watch before the leader is killed, and from then on
_PAUSE = 0.05  # seconds between two claims, and between two visits


def measure(words: argparse.Namespace, keys: Keys, folder: Path) -> Figures:
    """All of it."""
    seconds = min(_LONGEST, max(_SHORTEST, words.window))
    with (
        Engine(folder / "engine") as engine,
        Group(folder / "service") as service,
        Group(folder / "robot") as group,
        contextlib.ExitStack() as stack,
    ):
        server = Server(keys, folder / "a", *member_options(_FLEET, "a", engine, keys))
        server.start()
        stack.callback(server.stop)
        server.wait_for_log("following the fleet's engine")
        group.start("client", *client_command(keys, server.port, start_service(service)))
        path = server.sockets / f"{_ROBOT}.sock"
        group.wait_for(path.exists, "the robot's socket")
        claiming, watching = (HollowServer(_FLEET, name, engine, keys, folder) for name in ("b", "c"))
        stack.callback(claiming.close)
        stack.callback(watching.close)
        probe = Probe(lambda: path, _PAUSE)
        try:
            return _kill_leader(engine, probe, claiming, watching, seconds)
        finally:
            probe.close()


def _kill_leader(
    engine: Engine, probe: Probe, claiming: HollowServer, watching: HollowServer, seconds: float
) -> Figures:
    leader = engine.wait_for_leader()
    calm = _gaps(claiming, watching, seconds)
    visits = len(probe.waits)
    leader.kill()
    gaps = _gaps(claiming, watching, seconds)
    before, after = probe.waits[:visits], probe.waits[visits:]
    return {
        "leader killed: longest gap in claims, s": gaps[0],
        "the same while all is well": calm[0],
        "leader killed: longest gap in what another server hears, s": gaps[1],
        "the same, while all is well": calm[1],
        "local visits meanwhile: ms to the first byte, median": statistics.median(after) * 1e3,
        "local visits before: ms to the first byte, median": statistics.median(before) * 1e3,
        "local visits meanwhile: slowest, ms": max(after) * 1e3,
        "local visits before: slowest, ms": max(before) * 1e3,
    }


def _gaps(claiming: HollowServer, watching: HollowServer, seconds: float) -> tuple[float, float]:
    """One server claims, another hears of it: the longest time without an answer, and without a word."""
    for server, claims in ((watching, 0), (claiming, 1)):
        server.say(f"steadily {claims} {seconds} {_PAUSE}")
    time.sleep(seconds)
    return claiming.answer()["written"], watching.answer()["heard"]
