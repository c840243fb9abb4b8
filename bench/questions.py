"""What is asked of each tunnel."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processes import BenchError

LOAD = Path(__file__).with_name("load.py")
MIB, GIB = 2**20, 2**30
_PATIENCE = 600.0  # seconds for one job
_READY = 1.0  # seconds in which what was used is made anew, over a long way, too

Answer = dict[str, float]
"""Figures by name; the first is the one that the picture shows."""


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to find out.

    Attributes:
        name: for the command line and the files.
        title: for people.
        units: of the figures, by their names.
        less_is_better: of the first figure.
        job: the words for load.py, with WHERE in the place of the socket.
        figures: makes the answer of load.py's outcome and the seconds of CPU time that the tunnel used.
        round_trip: seconds between the ends of the tunnel, if it takes a machine of our own to ask.
    """

    name: str
    title: str
    units: dict[str, str]
    less_is_better: bool
    job: tuple[str, ...]
    figures: Callable[[dict[str, Any], float], Answer]
    round_trip: float = 0.0

    def ask(self, where: str, cpu: Callable[[], float]) -> Answer:
        """Do it once.

        Raises:
            BenchError: it failed.
        """
        words = [where if word == "WHERE" else word for word in self.job]
        with subprocess.Popen(
            [sys.executable, LOAD, "visit", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            process.stdout.readline()  # it is ready: what it needs for that is not counted
            before = cpu()
            try:
                output, errors = process.communicate("go\n", timeout=_PATIENCE)
            except BaseException:
                process.kill()  # the block waits for its end, as long as that takes
                raise
        if process.returncode != 0:
            raise BenchError(f"{' '.join(words)}: {errors.strip().splitlines()[-1:]}")
        return self.figures(json.loads(output), cpu() - before)


def _bulk(name: str, title: str, kind: str, streams: int, total: int) -> Question:
    """``total`` bytes in each direction that is used, by so many visitors at once."""
    each = total // streams
    moved = each * streams * (2 if kind == "both" else 1)

    def figures(outcome: dict[str, Any], cpu: float) -> Answer:
        mean = sum(outcome["each"]) / streams
        return {
            "cpu": cpu / (moved / GIB),
            "rate": moved / MIB / outcome["seconds"],
            "fairness": mean / outcome["seconds"],
        }

    units = {"cpu": "CPU s/GiB", "rate": "MiB/s", "fairness": "slowest : mean"}
    return Question(name, title, units, True, ("bulk", "WHERE", kind, str(each), str(streams)), figures)


def _ask(name: str, title: str, size: int, times: int) -> Question:
    def figures(outcome: dict[str, Any], cpu: float) -> Answer:
        return {"median": outcome["median"] * 1e6, "cpu": cpu / times * 1e6}

    units = {"median": "µs, median", "cpu": "CPU µs each"}
    return Question(name, title, units, True, ("ask", "WHERE", str(size), str(times)), figures)


def _visits(name: str, title: str, times: int, pause: float = 0.0, round_trip: float = 0.0) -> Question:
    def figures(outcome: dict[str, Any], cpu: float) -> Answer:
        return {
            "median": outcome["median"] * 1e3,
            "heard": outcome["heard"] * 1e3,
            "rate": times / outcome["seconds"],
            "cpu": cpu / times * 1e3,
        }

    units = {
        "median": "ms to the first byte",
        "heard": "ms to an answer",
        "rate": "visits/s",
        "cpu": "CPU ms each",
    }
    job = ("visits", "WHERE", str(times), str(pause))
    return Question(name, title, units, True, job, figures, round_trip)


def all_questions(scale: float) -> list[Question]:
    """Everything; ``scale`` makes it longer or shorter."""
    size, times = int(GIB * scale), max(20, int(2000 * scale))
    return [
        _bulk("bulk", "One visitor sends", "sink", 1, size),
        _bulk("both", "One visitor sends and receives at once", "both", 1, size // 2),
        _bulk("streams-10", "Ten visitors send at once", "sink", 10, size),
        _bulk("streams-100", "A hundred visitors send at once", "sink", 100, size),
        _bulk("streams-1000", "A thousand visitors send at once", "sink", 1000, size),
        _ask("ask-1", "One byte there and back", 1, times),
        _ask("ask-16k", "16 KiB there and back", 16384, times),
        _visits("visits", "New visitors, one after the other", max(10, times // 10)),
        _visits("far", "A visitor now and then, 50 ms round trip away", max(10, times // 50), 1.0, 0.05),
    ]


def now_and_then(scale: float) -> Question:
    """A visitor comes when there has been time for everything to get ready again."""
    return _visits("now-and-then", "A visitor now and then", max(5, int(50 * scale)), _READY)
