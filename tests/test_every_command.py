"""What all commands have in common: an output that cannot be written to, and every encoding."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadow.cli import ca, client, ctl, server, signer
from tests.support import CHECKOUT, DEADLINE, Authority, Tunnel, echo, serving, wait_for

PROGRAMS = {
    "shadow-ca": ca, "shadow-ca-signer": signer, "shadowctl": ctl, "shadow-server": server,
    "shadow-client": client,
}  # fmt: skip
PRINTING = (
    *(f"{program} --help" for program in PROGRAMS),
    *(f"{program} --version" for program in PROGRAMS),
    "shadowctl list", "shadowctl list --json", "shadowctl status", "shadowctl status 011",
    "shadowctl streams", "shadowctl status --json", "shadowctl connect 011", "shadowctl disconnect 011",
    "shadow-ca --dir=F\u00fcchse init", "shadow-ca --dir=ca robot 012",
    "shadow-ca --dir=ca server localhost", "shadow-ca --dir=ca list", "shadow-ca --dir=ca list --json",
    "shadow-ca --dir=ca revoke 011", "shadow-ca --dir=ca crl", "shadow-ca quickstart new",
)  # fmt: skip
OUTPUTS = {
    "closed": (">&-", 74, "cannot write to standard output: Bad file descriptor"),
    "full": (">/dev/full", 74, "cannot write to standard output: No space left on device"),
    "no reader": ("| true", 0, ""),
}
NO_UTF8 = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ENCODINGS = {
    "C": {"LC_ALL": "C", **NO_UTF8},
    "POSIX": {"LC_ALL": "POSIX", **NO_UTF8},
    "Latin 1": {"LC_ALL": "en_US.ISO-8859-1", **NO_UTF8, "PYTHONIOENCODING": "iso-8859-1"},
    "UTF-8": {"LC_ALL": "C.UTF-8"},
}


@pytest.fixture(scope="module")
def tunnel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tunnel]:
    """A server with a robot, for all of these."""
    folder = tmp_path_factory.mktemp("tunnel")
    with Tunnel(Authority(folder / "authority"), folder) as made, serving(echo) as service:
        made.start_server_with_api()
        made.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a CA in it, whose name not every encoding has."""
    for words in (["init", "--name=F\u00fcchse \u2026"], ["robot", "011"]):
        assert ca.main([f"--dir={tmp_path / 'ca'}", *words]) == 0
    return tmp_path


def reached(tunnel: Tunnel) -> bool:
    """Whether there is somebody behind the robot's socket."""
    with contextlib.suppress(OSError), tunnel.visit():
        return True
    return False


def run(
    command: str,
    folder: Path,
    tunnel: Tunnel,
    redirection: str = "",
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command, by a shell that does what is wanted with its streams."""
    program, *words = command.split()
    line = [sys.executable, "-W", "error", "-m", PROGRAMS[program].__name__, *words]
    settings = [f"{name}={value}" for name, value in (environment or {}).items()]
    wait_for(lambda: reached(tunnel), "the robot, which somebody may have disconnected")
    return subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$@" {redirection}', "bash", "env", *settings, *line],
        input=b"" if "<&-" not in redirection else None, capture_output=True, check=False, cwd=folder,
        timeout=DEADLINE,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), "SHADOW_LDIR": str(tunnel.ldir)},
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("command", PRINTING)
def test_what_cannot_be_printed(command: str, output: str, folder: Path, tunnel: Tunnel) -> None:
    redirection, status, complaint = OUTPUTS[output]
    done = run(command, folder, tunnel, redirection)
    wanted = f"{command.partition(' ')[0]}: {complaint}\n" if complaint else ""
    if command == "shadowctl connect 011":  # the robot has nothing to say
        status, wanted = 0, ""
    assert (done.returncode, done.stderr.decode()) == (status, wanted)


@pytest.mark.parametrize("redirection", [">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["shadowctl list", "shadow-ca --dir=ca list", "shadow-server --help"])
def test_nobody_can_be_told(command: str, redirection: str, folder: Path, tunnel: Tunnel) -> None:
    done = run(command, folder, tunnel, redirection)
    assert (done.returncode, done.stdout, done.stderr) == (74, b"", b"")


@pytest.mark.long
def test_a_robot_that_has_something_to_say(folder: Path, tunnel: Tunnel) -> None:
    for redirection, status in ((">/dev/full", 74), (">&-", 74), ("| true", 0)):
        done = run("shadowctl connect 011", folder, tunnel, f"< <(echo hello; sleep 1) {redirection}")
        assert done.returncode == status
        assert done.stderr.count(b"\n") == (status > 0)


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["C", "POSIX", "Latin 1"])
@pytest.mark.parametrize("command", [command for command in PRINTING if "--version" not in command])
def test_every_encoding(command: str, encoding: str, folder: Path, tunnel: Tunnel) -> None:
    done = run(command, folder, tunnel, environment=ENCODINGS[encoding])
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout or command == "shadowctl connect 011"


def test_a_name_that_the_encoding_does_not_have(folder: Path, tunnel: Tunnel) -> None:
    """It is refused in a line, for nobody can know which characters are meant."""
    done = run("shadow-ca --dir=new init --name=F\u00fcchse", folder, tunnel, environment=ENCODINGS["C"])
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"use 1 to 64 printable characters" in done.stderr


@pytest.mark.parametrize(("encoding", "dot"), [("C", b"*"), ("Latin 1", b"*"), ("UTF-8", "\u25cf".encode())])
def test_the_dot(encoding: str, dot: bytes, folder: Path, tunnel: Tunnel) -> None:
    done = run("shadowctl status 011", folder, tunnel, environment=ENCODINGS[encoding])
    assert done.stdout.startswith(dot + b" 011 - connected")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_a_daemon_without_a_log(redirection: str, tmp_path: Path, authority: Authority) -> None:
    """It works, and stops, as if its log went to /dev/null."""
    with Tunnel(authority, tmp_path) as tunnel, serving(echo) as service:
        lines = (
            tunnel.server_arguments(),
            tunnel.client_arguments(f"--lport={service.port}", "--lhost=127.0.0.1"),
        )
        daemons = [
            subprocess.Popen(
                ["bash", "-c", f'exec "$@" {redirection}', "bash", sys.executable, "-m", *line], cwd=CHECKOUT
            )
            for line in lines
        ]
        try:
            wait_for(lambda: reached(tunnel), "the robot")
            with tunnel.visit() as visitor:
                visitor.sendall(b"x")
                assert visitor.recv(1) == b"x"
                visitor.shutdown(socket.SHUT_WR)
                assert visitor.recv(1) == b""
        finally:
            for daemon in reversed(daemons):
                daemon.send_signal(signal.SIGTERM)
        assert [daemon.wait(DEADLINE) for daemon in daemons] == [0, 0]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_variable_that_is_no_setting(program: str, folder: Path, tunnel: Tunnel) -> None:
    """It is warned of; one that another program of ours reads is not."""
    environment = {"SHADOW_CLR": "ca.crl", "SHADOW_RHOST": "x", "SHADOW_CA_DIR": "ca", "SHADOW_CRL": ""}
    done = run(f"{program} --version", folder, tunnel, environment=environment)
    complaint = "'SHADOW_CLR' in the environment is no setting; did you mean SHADOW_CRL?"
    assert (done.returncode, done.stderr.decode()) == (0, f"{program}: {complaint}\n")
