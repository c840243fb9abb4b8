"""One at a time in a folder, and nobody waits for ever."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shadow.ca.locking import locked
from shadow.errors import ConfigError, LocalError
from tests.support import CHECKOUT, DEADLINE

HOLD = """
import sys
from pathlib import Path
from shadow.ca.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    """A process that holds the lock until its input ends; it has it when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_who_comes_second_waits_and_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with holder(tmp_path) as first:
        waited = []

        def wait(seconds: float) -> None:
            """It lets go when we are seen to wait."""
            waited.append(seconds)
            if first.stdin is not None:
                first.stdin.close()
            threading.Event().wait(seconds)

        monkeypatch.setattr("time.sleep", wait)
        with locked(tmp_path):
            assert waited


def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        why = rf"^CA folder {tmp_path}: another shadow-ca, or its signer, .* for 0\.1 s; nothing was done"
        with pytest.raises(LocalError, match=why), locked(tmp_path, 0.1):
            pass
        first.communicate(timeout=DEADLINE)
    with locked(tmp_path, 0):
        pass


def test_who_is_killed_leaves_no_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        first.kill()
        first.wait(DEADLINE)
    with locked(tmp_path, 0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="within"), locked(tmp_path):
        raise ValueError("within")
    with locked(tmp_path, 0):
        pass


def test_no_child_inherits_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with locked(tmp_path, 0):
            pass
    finally:
        child.kill()
        child.wait()


def test_what_is_no_folder(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "x", "No such file"), (Path(os.devnull), "Not a directory")):
        with pytest.raises(ConfigError, match=f"^CA folder {path}: {why}"), locked(path):
            pass
