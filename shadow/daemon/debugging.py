"""For debugging a daemon: a page about everything it does, and tracebacks when it hangs or dies.

On SIGUSR1 the event loop writes the page. If the loop itself hangs, SIGUSR2 makes the interpreter write where
each thread is, from inside the signal handler. So do SIGABRT, with which the service manager ends a daemon
that has not fed its watchdog (systemd.service(5), WatchdogSec=), and SIGSEGV and the like. See
``faulthandler`` of Python's library and docs/DEBUGGING.md.
"""

import asyncio
import contextlib
import faulthandler
import functools
import itertools
import logging
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

from .. import __version__, events
from ..text import many, printable

_LINES = 40  # in one message of the log
_LINES_MAX = 20000  # of the daemon's own; for more robots there is shadowctl
_TIMERS_MAX = 10


class Page:
    """Writes pages, one at a time."""

    def __init__(self, describe: Callable[[], Iterable[str]]) -> None:
        """``describe`` yields lines about what the daemon does; other tasks run in between."""
        self._describe = describe
        self._task: asyncio.Task[None] | None = None

    def write(self) -> None:
        """Begin to write one, unless one is being written already."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write())

    async def _write(self) -> None:
        _log([f"pid {os.getpid()}, version {__version__}, {_descriptors()}"])
        try:
            await self._write_described()
        except Exception:  # noqa: BLE001 - the rest may tell why
            events.LOGGER.exception("the page about the daemon breaks off")
        _log([*_timers(), *_tasks(), *_threads()])

    async def _write_described(self) -> None:
        described = iter(self._describe())
        lines = itertools.islice(described, _LINES_MAX)
        while some := list(itertools.islice(lines, _LINES)):
            _log(some)
            await asyncio.sleep(0)
        if next(described, None) is not None:
            _log([f"… and more than these {_LINES_MAX} lines; see shadowctl list"])


def _log(lines: list[str]) -> None:
    text = "\n".join(printable(line) for line in lines)
    events.log(events.Described(), logging.INFO, text)


def _descriptors() -> str:
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError):
        return f"{many(sum(1 for _ in Path('/proc/self/fd').iterdir()), 'descriptor')} of {soft}"
    return f"at most {soft} descriptors"


def _timers() -> Iterator[str]:
    """The event loop's own list: there is no other way to see what it will do next."""
    loop = asyncio.get_running_loop()
    pending: list[asyncio.TimerHandle] = [
        timer for timer in getattr(loop, "_scheduled", []) if not timer.cancelled()
    ]
    yield f"{many(len(pending), 'timer')}, the next:" if pending else "no timers"
    for timer in sorted(pending, key=asyncio.TimerHandle.when)[:_TIMERS_MAX]:
        yield f"  in {timer.when() - loop.time():.1f} s {_name(getattr(timer, '_callback', None))}"


def _name(function: object) -> str:
    if isinstance(function, functools.partial):
        return _name(function.func)
    return getattr(function, "__qualname__", repr(function))


def _tasks() -> Iterator[str]:
    for task in sorted(asyncio.all_tasks(), key=asyncio.Task.get_name):
        coroutine, stack = task.get_coro(), task.get_stack(limit=1)
        yield f"task {task.get_name()}: {_name(coroutine)}{_where(stack[0] if stack else None)}"


def _threads() -> Iterator[str]:
    frames = sys._current_frames()  # noqa: SLF001 - documented, in spite of its name
    for thread in threading.enumerate():
        yield f"thread {thread.name}{_where(frames.get(thread.ident or 0))}"


def _where(frame: FrameType | None) -> str:
    if frame is None:
        return ""
    (last,) = traceback.extract_stack(frame, limit=1)
    return f" at {Path(last.filename).name}:{last.lineno} in {last.name}"


def leave_traces() -> None:
    """From now on, a crash, an abort or SIGUSR2 writes to standard error where each thread is."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2)
