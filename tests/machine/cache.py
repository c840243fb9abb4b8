"""What takes long to make is made once: directories, each named after what it is made of."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

BUILD_DEADLINE = 1800.0  # seconds; a slow mirror and two busy cores

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "machine"


class BuildError(Exception):
    """It cannot be made; ``str()`` says why and what to do."""


def fingerprint(*parts: bytes) -> str:
    """What something is made of, as a short hash."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()[:16]


def file_parts(paths: Iterable[Path]) -> list[bytes]:
    """Names and contents of files, for :func:`fingerprint`."""
    return [part for path in paths for part in (path.name.encode(), path.read_bytes())]


def cached(name: str, key: str, fill: Callable[[Path], None], *, cache: Path = CACHE) -> Path:
    """The directory ``name-key`` of the cache; if it is not there, ``fill`` makes it.

    It comes into being in one step. Others of the same name are then dropped.

    Raises:
        BuildError: it cannot be made.
    """
    directory = cache / f"{name}-{key}"
    if directory.is_dir():
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / "lock"):
        if not directory.is_dir():
            _build(directory, fill)
            _drop_older(directory, name)
    return directory


def run(command: list[str], log: Path) -> None:
    """Run one step of a build; what it says goes to the end of ``log``.

    Raises:
        BuildError: it failed.
    """
    if shutil.which(command[0]) is None:
        raise BuildError(f"{command[0]} is missing: run tests/machine/setup")
    environment = os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    with log.open("a") as output:
        print("+", *command, file=output, flush=True)
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=BUILD_DEADLINE,
            check=False,
        )
    if done.returncode != 0:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise BuildError(f"{command[0]} failed with status {done.returncode}:\n{end}")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One builder at a time; the lock goes with the process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(directory: Path, fill: Callable[[Path], None]) -> None:
    """Fill a directory of another name, then put it in its place in one step."""
    if os.geteuid() != 0:
        raise BuildError("a Debian tree can only be made by root")
    staging = Path(tempfile.mkdtemp(prefix="building-", dir=directory.parent))
    try:
        staging.chmod(0o755)  # apt's unprivileged downloader must get in
        fill(staging)
        staging.rename(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _drop_older(directory: Path, name: str) -> None:
    """Remove what another recipe made, and what an interrupted build left."""
    for path in directory.parent.glob(f"{name}-{'[0-9a-f]' * 16}"):
        if path != directory:
            shutil.rmtree(path, ignore_errors=True)
    for path in directory.parent.glob("building-*"):  # we hold the lock: nobody is building
        shutil.rmtree(path, ignore_errors=True)
