"""The key that says that this server is alive, and the one lease that it hangs on.

All of a server's robots count while it is there: 20,000 entries depend on one key. The lease is kept alive,
and beside that the key is written again every ``BEAT`` seconds: so every watch of the fleet hears something
at least that often, and one that hears nothing is dead (``gateway.SILENCE``).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable

from .. import events
from ..errors import ConfigError, EngineFull, EngineRefused, LeaseLost, Unavailable
from .etcd import Engine, KeyValue, Swap
from .intake import Intake
from .keys import Keys, Live, Stranger, parse_live

TTL = 10  # seconds that a server may be silent
KEEP = 2.5  # seconds between two renewals of the lease
BEAT = 3.0  # seconds between two writes of the key
_AGAIN = 0.5  # seconds after a failure
_DOUBT = 1.5 * BEAT  # seconds within which another server with our name would have been heard


class Announcement:
    """Says for a server that it is alive, from ``run`` on."""

    def __init__(
        self,
        engine: Engine,
        keys: Keys,
        server: str,
        live: Live,
        intake: Intake,
        on_doubt: Callable[[str], None],
    ) -> None:
        """Say nothing yet.

        Args:
            engine: where to say it.
            keys: those of the fleet.
            server: our name.
            live: what to say.
            intake: told whether it is written.
            on_doubt: called when the engine has forgotten what we wrote: it has gone back.
        """
        self._engine = engine
        self._key = keys.server(server)
        self._server = server
        self._live = live
        self._intake = intake
        self._on_doubt = on_doubt
        self._lease = 0
        self._revision = 0  # of our last write
        self._news = asyncio.Event()

    @property
    def live(self) -> Live:
        """What we say."""
        return self._live

    def say(self, live: Live) -> None:
        """Say something else, now and from now on."""
        self._live = live
        self._news.set()

    def add(self, live: Live) -> None:
        """Say something else from the next beat on."""
        self._live = live

    async def run(self) -> None:
        """Be alive.

        Raises:
            ConfigError: another server with our name is alive.
        """
        tasks = [asyncio.create_task(self._beats()), asyncio.create_task(self._keep())]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def leave(self) -> None:
        """Be dead, now and not in ten seconds; if the engine does not answer, then in ten seconds."""
        lease, self._lease = self._lease, 0
        if lease:
            with contextlib.suppress(Unavailable, EngineRefused):
                await self._engine.revoke(lease)

    async def _beats(self) -> None:
        while True:
            pause = await self._beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._news.wait()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(KEEP)
            lease = self._lease
            if lease:
                try:
                    await self._engine.keep_alive(lease)
                except LeaseLost:
                    self._forget(lease)
                    self._news.set()
                except (Unavailable, EngineRefused):
                    pass  # the view says so

    def _forget(self, lease: int) -> None:
        if self._lease == lease:
            self._lease = 0

    async def _beat(self) -> float:
        """Write the key; return for how long to wait until the next time."""
        self._news.clear()
        lease = self._lease
        try:
            if not lease:
                lease = self._lease = await self._engine.grant(TTL)
            (swapped,) = await self._engine.swap(
                [Swap(self._key, self._revision, self._live.encode(), lease)]
            )
            self._intake.took()
            if swapped.ok:
                self._revision = swapped.revision
                return BEAT
            return await self._look_at(swapped.current)
        except LeaseLost:  # an engine may lose each new one at once
            self._forget(lease)
            return _AGAIN
        except (EngineFull, EngineRefused) as error:
            self._intake.refused(error)
            return _AGAIN
        except Unavailable:
            return _AGAIN

    async def _look_at(self, current: KeyValue | None) -> float:
        """The key is not as we have written it; return when to write it again."""
        if current is None:
            self._revision = 0
            text = f"server {self._server} was taken for dead; it announces itself again"
            events.log(events.AnnouncedAgain(), logging.WARNING, text)
        elif _inc_of(current) == self._live.inc:
            # Ours: of before a planned restart, or we wrote it and the answer was lost.
            if current.revision < self._revision:
                self._on_doubt("it has gone back: was it restored from a backup?")
            self._revision = current.revision
        else:
            await self._wait_for_the_other(current)
        return 0.0

    async def _wait_for_the_other(self, seen: KeyValue) -> None:
        """Somebody else has our key: we ourselves, before a crash, or another server."""
        await asyncio.sleep(_DOUBT)
        current = await self._engine.get(self._key)
        if current is not None and current.revision != seen.revision and _inc_of(current) == _inc_of(seen):
            raise ConfigError(
                f"another server with --server-id={self._server} is alive: give each server of the fleet "
                "a name of its own"
            )
        self._revision = 0 if current is None else current.revision


def _inc_of(found: KeyValue) -> str | None:
    """The life in which a server has written its key; None if it has written something else."""
    try:
        return parse_live(found.value).inc
    except Stranger:
        return None
