"""What the units run before a reload: which settings have changed since the daemon was started."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from shadow.cli.reload import changed
from tests.support import CHECKOUT, DEADLINE

SETTINGS = {"SHADOW_KEEPALIVE": "30", "SHADOW_CRL": "", "FDSTORE": "4096"}


@pytest.fixture
def daemon() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "infinity"], env={**os.environ, **SETTINGS}) as process:
        yield process
        process.kill()


def run(environment: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "shadow.cli.reload"], env={**os.environ, **environment},
        cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=DEADLINE,
    )  # fmt: skip
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_what_has_changed_is_named(daemon: subprocess.Popen[bytes]) -> None:
    fresh = {"SHADOW_CRL": "/etc/shadow-tunnel/ca.crl", "SHADOW_KEEPALIVE": "5", "FDSTORE": "1"}
    status, said = run({"MAINPID": str(daemon.pid), **fresh})
    assert status == 0
    assert said.endswith(
        "WARNING: a reload does not take SHADOW_CRL, SHADOW_KEEPALIVE, changed since the start: "
        "restart the unit for that\n"
    )


def test_nothing_has_changed(daemon: subprocess.Popen[bytes]) -> None:
    assert run({"MAINPID": str(daemon.pid), **SETTINGS}) == (0, "")


def test_a_misspelled_one_is_warned_of_here_as_well(daemon: subprocess.Popen[bytes]) -> None:
    status, said = run({"MAINPID": str(daemon.pid), **SETTINGS, "SHADOW_CLR": "x"})
    assert status == 0
    assert "'SHADOW_CLR' in the environment is no setting; did you mean SHADOW_CRL?" in said
    assert "a reload does not take SHADOW_CLR" in said


def test_who_cannot_be_asked() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    why = f"process {gone.pid}: No such file or directory"
    assert run({"MAINPID": str(gone.pid)}) == (
        71, f"shadow-reload: cannot tell whether settings have changed: {why}\n",
    )  # fmt: skip
    status, said = run({"MAINPID": ""})
    assert (status, said.count("\n")) == (2, 1)
    assert "systemd runs this program" in said


def test_an_empty_one_is_as_good_as_none() -> None:
    assert changed({"SHADOW_CRL": "", "X": "1"}, {"X": "2"}) == []
    assert changed({"SHADOW_CRL": "a"}, {}) == changed({}, {"SHADOW_CRL": "b"}) == ["SHADOW_CRL"]


def test_names_are_those_of_settings() -> None:
    """It runs as root for the client, and what it reads is the daemon's."""
    odd = ["SHADOW_\x1b[2J", "SHADOW_", "SHADOW_" + "X" * 1000, "SHADOW_a", "PATH"]
    assert changed(dict.fromkeys(odd, "x"), {}) == []
