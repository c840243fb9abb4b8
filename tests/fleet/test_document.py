"""docs/FLEET.md, typed as it stands: an engine and a server of a fleet, from nothing."""

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from bench.processes import free_port
from tests.support import CHECKOUT, DEADLINE, Tunnel, commands
from tests.support.engine import ETCD


def settings(mark: str) -> dict[str, str]:
    """What a file of settings has, as the document shows it."""
    return dict(re.findall(r"^(\w+)=(.+)$", commands.block(mark).written, re.MULTILINE))


@pytest.mark.long
def test_from_nothing(tunnel: Tunnel, tmp_path: Path) -> None:
    folder = tmp_path / "laptop"
    (installed := folder / "installed").mkdir(parents=True)

    def type_in(block: commands.Block) -> None:
        for command in block.commands:
            text = command.text.replace("sudo ", "").replace("/etc/shadow-tunnel/", f"{installed}/")
            run(text)

    def run(text: str) -> None:
        path = f"{CHECKOUT}:{os.environ['PATH']}"
        subprocess.run(
            ["bash", "-ec", text], cwd=folder, env={**os.environ, "PATH": path}, check=True,
            capture_output=True, timeout=DEADLINE,
        )  # fmt: skip

    run("shadow-ca --dir ca init; shadow-ca --dir ca server localhost")  # has been there before
    type_in(commands.block("fleet: laptop"))
    type_in(commands.block("fleet: peers"))
    client, peer, port = free_port(), free_port(), free_port()

    def here(text: str) -> str:
        """One machine instead of three, and ports of our own."""
        text = re.sub("0[.]0[.]0[.]0|(?<=https://)server1.example.com", "127.0.0.1", text)
        text = (
            text.replace("/etc/etcd", str(folder)).replace(":2379", f":{client}").replace(":2223", f":{port}")
        )
        parts = text.replace(":2380", f":{peer}").split(",")
        return ",".join(part for part in parts if "server2" not in part and "server3" not in part)

    written = {name: here(value) for name, value in settings("fleet: etcd").items()}
    with (tmp_path / "etcd.log").open("wb") as log:
        etcd = subprocess.Popen(
            [ETCD], env={**written, "ETCD_DATA_DIR": str(tmp_path / "data"), "PATH": os.environ["PATH"]},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        type_in(commands.block("fleet: server"))
        names = {"CA": "engine-ca.crt", "CRT": "engine.crt", "KEY": "engine.key"}  # as the unit has them
        environment = {name: here(value) for name, value in settings("fleet: settings").items()}
        environment |= {f"SHADOW_ENGINE_{name}": str(installed / file) for name, file in names.items()}
        environment |= {f"SHADOW_PEER_{name}": f"{installed}/peer.{name.lower()}" for name in ("CRT", "KEY")}
        ca = folder / "ca"
        files = f"--ca={ca}/ca.crt", f"--crt={ca}/server.crt", f"--key={ca}/server.key"
        server = tunnel.daemon(tunnel.server_arguments(*files), environment)
        server.wait_for_log("following the fleet's engine: 0 robots of")
        socket.create_connection(("127.0.0.1", port), DEADLINE).close()
        type_in(commands.block("fleet: revoke"))
        assert (ca / "ca.crl").exists()
    finally:
        etcd.kill()
        etcd.wait(DEADLINE)
