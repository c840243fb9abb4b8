"""``make demo``'s script: what it shows, and that it leaves nothing behind however it ends."""

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.support import CHECKOUT, wait_for

DEMO = CHECKOUT / "scripts" / "demo"
PATIENCE = 60.0  # seconds for anything the demo does

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demo makes its temporary folder; short, since sockets are in it."""
    made = Path(tempfile.mkdtemp(prefix="demo-"))
    yield made
    shutil.rmtree(made)


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder), "NO_COLOR": "1", **more}


def run(folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DEMO], env=environment(folder, **more), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def processes(folder: Path) -> list[str]:
    """Command lines of the processes that have to do with a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = (entry / "cwd").readlink()
            if entry.name.isdecimal() and (str(folder) in command or where.is_relative_to(folder)):
                found.append(f"{entry.name} {command}")
    return found


def wait_for_the_end(folder: Path) -> None:
    """Wait until no process of the demo is left."""
    try:
        # sshd's children notice that their parent is gone, but not in the same instant.
        wait_for(lambda: not processes(folder), "the demo's processes to end")
    except AssertionError as error:
        logs = "\n".join(f"{log}:\n{log.read_text()}" for log in sorted(folder.glob("*/*.log")))
        raise AssertionError(f"{error}; left: {processes(folder)}\n{logs}") from None


def assert_nothing_left(folder: Path) -> None:
    wait_for_the_end(folder)
    assert list(folder.iterdir()) == []


class Terminal:
    """The demo on a terminal of its own."""

    def __init__(self, folder: Path, **more: str) -> None:
        self.output = ""
        self._master, slave = pty.openpty()
        # setsid: the terminal becomes the controlling one, so that Ctrl-C means something.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", DEMO], stdin=slave, stdout=slave, stderr=slave,
            env=environment(folder, TERM="xterm", **more),
        )  # fmt: skip
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(PATIENCE)
        os.close(self._master)

    def _read(self) -> bool:
        """Take what is there; False once nobody has the terminal open any more."""
        if select.select([self._master], [], [], 0.1)[0]:
            try:
                self.output += os.read(self._master, 65536).decode(errors="replace")
            except OSError:  # EIO: how Linux says it of terminals
                return False
        return True

    def wait_for(self, pattern: str) -> re.Match[str]:
        end = time.monotonic() + PATIENCE
        while not (match := re.search(pattern, self.output)):
            goes_on = self._read() and time.monotonic() < end
            assert goes_on, f"no {pattern!r} in:\n{self.output}"
        return match

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait(self) -> int:
        """Read to the end; the exit status."""
        while self._read():
            pass
        return self.process.wait(PATIENCE)


def test_without_a_terminal_it_shows_everything_and_leaves(folder: Path) -> None:
    done = run(folder, SIZE="8M")
    assert (done.returncode, done.stderr) == (0, "")
    for pattern in (
        r"✓ certificates ",
        r"✓ sshd  .* 127\.0\.0\.1:\d+",
        r"✓ shadow-server  port \d+",
        r"✓ shadow-client  robot 011 connected, (kernel|userspace) TLS, ECDHE",
        r'\$ ssh -o "ProxyCommand socat - UNIX-CONNECT:\./011\.sock" robot011 .*\n  Linux ',
        r"\$ head -c 8M /dev/zero \| pv \| socat - UNIX-CONNECT:",
        r"tunnel +\d+ MiB/s   encrypted by (the kernel \(kTLS\)|the daemons \(userspace TLS\))\n",
        r"without +\d+ MiB/s ",
        r"ratio +\d+ % ",
    ):
        assert re.search(pattern, done.stdout), f"no {pattern!r} in:\n{done.stdout}"
    assert ("No kernel TLS here:" in done.stdout) == ("userspace" in done.stdout)
    assert "Ctrl-C" not in done.stdout
    assert_nothing_left(folder)


@pytest.mark.parametrize("key", ["\n", "\x03"])
def test_on_a_terminal_it_stays_and_what_it_says_can_be_typed(folder: Path, key: str) -> None:
    with Terminal(folder, SIZE="1M") as terminal:
        where = terminal.wait_for(r"Enter or Ctrl-C ends everything and removes (\S+)\.\r\n")[1]
        assert Path(where).parent == folder
        commands = dict(re.findall(r"\$ ((\S+) [^\r\n]+)", terminal.output.partition("Try it")[2]))
        by_name = {name: command for command, name in commands.items()}
        assert set(by_name) == {"cd", "ssh", "curl", "cat", "tail"}
        for command, answer in (
            (f"{by_name['ssh']} echo it is me", "it is me\n"),
            (f"{by_name['curl']} --silent --show-error", "Hello from robot 011"),
            ("cat server.log client.log", "accepting robots"),
        ):
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=where,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            assert answer in done.stdout, done.stderr
        terminal.type(key)
        assert terminal.wait() == 0
        assert terminal.output.endswith("Stopped; nothing is left behind.\r\n")
    assert_nothing_left(folder)


def test_ctrl_c_in_the_middle(folder: Path) -> None:
    with Terminal(folder, SIZE="1000G") as terminal:
        terminal.wait_for(r"tunnel:.*MiB/s")  # pv has begun
        terminal.type("\x03")
        assert terminal.wait() == 128 + signal.SIGINT
        assert terminal.output.endswith("Interrupted; nothing is left behind.\r\n")
        assert "Traceback" not in terminal.output
    assert_nothing_left(folder)


def test_killed_outright_its_daemons_end_too(folder: Path) -> None:
    with Terminal(folder, SIZE="1M") as terminal:
        terminal.wait_for("Enter or Ctrl-C")
        terminal.process.kill()
        terminal.process.wait(PATIENCE)
        wait_for_the_end(folder)


def test_a_port_that_is_taken(folder: Path) -> None:
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as sock:
        port = sock.getsockname()[1]
        done = run(folder, PORT=str(port))
    assert done.returncode == 1
    assert "✗ shadow-server" in done.stdout
    assert re.search(
        rf"demo: shadow-server ended with status 71.*\n.*cannot listen on port {port}", done.stderr
    )
    assert_nothing_left(folder)


@pytest.mark.parametrize("size", ["0", "lots", "12X", "-1G"])
def test_a_size_that_is_none(folder: Path, size: str) -> None:
    done = run(folder, SIZE=size)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"\ndemo: SIZE={size}: ")
    assert_nothing_left(folder)
