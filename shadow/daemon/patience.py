"""A daemon that cannot start: it says why and exits; the next time it waits before it exits.

The service manager starts it again at once, with the present settings and key, which it passes only when the
service starts. But what is wrong usually stays wrong until somebody fixes it, and failing twice a second
until then would keep the machine busy and fill the log. So a daemon that cannot start, and whose predecessor
could not either, waits until something in the settings' folders changes, or for half a minute, and does
nothing meanwhile. A start that somebody asked for fails at once: its predecessor was stopped, and a stop
forgets everything.

The server must not just stay down, as a robot's client may: ``shadow-server.socket`` would start it again for
every robot that dials, without a pause. While it waits here, the service manager waits for it.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import ShadowError
from ..systemd.fdstore import Memo, Store
from ..systemd.notify import Notifier

_WAIT = 30.0  # seconds
_LOOK = 0.2  # seconds between checks of the folders
_FILES = ("SHADOW_CA", "SHADOW_CRT", "SHADOW_CRL")  # the settings and keys are beside them
_STOP = (signal.SIGTERM, signal.SIGINT)


class Patience:
    """Create it when the process starts, before it reads any file: it sees what changes from then on."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._memo = Memo("cannot-start")
        paths = [Path(environment[name]) for name in _FILES if environment.get(name)]
        self._folders = {path.parent for path in paths}
        self._seen = self._look()
        self._has_started = False
        self._why: str | None = None

    def watch(self, body: Callable[[], None]) -> Callable[[], None]:
        """``body``, with an eye on what it raises."""

        def watched() -> None:
            try:
                body()
            except Exception as error:
                self._why = str(error) if isinstance(error, ShadowError) else repr(error)
                raise

        return watched

    def started(self, store: Store) -> None:
        """The start succeeded; whatever ends us from now on says nothing about the next start."""
        self._memo.clear(store)
        self._has_started = True

    def leave(self, status: int) -> int:
        """Wait until it is time to exit, after everything has been logged; return the exit status.

        Args:
            status: the exit status so far.
        """
        if self._why is None or self._has_started:
            return status
        if not self._memo.is_set:
            self._memo.set()
            return status
        return 0 if self._wait(self._why) else status

    def _wait(self, why: str) -> bool:
        """Wait for a change; True if we have been asked to stop."""
        asked: list[int] = []
        for number in _STOP:
            # Do not block them and wait for them: in another thread of ours they would still end the process.
            signal.signal(number, lambda number, _frame: asked.append(number))
        notifier = Notifier()
        notifier.status(f"Cannot start: {why}")
        notifier.close()
        end = time.monotonic() + _WAIT
        while time.monotonic() < end and self._look() == self._seen:
            time.sleep(_LOOK)
            if asked:
                self._memo.clear()
                return True
        return False

    def _look(self) -> list[tuple[str, int, int]]:
        """What is in the folders: names, and when each file last changed (its ctime)."""
        found = []
        for folder in self._folders:
            try:
                with os.scandir(folder) as entries:
                    stats = [(entry.path, entry.stat()) for entry in entries]
            except OSError:
                continue
            found += [(path, status.st_ino, status.st_ctime_ns) for path, status in stats]
        return sorted(found)
