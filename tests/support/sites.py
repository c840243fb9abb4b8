"""A fleet of real servers, which meet in a real engine."""

import base64
import contextlib
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.processes import free_port
from tests.support import Authority, Daemon, Tunnel, wait_for
from tests.support.call import INTERFACE
from tests.support.engine import Members, b64
from tests.support.peer import Peer, connect

NAME = "011"


class Site:
    """One server of the fleet, at which robots land."""

    def __init__(self, fleet: "Fleet", name: str) -> None:
        self.fleet, self.name = fleet, name
        folder = fleet.folder / name
        folder.mkdir()
        self.tunnel = Tunnel(fleet.authority, folder)
        self.peer = free_port()
        self.daemon: Daemon

    def start(self, *more: str) -> None:
        self.daemon = self.tunnel.start_server(*self.fleet.options(self.name, self.peer), *more)

    def start_with_api(self, *more: str) -> None:
        """The same; `shadowctl` can ask it."""
        (self.tunnel.ldir / INTERFACE).unlink(missing_ok=True)
        self.daemon = self.tunnel.start_server_with_api(*self.fleet.options(self.name, self.peer), *more)

    def start_with(self, passed: tuple[str, socket.socket]) -> None:
        """The same, with a socket as systemd passes one."""
        words = self.tunnel.server_arguments(*self.fleet.options(self.name, self.peer))
        self.daemon = self.tunnel.daemon(words, passed=passed)
        self.daemon.wait_for_log("accepting robots")

    def start_with_gate(self, *more: str) -> None:
        options = self.fleet.options(self.name, self.peer)
        self.daemon = self.tunnel.start_server_with_gate(*options, *more)

    def follow(self) -> None:
        self.daemon.wait_for_log("following the fleet's engine")

    def crash(self) -> None:
        self.daemon.process.kill()
        self.daemon.process.wait()

    def robot(self, boot: str = "b007", attempt: int = 1) -> "contextlib.AbstractContextManager[Peer]":
        peer = connect(self.tunnel, NAME)
        self.answer = peer.hello(NAME, boot=boot, attempt=attempt)
        return peer


class Fleet:
    """Some servers, and the engine where they meet."""

    def __init__(
        self,
        authority: Authority,
        members: Members,
        folder: Path,
        name: str,
        servers: Sequence[str] = ("s1", "s2"),
    ) -> None:
        self.authority, self.members, self.folder, self.name = authority, members, folder, name
        self.sites = [self.site(server) for server in servers]

    def site(self, name: str) -> Site:
        """One of the servers, which does not run yet."""
        return Site(self, name)

    def options(self, server: str, peer: int = 0) -> list[str]:
        """What makes a server one of the fleet; the others reach it at that port, or at any."""
        crt, key = self.authority.peer(server)
        files = self.members.files()
        engine = ",".join(f"https://{endpoint}" for endpoint in self.members.endpoints)
        return [
            f"--fleet={self.name}", f"--server-id={server}", f"--engine={engine}",
            f"--peer=127.0.0.1:{peer or free_port()}", f"--peer-crt={crt}", f"--peer-key={key}",
            f"--engine-ca={files.ca}", f"--engine-crt={files.crt}", f"--engine-key={files.key}",
        ]  # fmt: skip

    def ask(self, path: str, **body: Any) -> Any:
        return self.members.ask(self.members.members[0], path, body)

    def entry(self, name: str = NAME) -> dict[str, Any] | None:
        return self.value(f"r/{name}")

    def value(self, key: str) -> dict[str, Any] | None:
        """What the engine has under a key of the fleet."""
        found = self.ask("kv/range", key=b64(f"/shadow/{self.name}/{key}".encode())).get("kvs")
        if not found:
            return None
        value: dict[str, Any] = json.loads(base64.b64decode(found[0]["value"]))
        return value

    def home(self, name: str = NAME) -> tuple[str, int] | None:
        """At which server the engine has a robot, and by which attempt."""
        entry = self.entry(name)
        return None if entry is None else (entry["s"], entry["n"])

    def wait_for_home(self, home: tuple[str, int] | None) -> None:
        wait_for(lambda: self.home() == home, f"the robot's entry to be {home}")
