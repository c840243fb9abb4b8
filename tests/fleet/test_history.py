"""What gives an engine away that is not the one whose entries we have. What follows from that: test_view."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from shadow.errors import Compacted
from shadow.fleet.entries import Entries
from shadow.fleet.etcd import Engine, Header, Swap
from shadow.fleet.history import History
from shadow.fleet.keys import Keys
from tests.support import DEADLINE
from tests.support.engine import Members, end
from tests.support.fleet import entry


class Scene:
    """An engine, and what somebody has seen of it."""

    def __init__(self, engine: Engine, keys: Keys) -> None:
        self.engine, self.keys = engine, keys
        self.history = History(engine, keys)
        self.entries = Entries()

    async def claim(self, robot: str, sid: str = "5e55", expected: int = 0) -> int:
        """Write an entry; its revision."""
        (swapped,) = await self.engine.swap([Swap(self.keys.robot(robot), expected, entry(sid=sid).encode())])
        assert swapped.ok
        return swapped.revision

    def see(self, robot: str, revision: int, sid: str = "5e55") -> None:
        seen = entry(sid=sid, revision=revision)
        self.entries.put(robot, seen, seen.encode())

    async def check(self, revision: int) -> str | None:
        return await self.history.check(self.entries, revision)


def play(members: Members, keys: Keys, body: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        engine = Engine(members.endpoints, members.identity())
        async with asyncio.timeout(DEADLINE):
            await body(Scene(engine, keys))
        await end(engine)

    asyncio.run(run())


def test_the_same_engine_whatever_has_happened_since(members: Members, keys: Keys) -> None:
    async def body(scene: Scene) -> None:
        assert await scene.check(1) is None, "who knows of no robot has nothing to compare"
        revision = 0
        for robot in "12":
            revision = await scene.claim(robot)
            scene.see(robot, revision)
        assert await scene.check(revision) is None
        await scene.claim("2", "another", expected=revision)
        await scene.claim("3")
        assert await scene.check(revision) is None

    play(members, keys, body)


def test_part_of_a_revision_may_be_in_already(members: Members, keys: Keys) -> None:
    async def body(scene: Scene) -> None:
        revision = await scene.claim("1")
        scene.see("1", revision)
        scene.see("2", revision + 1)
        assert await scene.check(revision) is None

    play(members, keys, body)


@pytest.mark.parametrize("there", ["nothing", "another session's", "one of another revision"])
def test_another_past(members: Members, keys: Keys, there: str) -> None:
    async def body(scene: Scene) -> None:
        scene.see("1", await scene.claim("1"))
        revision = await scene.claim("2") if there != "nothing" else await scene.claim("3")
        seen = revision - 1 if there == "one of another revision" else revision
        scene.entries.remove("1")
        scene.see("2", seen, "another" if there == "another session's" else "5e55")
        assert "another past" in (await scene.check(revision) or "")

    play(members, keys, body)


def test_another_engine_and_one_that_has_gone_back(members: Members, keys: Keys) -> None:
    async def body(scene: Scene) -> None:
        here = await scene.engine.header(keys.prefix)
        assert "gone back" in (await scene.check(here.revision + 10**6) or "")
        for was, why in (
            (Header(here.cluster + 1, here.term, here.revision), "it is another engine"),
            (Header(here.cluster, here.term + 100, here.revision), "gone back"),
        ):
            scene.history.begin(was)
            assert why in (await scene.check(here.revision) or "")
            assert await scene.check(here.revision) is None, "said once"

    play(members, keys, body)


def test_what_the_engine_no_longer_knows(members: Members, keys: Keys) -> None:
    async def body(scene: Scene) -> None:
        first = await scene.claim("1")
        scene.see("1", first)
        last = await scene.claim("2")
        members.ask(members.members[0], "kv/compaction", {"revision": str(last)})
        with pytest.raises(Compacted):
            await scene.check(first)

    play(members, keys, body)
