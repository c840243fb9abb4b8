"""Thousands of robots at one server, and a fleet of several servers: ``python -m bench.fleet``.

The robots are real clients in a few processes (``crowd``), and their handshakes are real; where there are a
hundred thousand for each server, they are ``hollow``.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shadow.daemon.life import raise_descriptor_limit

from . import across, loss, outage, report, single, storm
from .processes import BenchError
from .tunnels import Keys, make_keys

Part = Callable[[argparse.Namespace, Keys, Path], dict[str, float]]

PARTS: dict[str, Part] = {
    "single": single.measure,
    "storm": storm.measure,
    "outage": outage.measure,
    "across": across.measure,
    "loss": loss.measure,
}


def main() -> int:
    """Measure and report; the exit status."""
    words = _arguments()
    raise_descriptor_limit()
    signal.signal(signal.SIGTERM, _stop)
    outcome: dict[str, Any] = {"machine": report.machine(), "settings": _settings(words), "parts": {}}
    words.output.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="shadow-fleet-") as folder:
            keys = make_keys(Path(folder) / "keys")
            for name in words.parts:
                outcome["parts"][name] = _part(name, words, keys, Path(folder) / name)
                (words.output / "fleet.json").write_text(json.dumps(outcome, indent=1) + "\n")
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _stop(*_: object) -> None:
    """End what was started, too."""
    raise BenchError("it was asked to stop")


def _part(name: str, words: argparse.Namespace, keys: Keys, folder: Path) -> dict[str, Any]:
    """Measure one, and print it; the load says how far others have disturbed it."""
    load, began = os.getloadavg()[0], time.monotonic()
    figures = PARTS[name](words, keys, folder)
    seconds = time.monotonic() - began
    print(f"{name}: {seconds:.0f} s, load before and after {load:.1f}, {os.getloadavg()[0]:.1f}")
    for title, value in figures.items():
        print(f"  {title:90}{report.figure(value):>8}", flush=True)
    return {"load": [load, os.getloadavg()[0]], "seconds": seconds, "figures": figures}


def _settings(words: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(words).items() if name != "output"}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.fleet", description=__doc__, allow_abbrev=False)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--robots", type=int, default=1000, help="real ones, at each server")
    parser.add_argument("--hollow", type=int, default=100_000, help="robots without sockets, at each server")
    parser.add_argument("--standby", type=int, default=2, help="channels standing by, for each robot")
    parser.add_argument("--processes", type=int, default=2, help="that the robots are in")
    parser.add_argument("--ktls", choices=["auto", "require", "off"], default="auto")
    parser.add_argument("--keepalive", type=int, default=30)
    parser.add_argument("--window", type=float, default=60.0, help="seconds to look at a fleet at rest")
    parser.add_argument("--scale", type=float, default=0.3, help="of visits: less is shorter, and 1 a GiB")
    parser.add_argument("--rounds", type=int, default=3, help="times that visits are measured")
    parser.add_argument("--output", type=Path, default=Path("build/bench"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
