"""Processes that are started for a measurement, and the CPU time that they and their children have used."""

import contextlib
import itertools
import os
import random
import re
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

DEADLINE = 30.0  # seconds until what was started must be ready
_FIRST_PORT, _END_OF_PORTS = 15_000, 32_768
_TICK = os.sysconf("SC_CLK_TCK")


def _candidates() -> Iterator[int]:
    """All again and again, from somewhere on: another process may be looking, too."""
    ports = range(_FIRST_PORT, _END_OF_PORTS)
    first = random.SystemRandom().randrange(len(ports))
    return itertools.islice(itertools.cycle(ports), first, None)


_ports = _candidates()


class BenchError(Exception):
    """The measurement cannot go on; the text says why."""


class Group:
    """Some processes with one purpose. A context manager: they end with the block.

    Attributes:
        folder: for their files; what they say goes into NAME.log.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._running: list[tuple[subprocess.Popen[bytes], Path]] = []
        self._followed: list[int] = []
        self._last: list[tuple[str, ...]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process, _log in reversed(self._running):
            family = descendants(process.pid)
            process.terminate()
            try:
                process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pid in family:  # children that did not follow
                end(pid)
        for command in self._last:  # last, for they may fail
            self.run(command[0], *command)

    def start(self, name: str, *command: str | Path, **environment: str) -> None:
        """Start one more."""
        log = self.folder / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT, env={**os.environ, **environment},
            )  # fmt: skip
        self._running.append((process, log))

    def follow(self, pid: int) -> None:
        """Count the CPU time of a process that somebody else has started."""
        self._followed.append(pid)

    def at_end(self, *command: str) -> None:
        """Run a command when the block ends."""
        self._last.append(command)

    def run(self, name: str, *command: str | Path) -> str:
        """Run a command to its end; what it says.

        Raises:
            BenchError: it failed.
        """
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"{name} failed: {done.stdout}{done.stderr}")
        return done.stdout

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Wait until something is true.

        Raises:
            BenchError: a process has ended, or it took too long.
        """
        end = time.monotonic() + DEADLINE
        while not condition():
            for process, log in self._running:
                if process.poll() is not None:
                    raise BenchError(f"{log.stem} ended: {log.read_text(errors='replace')[-1000:]}")
            if time.monotonic() > end:
                raise BenchError(f"waited in vain for {what}, see {self.folder}")
            time.sleep(0.02)

    @property
    def cpu(self) -> float:
        """Seconds of CPU time, of all of them and of their children, those that have ended included."""
        ours = [process.pid for process, _log in self._running]
        return sum(cpu_of(pid) for first in [*ours, *self._followed] for pid in descendants(first))


def free_port() -> int:
    """A port that nobody uses.

    Below those that the kernel chooses for others (ip_local_port_range, ip(7)): one of these could be taken
    before it is used. And not twice the same: the one who wanted it may not have come to use it yet.
    """
    return next(port for port in _ports if _is_free(port))


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
    except OSError:
        return False
    return True


def listens(port: int) -> bool:
    """Whether somebody listens on a TCP port; nobody is connected to for that."""
    wanted = f":{port:04X} "
    lines = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    return any(wanted in line and re.search(r" 0{8,32}:0000 0A ", line) for line in lines.splitlines())


def descendants(pid: int) -> list[int]:
    """A process and all that it has started, and so on."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            fields = _stat(int(entry.name))
            if fields:
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], [])
    return found


def end(pid: int) -> None:
    """Kill a process, if it is there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> list[str]:
    """The fields of proc(5), /proc/PID/stat, from the third on; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_of(pid: int) -> float:
    """Seconds of CPU time, of a process and of its children that have ended; 0 if it has ended itself."""
    fields = _stat(pid)
    return sum(map(int, fields[11:15])) / _TICK if fields else 0.0


def memory_of(pid: int) -> float:
    """KiB of a process' own: what would be free without it (proc(5), /proc/PID/smaps_rollup)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return float(sum(map(int, re.findall(r"^Private_\w+: +(\d+) kB$", text, re.MULTILINE))))


def children_cpu() -> float:
    """Seconds of CPU time of our children that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
