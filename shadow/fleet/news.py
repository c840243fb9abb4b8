"""Wakes those who wait for something to be said about a robot, or about servers."""

import asyncio

from .keys import Entry


class News:
    """See ``view.Subscriber``; what is said, whoever is awake can look up."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._loop = asyncio.get_running_loop()
        # For names that somebody waits for, or has waited for since anything was said about them.
        self._futures: dict[str, asyncio.Future[None]] = {}

    def of(self, name: str) -> asyncio.Future[None]:
        """Done when the next thing is said that concerns a robot; not to be cancelled."""
        return self._futures.setdefault(name, self._loop.create_future())

    def tell(self, name: str) -> None:
        """Something is to be said about a robot."""
        future = self._futures.pop(name, None)
        if future is not None:
            future.set_result(None)

    def _tell_all(self) -> None:
        for name in list(self._futures):
            self.tell(name)

    def on_change(self, robot: str, entry: Entry | None, revision: int) -> None:
        """See ``view.Subscriber``."""
        del entry, revision
        self.tell(robot)

    def on_live(self, server: str) -> None:
        """See ``view.Subscriber``."""
        del server
        self._tell_all()

    def on_reset(self) -> None:
        """See ``view.Subscriber``."""
        self._tell_all()

    def on_engine(self, *, up: bool) -> None:
        """See ``view.Subscriber``."""
        del up
        self._tell_all()
