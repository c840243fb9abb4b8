"""A real haproxy on loopback, with the configuration that docs/OPERATING.md shows."""

import csv
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.processes import free_port
from tests.support import DEADLINE, wait_for
from tests.support.commands import block

HAPROXY = shutil.which("haproxy") or "/usr/sbin/haproxy"
SOURCE = "127.0.0.2"  # where its connections to the servers come from


class Balancer:
    """It listens on ``port``, and passes on what comes to servers on loopback.

    Differences from the document: ports, addresses, and how often it looks whether a server is there.
    """

    def __init__(
        self,
        folder: Path,
        servers: list[int],
        checks: list[int] | None = None,
        header: str = "send-proxy-v2",
        *,
        host: str = "",
        at: Sequence[str] = (),
    ) -> None:
        """Make its configuration.

        Args:
            folder: for its files.
            servers: their ports.
            checks: their ports for health checks; without them, it only looks whether they listen.
            header: the option that has it send a PROXY header.
            host: its own address; else on loopback.
            at: the servers' addresses; else on loopback.
        """
        self.port = free_port()
        self._socket = folder / "haproxy.sock"
        self._log = folder / "haproxy.log"
        shown = block("balancer: haproxy").written
        text, count = re.subn(r"bind \S+ v4v6", f"bind {host or '127.0.0.1'}:{self.port}", shown)
        assert count == 1
        # Or a check may take no longer than the pause between two.
        text = text.replace(
            "    timeout connect 5s\n", f"    timeout connect 5s\n    timeout check {DEADLINE:g}s\n"
        )
        assert "timeout check" in text
        text, (line, *others) = re.sub(r"(    server .*\n)+", "", text), re.findall(r"    server .*\n", text)
        assert others, "one for each of several servers"
        if checks is None:
            text, line = text.replace("    option httpchk GET /healthz\n", ""), line.replace(" port 9723", "")
            assert "httpchk" not in text
        for number, (port, where) in enumerate(
            zip(servers, at or ["127.0.0.1"] * len(servers), strict=True), 1
        ):
            own = re.sub(r"server1 [\d.]+:\d+", f"server{number} {where}:{port}", line.rstrip())
            own = own.replace("send-proxy-v2", header)
            if checks is not None:
                own = own.replace("port 9723", f"port {checks[number - 1]}")
            text += f"{own} source {host or SOURCE} inter 100ms fall 2 rise 1\n"
        self._config = folder / "haproxy.cfg"
        self._config.write_text(f"global\n    stats socket {self._socket} mode 600 level admin\n{text}")
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [HAPROXY, "-db", "-f", str(self._config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for(self._listens, "haproxy to listen")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(DEADLINE)

    def kill(self) -> None:
        """It can be entered again."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE)

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self._log.read_text()
        try:
            return "robots" in self.ask("show stat")
        except OSError:
            return False

    def ask(self, command: str) -> str:
        """What it answers on its own socket."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(str(self._socket))
            sock.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: sock.recv(65536), b"")).decode()

    def figures(self, server: int) -> dict[str, str]:
        """What it knows of a server, counted from 1: ``scur`` connections, ``stot`` so far, ``status``, …"""
        rows = csv.DictReader(self.ask("show stat").removeprefix("# ").splitlines())
        return next(row for row in rows if row["svname"] == f"server{server}")

    def clients(self) -> set[str]:
        """The addresses and ports of who is connected through it."""
        return set(re.findall(r"proto=tcpv4 src=(\S+) fe=robots", self.ask("show sess")))
