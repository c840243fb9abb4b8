"""Which other servers are dialled: those that the directory names, and those that it has just named."""

import asyncio

from .keys import Entry
from .peers import Peers
from .view import View

_REMEMBERED = 600.0  # seconds for which a server that is gone is dialled: as long as its entries stay


class Acquaintances:
    """Has those dialled that the directory names, or has named a while ago; see ``view.Subscriber``.

    A server that lost its lease, for the engine does not hear it, may well be reached by us.
    """

    def __init__(self, peers: Peers, view: View) -> None:
        """Know nobody yet.

        Args:
            peers: dials them.
            view: says who is there.
        """
        self._peers = peers
        self._view = view
        self._loop = asyncio.get_running_loop()
        self._going: dict[str, asyncio.TimerHandle] = {}

    def close(self) -> None:
        """Stop the timers."""
        for timer in self._going.values():
            timer.cancel()

    def on_live(self, server: str) -> None:
        """See ``view.Subscriber``."""
        timer = self._going.pop(server, None)
        if timer is not None:
            timer.cancel()
        live = self._view.live(server)
        if live is not None:
            self._peers.meet(server, live.peer)
        else:
            self._going[server] = self._loop.call_later(_REMEMBERED, self._forget, server)

    def _forget(self, server: str) -> None:
        del self._going[server]
        self._peers.meet(server, None)

    def on_change(self, robot: str, entry: Entry | None, revision: int) -> None:
        """See ``view.Subscriber``."""

    def on_reset(self) -> None:
        """See ``view.Subscriber``."""

    def on_engine(self, *, up: bool) -> None:
        """See ``view.Subscriber``."""
