"""What tests of the fleet need: entries, a subscriber that keeps what it is told, and a view that runs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from shadow.fleet.etcd import Engine
from shadow.fleet.keys import Entry, Keys
from shadow.fleet.view import View
from tests.support import DEADLINE
from tests.support.engine import Members, end


def entry(server: str = "a", inc: str = "1", sid: str = "5e55", revision: int = 0) -> Entry:
    """A robot's."""
    return Entry(server, inc, sid, "b007", 1, ("",), "192.0.2.1:7", 1.5, "0c", revision)


class Told:
    """Keeps what a view tells it."""

    def __init__(self) -> None:
        self.changes: list[tuple[str, Entry | None, int]] = []
        self.servers: list[str] = []
        self.resets = 0
        self.engine: list[bool] = []

    def on_change(self, robot: str, entry: Entry | None, revision: int) -> None:
        self.changes.append((robot, entry, revision))

    def on_live(self, server: str) -> None:
        self.servers.append(server)

    def on_reset(self) -> None:
        self.resets += 1

    def on_engine(self, *, up: bool) -> None:
        self.engine.append(up)


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for it."""
    try:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"waited in vain for {what}") from None


@asynccontextmanager
async def following(
    members: Members, keys: Keys, told: Told | None = None, *, alone: bool = True
) -> AsyncIterator[tuple[Engine, View]]:
    """A view that follows the engine; ``alone``: the loop has no other."""
    engine = Engine(members.endpoints, members.identity())
    view = View(engine, keys, told or Told())
    task = asyncio.create_task(view.run())
    try:
        await until(lambda: view.up, "the view")
        yield engine, view
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await (end(engine) if alone else engine.close())
