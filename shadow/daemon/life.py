"""The life of a daemon: ready, watched, reloaded, stopped. It is the same for both roles."""

import asyncio
import contextlib
import datetime as dt
import logging
import resource
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from .. import events
from .. import text as texts
from ..errors import ShadowError
from ..pki.expiry import Calendar, Term
from ..relay.durable import DurableStreams
from ..relay.pool import Relay
from ..systemd import journal
from ..systemd.fdstore import Store
from ..systemd.notify import Notifier, watchdog_interval
from ..text import printable
from .debugging import Page, leave_traces

_STATUS_INTERVAL = 1.0  # seconds between checks of the status; systemd only hears of changes


class Role(Protocol):
    """A daemon's actual work."""

    async def start(self) -> None:
        """Begin; when this returns, the daemon is ready."""

    async def stop(self) -> None:
        """End everything properly."""

    def reload(self) -> str:
        """Read files again; if one is broken, raise ShadowError and change nothing.

        Returns:
            What else the log should say about the new state; may be empty.
        """

    @property
    def status(self) -> str:
        """A line for ``systemctl status``."""

    def describe(self) -> Iterable[str]:
        """Lines for debugging: everything it has, with states and ages, and no secrets."""

    @property
    def terms(self) -> Sequence[Term]:
        """What it uses that expires."""

    @property
    def failure(self) -> "asyncio.Future[ShadowError]":
        """Set when the role cannot continue; the daemon then ends with that error."""


def run(
    make_role: Callable[[DurableStreams], Role], on_start: Callable[[Store], None], level: int = logging.INFO
) -> None:
    """Run a daemon until SIGTERM or SIGINT.

    Args:
        make_role: makes its role.
        on_start: called when it has started.
        level: the lowest level to log, as a number of ``logging``.

    Raises:
        ShadowError: it could not start, or could not continue.
    """
    journal.setup(level=level)
    leave_traces()
    raise_descriptor_limit()
    try:
        asyncio.run(_live(make_role, on_start))
    finally:
        journal.close()


async def _live(make_role: Callable[[DurableStreams], Role], on_start: Callable[[Store], None]) -> None:
    notifier = Notifier()
    interval = watchdog_interval()
    store = Store()
    relay = Relay()
    background: list[asyncio.Task[None]] = []
    try:
        durable = DurableStreams(relay, store)
        role = make_role(durable)
        reporter = _Reporter(role, notifier)
        stopped = _stop_on_signals()
        page = Page(role.describe)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, page.write)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reporter.reload)
        await role.start()
        on_start(store)
        _drop_unknown(store)
        reporter.start()
        background.append(asyncio.create_task(reporter.run()))
        if interval is not None:
            background.append(asyncio.create_task(_feed_watchdog(relay, notifier, interval)))
        failure = await _until_stopped(role, stopped)
        notifier.stopping("stopping")
        if failure is None:
            streams = texts.many(durable.protected, "stream")
            kept = f": {streams} left for the next start" if durable.protected else ""
            events.log(events.Stopping(), logging.INFO, f"stopping{kept}")
        await role.stop()
        if failure is not None:
            raise failure
    finally:
        for task in background:
            task.cancel()
        relay.stop()
        notifier.close()
        # The last streams' ends were reported from the relay's threads; let them be logged.
        await asyncio.sleep(0)


def _drop_unknown(store: Store) -> None:
    """Close what the service manager has passed and nobody has taken.

    A newer version may have kept more; or a socket is passed, and the setting that it is for is missing.
    """
    names = store.close_rest()
    if names:
        what = texts.many(len(names), "descriptor")
        shown = printable(", ".join(names[:5]))
        text = f"dropped {what} of no use to this version with these settings: {shown}"
        events.log(events.StreamGivenUp(), logging.WARNING, text)


async def _until_stopped(role: Role, stopped: asyncio.Event) -> ShadowError | None:
    waiting = asyncio.create_task(stopped.wait())
    try:
        either: list[asyncio.Future[Any]] = [waiting, role.failure]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    return role.failure.result() if role.failure.done() else None


def _stop_on_signals() -> asyncio.Event:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    return stopped


def reload(read_again: Callable[[], str]) -> None:
    """Have a role read its files again, and log how that went.

    Raises:
        ShadowError: a file is broken; nothing has changed.
    """
    try:
        remark = read_again()
    except Exception as error:
        failure = error
        if not isinstance(error, ShadowError):
            logging.getLogger("shadow").exception("unexpected error: a reload failed (please report)")
            failure = ShadowError(f"internal error: {error!r}")
        text = f"reload failed, the old files stay in use: {failure}"
        events.log(events.ReloadFailed(), logging.ERROR, text)
        raise failure from error
    text = "reloaded: new connections use the new certificates"
    events.log(events.Reloaded(), logging.INFO, f"{text}; {remark}" if remark else text)


class _Reporter:
    """Tells systemd the role's status, and warns of what expires."""

    def __init__(self, role: Role, notifier: Notifier) -> None:
        self._role = role
        self._notifier = notifier
        self._calendar = Calendar()
        self._started = self._asked = False

    def start(self) -> None:
        """The role has started; do the reload that was requested meanwhile, if any."""
        self._started = True
        self._notifier.ready(self.status)
        if self._asked:
            self.reload()

    @property
    def status(self) -> str:
        return f"{self._role.status}{self._calendar.remark}"

    def reload(self) -> None:
        if not self._started:  # it has read its files, but they may have changed since
            self._asked = True
            return
        self._notifier.reloading()
        try:
            with contextlib.suppress(ShadowError):
                reload(self._role.reload)
        finally:  # whatever happened: until it hears this, the service manager believes we are reloading
            self._notifier.ready(self.status)

    async def run(self) -> None:
        while True:
            # Ask the wall clock each time: it may jump, and certificates go by it.
            self._calendar.look(self._role.terms, dt.datetime.now(dt.UTC))
            self._notifier.status(self.status)
            await asyncio.sleep(_STATUS_INTERVAL)


async def _feed_watchdog(relay: Relay, notifier: Notifier, interval: float) -> None:
    """Tell systemd that we are alive, as long as this loop and every thread of the relay come around.

    Every half interval, as sd_watchdog_enabled(3) recommends; the threads have that long to answer a ping.
    """
    while True:
        if relay.turning:
            notifier.watchdog()
            relay.ping()
        await asyncio.sleep(interval / 2)


def raise_descriptor_limit() -> None:
    """A stream takes six descriptors; the soft limit of 1024 is for programs that use select(2)."""
    with contextlib.suppress(ValueError, OSError):  # a sandbox may forbid it, and sets the limit itself
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
