"""The command ``shadow-client`` as typed."""

import subprocess
import sys

from shadow import __version__
from tests.support import CHECKOUT, DEADLINE


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shadow.cli.client", *arguments],
        cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=DEADLINE,
    )  # fmt: skip


def test_help() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: shadow-client" in done.stdout
    assert "SHADOW_SOME_THING" in done.stdout


def test_version() -> None:
    assert run("--version").stdout == f"shadow-client {__version__}\n"


def test_nothing_given() -> None:
    done = run()
    assert done.returncode == 2
    assert done.stderr.startswith("shadow-client: --")
    assert done.stderr.count("\n") == 1


def test_a_word_it_does_not_know() -> None:
    done = run("--colour")
    assert done.returncode == 2
    assert done.stderr == ("shadow-client: unrecognized arguments: --colour (see shadow-client --help)\n")
