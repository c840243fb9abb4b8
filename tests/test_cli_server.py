"""The command ``shadow-server`` as typed."""

import subprocess
import sys

from shadow import __version__
from tests.support import CHECKOUT, DEADLINE


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shadow.cli.server", *arguments],
        cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=DEADLINE,
    )  # fmt: skip


def test_help() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: shadow-server" in done.stdout
    assert "SHADOW_SOME_THING" in done.stdout


def test_version() -> None:
    assert run("--version").stdout == f"shadow-server {__version__}\n"


def test_nothing_given() -> None:
    done = run()
    assert done.returncode == 2
    assert done.stderr.startswith("shadow-server: --")
    assert done.stderr.count("\n") == 1


def test_a_word_it_does_not_know() -> None:
    done = run("--colour")
    assert done.returncode == 2
    assert done.stderr == ("shadow-server: unrecognized arguments: --colour (see shadow-server --help)\n")


def test_it_starts_without_what_only_robots_need() -> None:
    """While it starts, streams wait: a quarter of the time would go into libraries that check host names."""
    words = "import sys, shadow.cli.server; print({'service_identity', 'pyasn1'}.isdisjoint(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", words],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    assert done.stdout == "True\n"
