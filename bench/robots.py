"""The processes with thousands of robots in them (``crowd``)."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .processes import BenchError
from .tunnels import CHECKOUT


class Robots:
    """All of them, in a few processes."""

    def __init__(self, count: int, standby: int, ktls: str, processes: int) -> None:
        """Settings only.

        Args:
            count: how many robots.
            standby: channels that each keeps standing by.
            ktls: as the option.
            processes: that they are in.
        """
        self._count, self._settings, self._processes = count, (str(standby), ktls), processes
        self._running: list[subprocess.Popen[str]] = []

    def start(self, server: int, service: int, folder: Path, hosts: Sequence[str] = ()) -> None:
        """Start their processes, but not yet the robots; returns when all have their certificates.

        Args:
            server: port of the server.
            service: port of what they offer.
            folder: has the CA, and gets their certificates.
            hosts: addresses of the servers; else that of one, which is under many.
        """
        standby, ktls = self._settings
        share = -(-self._count // self._processes)
        for first in range(0, self._count, share):
            numbers = str(first), str(min(share, self._count - first)), standby
            command = [sys.executable, "-m", "bench.crowd", *numbers, ktls, str(server), str(service)]
            self._running.append(
                subprocess.Popen(
                    [*command, str(folder), *hosts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
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
