"""The names of visitors' users, looked up where nobody waits for it.

getpwuid(3) may ask a directory over the network, cannot be interrupted, and knows no time limit. So there is
one thread for all, it is asked for one user at a time, and who wants a name waits for a moment at most. The
thread is daemonic: nobody waits for it when the process ends.
"""

import asyncio
import contextlib
import pwd
import queue
import threading
import time

_PATIENCE = 0.5  # seconds
_FRESH = 60.0  # seconds for which a name is good
_KNOWN_MAX = 1024


class People:
    """Names of users."""

    def __init__(self) -> None:
        """Know none; there is no thread before the first is wanted."""
        self._known: dict[int, tuple[str, float]] = {}
        self._wanted: dict[int, asyncio.Future[str]] = {}
        self._queue: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop = asyncio.get_running_loop()

    async def name_of(self, uid: int) -> str:
        """The name of a user; empty if it has none, or nobody can tell in time."""
        name, until = self._known.get(uid, ("", 0.0))
        if time.monotonic() < until:
            return name
        wanted = self._wanted.get(uid)
        if wanted is None:
            wanted = self._wanted[uid] = self._loop.create_future()
            self._queue.put(uid)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look_up, name="people", daemon=True)
                self._thread.start()
        await asyncio.wait([wanted], timeout=_PATIENCE)
        return wanted.result() if wanted.done() else name

    def close(self) -> None:
        """End the thread, when it is done with what it was asked."""
        self._queue.put(None)

    def _look_up(self) -> None:
        while (uid := self._queue.get()) is not None:
            try:
                # Whatever bytes it may consist of, it is to go over the wire and into the log.
                name = pwd.getpwuid(uid).pw_name.encode(errors="replace").decode()
            except (KeyError, OSError, OverflowError):
                name = ""
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is waiting any more
                self._loop.call_soon_threadsafe(self._found, uid, name)

    def _found(self, uid: int, name: str) -> None:
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        self._known[uid] = name, time.monotonic() + _FRESH
        self._wanted.pop(uid).set_result(name)
