"""Servers for many robots, alone or as some of a fleet, and a visitor who comes again and again."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from . import load
from .engine import HOST, Engine
from .processes import DEADLINE, BenchError, Group, cpu_of, free_port, listens, memory_of
from .tunnels import CHECKOUT, Keys, server_options

API = "io.shadowtunnel.Server"
"""The name of its file."""


class Server:
    """shadow-server.

    Attributes:
        port: where robots connect to it.
        sockets: the folder with the robots' sockets.
    """

    def __init__(
        self, keys: Keys, folder: Path, *options: str, passed: Mapping[str, str] | None = None
    ) -> None:
        """Settings only.

        Args:
            keys: its certificates.
            folder: for its log and its sockets.
            options: further ones of shadow-server.
            passed: where it listens, by the names of systemd's socket units; for robots it listens on a free
                port if they are not among these.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._log, self.sockets = folder / "server.log", folder / "sockets"
        self.sockets.mkdir()
        passed = passed or {}
        where = passed.get("shadow-server", "")
        self.port = int(where.rpartition(":")[2]) if where else free_port()
        self._command = [
            sys.executable, "-m", "bench.daemon", *(f"{name}={place}" for name, place in passed.items()),
            "--", *server_options(keys, self.port, self.sockets), *options,
        ]  # fmt: skip
        self._process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start it; returns when it listens."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stderr=log, cwd=CHECKOUT
            )
        self.wait_for(lambda: listens(self.port), "to listen")

    def wait_for_log(self, text: str) -> None:
        """Wait until it has logged something."""
        self.wait_for(lambda: text in self._log.read_text(), text)

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Wait until something is true.

        Raises:
            BenchError: it has ended, or it took too long.
        """
        end = time.monotonic() + DEADLINE
        while not condition():
            if self._process.poll() is not None or time.monotonic() > end:
                raise BenchError(f"waited in vain for a server {what}, see {self._log}")
            time.sleep(0.02)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        self._process.send_signal(number)
        self._process.wait()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    @property
    def cpu(self) -> float:
        """Seconds of CPU time."""
        return cpu_of(self.pid)

    @property
    def memory(self) -> float:
        """KiB of its own."""
        return memory_of(self.pid)

    @property
    def connections(self) -> int:
        """Connections of robots that it has."""
        ours = f":{self.port:04X}"
        lines = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        fields = (line.split(None, 4) for line in lines.splitlines())
        return sum(
            1 for _number, local, _peer, state, _rest in fields if local.endswith(ours) and state == "01"
        )


def member_options(fleet: str, server: str, engine: Engine, keys: Keys, peer: int = 0) -> list[str]:
    """What makes a server one of a fleet: it gets a certificate, and others reach it on a port, or on any."""
    crt, key = (keys.folder / f"peer-{server}.{kind}" for kind in ("crt", "key"))
    if not crt.exists():
        with Group(keys.folder / f"peer-{server}") as group:
            group.run(
                "shadow-ca", sys.executable, "-m", "shadow.cli.ca", f"--dir={keys.folder}", "peer", server,
                f"--basename=peer-{server}",
            )  # fmt: skip
    return [
        f"--fleet={fleet}", f"--server-id={server}", *engine.options, f"--peer={HOST}:{peer or free_port()}",
        f"--peer-crt={crt}", f"--peer-key={key}",
    ]  # fmt: skip


class Probe:
    """A visitor that comes again and again.

    Attributes:
        waits: seconds until each had its first byte.
    """

    def __init__(self, next_path: Callable[[], Path], pause: float = 0.2) -> None:
        """Begin.

        Args:
            next_path: the socket to visit next.
            pause: seconds between two visits.
        """
        self._next_path = next_path
        self._pause = pause
        self._ended = threading.Event()
        self.waits: list[float] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(self._pause):
            began = time.monotonic()
            try:
                with load.begin(str(self._next_path()), "echo 1"):
                    self.waits.append(time.monotonic() - began)
            except (OSError, EOFError):
                continue  # the server or the robot is not there yet

    def close(self) -> None:
        """No more visits."""
        self._ended.set()
        self._thread.join()
