"""This server as one of a fleet: it tells the others which robots it has, and knows which they have."""

import asyncio
import logging
from collections.abc import Iterator

from ..daemon.membership import Membership
from ..errors import ShadowError
from ..server.server import Server
from .credentials import Identity
from .etcd import Engine
from .keys import Keys, Live
from .leaving import Leaving
from .live import Announcement
from .peering import Peering
from .registrar import Registrar
from .upkeep import Upkeep


class Fleet:
    """It stands on top of a server, which is the same without it.

    Attributes:
        registrar: keeps the claims of the server's robots, and has the view of all others.
        inc: which life of the server this is; see ``keys.Live``.
    """

    def __init__(
        self, server: Server, membership: Membership, peering: Peering, identity: Identity, live: Live
    ) -> None:
        """Join.

        Args:
            server: ours; it fails if it must not go on. It has taken up what the daemon before it has left.
            membership: its settings.
            peering: leads to the others.
            identity: who we are to the engine, where all servers meet.
            live: what to say about this server.
        """
        self._name = name = membership.server
        self._engine = engine = Engine(membership.engine, identity)
        self.inc = live.inc
        self._failure = server.failure
        keys = Keys(membership.fleet)
        self.registrar = Registrar(server.robots, name, live.inc, keys, engine)
        view = self.registrar.view
        self._between = peering.open(server, self.registrar)
        self._announcement = Announcement(engine, keys, name, live, view.intake, view.doubt)
        server.robots.drainer = self._leaving = Leaving(
            server.robots, name, view, self._announcement, rebalances=membership.rebalance
        )
        self._upkeep = Upkeep(server, membership, engine, keys, view)
        parts = (
            view,
            self._leaving,
            self._announcement,
            self.registrar,
            self._between.foreign,
            *self._upkeep.parts,
        )
        self._tasks = [asyncio.create_task(part.run()) for part in parts]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def close(self, *, leaving: bool) -> None:
        """Say nothing more; ``leaving``: and say that, for our robots are leaving, too."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._leaving.close()
        await self._between.close()
        await self.registrar.close()
        if leaving:
            await self._announcement.leave()
        await self._engine.close()

    def cut_off_revoked(self) -> None:
        """Certificates may have been revoked, also other servers'; and the others are to hear of it."""
        self._between.cut_off_revoked()
        self._upkeep.revoking.look()

    def use(self, identity: Identity) -> None:
        """Be somebody else for the engine from now on: files were read again."""
        self._engine.use(identity)

    @property
    def status(self) -> str:
        """A few words for ``systemctl status``."""
        view = self.registrar.view
        leaving = self._leaving.remark
        if not view.up:
            return f"fleet: the engine is away{leaving}"
        full = "" if view.intake.open else ", not announced"
        return f"fleet: {view.summary}{full}{leaving}"

    def describe(self) -> Iterator[str]:
        """Lines for debugging."""
        claims, writer = self.registrar.claims, self.registrar.writer
        yield f"fleet: server {self._name}, inc {self.inc}, {claims.unclaimed} sessions unclaimed"
        yield f"  writes: {writer.done} done, {writer.lost} overtaken, {writer.failed} without an answer"
        yield from self.registrar.view.describe()
        yield from self._leaving.describe()
        yield from self._between.describe()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Nothing of this ends by itself, unless the server must not go on."""
        error = None if task.cancelled() else task.exception()
        if error is None or self._failure.done():
            return
        if not isinstance(error, ShadowError):  # a bug
            text = "unexpected error in what concerns the fleet (please report)"
            logging.getLogger("shadow").error(text, exc_info=error)
            error = ShadowError(f"internal error in what concerns the fleet: {error!r}")
        self._failure.set_result(error)  # it stops in order: what it has is left to the next daemon
