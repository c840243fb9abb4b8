"""One process at a time in a folder: while one reads, changes and writes files, nobody else changes them.

The lock is flock(2) on the folder itself. So it leaves no file behind, anyone allowed to read the folder can
take it, and the kernel releases it when its holder ends, in whatever way.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError, LocalError, reason

_PATIENCE = 30.0  # seconds; nobody holds it for more than a few, even with 100,000 certificates
_LOOK = 0.02  # seconds between two tries: flock(2) itself waits without a limit


@contextlib.contextmanager
def locked(folder: Path, patience: float = _PATIENCE) -> Iterator[None]:
    """Hold the lock on ``folder``; do not nest it, because the inner one would wait for the outer.

    Args:
        folder: the folder to lock.
        patience: seconds to wait for the present holder.

    Raises:
        ConfigError: there is no such folder, or we may not read it.
        LocalError: somebody else held it all the time, or the file system has no locks.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"CA folder {folder}: {reason(error)}") from error
    try:
        _take(descriptor, folder, patience)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, folder: Path, patience: float) -> None:
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= end:
                raise LocalError(
                    f"CA folder {folder}: another shadow-ca, or its signer, has been at work in it for "
                    f"{patience:g} s; nothing was done (lslocks(8) shows who)"
                ) from error
            time.sleep(_LOOK)
        except OSError as error:
            raise LocalError(f"cannot lock CA folder {folder}: {reason(error)}") from error
        else:
            return
