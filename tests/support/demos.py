"""The demos of ``scripts/``: run, on a terminal or without one, and what they leave behind."""

import contextlib
import os
import pty
import re
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.support import wait_for

PATIENCE = 150.0  # seconds for anything a demo does, also on a busy machine


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """Where a demo makes its temporary folder; short, since sockets are in it."""
    made = Path(tempfile.mkdtemp(prefix="demo-"))
    yield made
    shutil.rmtree(made)


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder), "NO_COLOR": "1", **more}


def run(demo: Path, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [demo], env=environment(folder, **more), stdin=subprocess.DEVNULL,
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
        logs = "\n".join(f"{log}:\n{log.read_text()}" for log in sorted(folder.rglob("*.log")))
        raise AssertionError(f"{error}; left: {processes(folder)}\n{logs}") from None


def assert_nothing_left(folder: Path) -> None:
    wait_for_the_end(folder)
    assert list(folder.iterdir()) == []


class Terminal:
    """A demo on a terminal of its own."""

    def __init__(self, demo: Path, folder: Path, **more: str) -> None:
        self.output = ""
        self._master, slave = pty.openpty()
        # setsid: the terminal becomes the controlling one, so that Ctrl-C means something.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", demo], stdin=slave, stdout=slave, stderr=slave,
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
