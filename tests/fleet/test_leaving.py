"""What sends robots away, one thing at a time, and what people are told of it."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shadow.errors import LocalError
from shadow.fleet import leaving
from shadow.fleet.balance import Balance, Terms
from shadow.fleet.keys import Keys, Live, Progress
from shadow.fleet.leaving import Leaving
from shadow.fleet.view import View
from shadow.server.questions import By
from tests.support import virtual_time
from tests.support.fleet import Told, entry
from tests.support.log import Said

ROOT = By(0)

NOBODY, ONE = (f"{count} on their way, 0 gone, 0 stayed, 0 not to be asked again" for count in (0, 1))


class Announcement:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.live = Live("1")

    def say(self, live: Live) -> None:
        self.live = live

    add = say


class Robots(dict[str, Any]):
    """Of our server."""

    draining = False
    connected = 0


class World:
    """Our server a, with some robots that nobody visits, and another one, b."""

    def __init__(self, count: int, *, rebalances: bool) -> None:
        self.view = View(cast("Any", None), Keys("f"), Told())
        self.view.up = True
        self.robots = Robots()
        self.told: Counter[str] = Counter()
        self.live("a")
        self.live("b")
        for number in range(count):
            self.robot(f"{number}")
        self.robots.connected = count
        self.announcement = Announcement()
        self.leaving = Leaving(
            cast("Any", self.robots), "a", self.view, cast("Any", self.announcement), rebalances=rebalances
        )

    def live(self, name: str, revision: int = 1, *, draining: bool = False) -> None:
        self.view._put(self.view._keys.server(name), Live("1", draining=draining).encode(), revision)

    def robot(self, name: str) -> None:
        def send(_frame: object) -> None:
            self.told[name] += 1

        session = SimpleNamespace(
            since=-1000.0, moves=True, channel=SimpleNamespace(send=send), board=SimpleNamespace(visitors=[])
        )
        self.robots[name] = SimpleNamespace(
            name=name, session=session, streams=Streams(), visitors=SimpleNamespace(starting={})
        )
        self.view._put(self.view._keys.robot(name), entry("a").encode(), 1)

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.leaving.run())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Streams(dict[str, str]):
    """Of one robot: what is in it and how it ends is up to the test. Counts how often anybody looks."""

    direct = 0
    looks = 0

    def __len__(self) -> int:
        Streams.looks += 1
        return super().__len__()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "Balance", lambda: Balance(Terms(least=1, calm=2.0)), raising=True)


def test_too_many() -> None:
    async def body() -> None:
        world = World(10, rebalances=True)
        async with world.run():
            await asyncio.sleep(1.5)
            assert list(world.leaving.describe()) == [f"rebalancing: 10 here, waits for 2 s; {NOBODY}"]
            await asyncio.sleep(1.0)
            assert (world.leaving.remark, world.announcement.live.progress) == ("", Progress())
            await asyncio.sleep(1.0)
            assert world.leaving.remark == ", rebalancing"
            assert world.announcement.live.progress == Progress(surplus=4)
            assert world.told.total() == 1
            assert list(world.leaving.describe()) == [
                f"rebalancing: 10 here, sends some away, 5.0 on average; {ONE}"
            ]
            del world.robots[next(iter(world.told))]
            await asyncio.sleep(1.0)
            assert world.leaving.moves == {
                ("draining", "gone"): 0, ("draining", "stayed"): 0,
                ("rebalancing", "gone"): 1, ("rebalancing", "stayed"): 0,
            }  # fmt: skip

    virtual_time.run(body())


def test_not_wanted() -> None:
    async def body() -> None:
        world = World(10, rebalances=False)
        async with world.run():
            await asyncio.sleep(1000)
            assert world.told.total() == 0
            assert world.announcement.live.progress == Progress()
            assert list(world.leaving.describe()) == []
            assert set(world.leaving.moves) == {("draining", "gone"), ("draining", "stayed")}

    virtual_time.run(body())


def test_all_of_them() -> None:
    async def body() -> None:
        world = World(250, rebalances=True)
        world.robots["0"].streams["pump"] = "visitor"
        world.robots["0"].streams.direct = 1
        async with world.run():
            await asyncio.sleep(0.5)
            world.leaving.start(ROOT, 100.0)
            assert world.announcement.live == Live("1", draining=True)
            assert world.announcement.live.progress == Progress(), "not known yet"
            assert [world.robots.draining] == [True]
            for total in (100, 200, 250):
                await asyncio.sleep(1.0)
                assert world.told.total() == total
                assert ("0" in world.told) == (total == 250), "who is visited comes last"
            assert world.announcement.live.progress == Progress(1, 98)
            assert world.leaving.remark == ", draining"
            assert list(world.leaving.describe()) == [
                "draining: 250 on their way, 0 gone, 0 stayed; Progress(visited=1, ends=97, surplus=None)",
                f"rebalancing: 250 here, others do not matter; {NOBODY}",
            ]
            await asyncio.sleep(57.5)
            assert world.told.total() == 250
            await asyncio.sleep(3.0)
            assert world.told.total() == 500, "who has not gone is asked again"
            world.leaving.stop(ROOT)
            assert [world.robots.draining] == [False]
            assert (world.announcement.live, world.leaving.remark) == (Live("1"), "")

    virtual_time.run(body())


def test_of_many_robots_only_the_next_ones_are_looked_at() -> None:
    """Everything else waits meanwhile."""

    async def body() -> None:
        world = World(1000, rebalances=False)
        draining = world.leaving._draining
        draining.start(ROOT)
        for total in (100, 200):
            Streams.looks = 0
            draining._send_away()
            assert world.told.total() == total
            assert Streams.looks == 100

    virtual_time.run(body())


def test_the_log_says_who_wants_it(said: Said) -> None:
    async def body() -> None:
        world = World(10, rebalances=False)
        alice = By(1000, "alice", "b")
        for by, timeout in ((ROOT, None), (alice, 600.0)):
            world.leaving.start(by, timeout)
        for by in (alice, ROOT):  # the second time it is over already
            world.leaving.stop(by)

    virtual_time.run(body())
    end = "; by order of uid 1000 (alice at server b)"
    assert [text for _kind, text in said] == [
        "draining: 10 robots to go to other servers; by order of uid 0",
        f"draining: 10 robots to go to other servers; streams that are left then are ended after 600 s{end}",
        f"draining is over: robots are taken again{end}",
    ]


def test_others_are_to_take_them() -> None:
    async def body() -> None:
        world = World(10, rebalances=False)
        world.live("b", 2, draining=True)
        with pytest.raises(LocalError, match="no other server of the fleet is alive and takes robots"):
            world.leaving.start(ROOT)
        world.live("b", 3)
        async with world.run():
            world.leaving.start(ROOT)
            world.live("b", 4, draining=True)
            await asyncio.sleep(9.5)
            assert world.told.total() == 0
            assert [world.robots.draining] == [False], "a robot is better here than nowhere"
            world.live("b", 5)
            await asyncio.sleep(1)
            assert world.told.total() == 10
            assert [world.robots.draining] == [True]
            world.leaving.close()
            assert [world.robots.draining] == [False]

    virtual_time.run(body())
