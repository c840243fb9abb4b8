"""``make demo``'s script: what it shows, and that it leaves nothing behind however it ends."""

import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import CHECKOUT
from tests.support.demos import (
    PATIENCE,
    Terminal,
    assert_nothing_left,
    run,
    short_folder,
    wait_for_the_end,
)

DEMO = CHECKOUT / "scripts" / "demo"

pytestmark = [pytest.mark.timeout(180), pytest.mark.long]


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as made:
        yield made


def test_without_a_terminal_it_shows_everything_and_leaves(folder: Path) -> None:
    done = run(DEMO, folder, SIZE="8M")
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
    with Terminal(DEMO, folder, SIZE="1M") as terminal:
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
    with Terminal(DEMO, folder, SIZE="1000G") as terminal:
        terminal.wait_for(r"tunnel:.*MiB/s")  # pv has begun
        terminal.type("\x03")
        assert terminal.wait() == 128 + signal.SIGINT
        assert terminal.output.endswith("Interrupted; nothing is left behind.\r\n")
        assert "Traceback" not in terminal.output
    assert_nothing_left(folder)


def test_killed_outright_its_daemons_end_too(folder: Path) -> None:
    with Terminal(DEMO, folder, SIZE="1M") as terminal:
        terminal.wait_for("Enter or Ctrl-C")
        terminal.process.kill()
        terminal.process.wait(PATIENCE)
        wait_for_the_end(folder)


def test_a_port_that_is_taken(folder: Path) -> None:
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as sock:
        port = sock.getsockname()[1]
        done = run(DEMO, folder, PORT=str(port))
    assert done.returncode == 1
    assert "✗ shadow-server" in done.stdout
    assert re.search(
        rf"demo: shadow-server ended with status 71.*\n.*cannot listen on port {port}", done.stderr
    )
    assert_nothing_left(folder)


@pytest.mark.parametrize("size", ["0", "lots", "12X", "-1G"])
def test_a_size_that_is_none(folder: Path, size: str) -> None:
    done = run(DEMO, folder, SIZE=size)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"\ndemo: SIZE={size}: ")
    assert_nothing_left(folder)
