"""Orders of the claims, on their way to the engine."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from shadow.errors import Unavailable
from shadow.fleet.claims import Claim, Delete, Put
from shadow.fleet.etcd import KeyValue, Swap, Swapped
from shadow.fleet.keys import Entry, Keys
from shadow.fleet.writer import Command, Writer
from tests.support.log import Said

KEYS = Keys("f")
ENTRY = Entry("s1", "inc", "sid", "boot", 1)


def put(name: str, expected: int = 0) -> Put:
    return Put(Claim(name, "sid", "boot", 1), expected)


class World:
    """An engine that answers when it is told to, and who gives the orders."""

    def __init__(self) -> None:
        self.asked: list[Sequence[Swap]] = []
        self.go = asyncio.Event()
        self.answer: Callable[[Swap], Swapped] = lambda _swap: Swapped(ok=True, revision=7)
        self.away = False
        self.bug = ""
        self.has: Entry | None = ENTRY
        self.heard: list[tuple[Command, Entry | None, int, bool]] = []
        self.unheard: list[Command] = []
        engine: Any = self
        self.writer = Writer(engine, KEYS, self)

    async def swap(self, swaps: Sequence[Swap]) -> list[Swapped]:
        self.asked.append(swaps)
        await self.go.wait()
        if self.away:
            raise Unavailable("away")
        return list(map(self.answer, swaps))

    def entry_of(self, put: Put) -> Entry | None:
        return self.has

    def answered(self, order: Command, entry: Entry | None, revision: int, *, done: bool) -> None:
        if order.robot == self.bug:
            raise ZeroDivisionError
        self.heard.append((order, entry, revision, done))

    def unanswered(self, order: Command) -> None:
        self.unheard.append(order)

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not done():
                await asyncio.sleep(0.001)


def play(body: Callable[[World], Awaitable[None]]) -> None:
    async def run() -> None:
        world = World()
        await body(world)
        await world.writer.close()

    asyncio.run(run())


def test_orders_go_together_and_two_transactions_at_a_time() -> None:
    async def body(world: World) -> None:
        orders = [put(f"r{number}") for number in range(200)]
        for order in orders:
            world.writer.give(order)
        await world.until(lambda: len(world.asked) == 2)
        await asyncio.sleep(0.02)
        assert [len(swaps) for swaps in world.asked] == [64, 64]
        world.go.set()
        await world.until(lambda: len(world.heard) == 200)
        assert [len(swaps) for swaps in world.asked] == [64, 64, 64, 8]
        assert sorted(order.robot for order, *_ in world.heard) == sorted(order.robot for order in orders)
        assert (world.writer.done, world.writer.lost, world.writer.failed) == (200, 0, 0)

    play(body)


def test_what_is_written_is_what_is_reported() -> None:
    async def body(world: World) -> None:
        world.go.set()
        world.writer.give(order := put("011", 5))
        world.writer.give(delete := Delete("012", 6))
        await world.until(lambda: len(world.heard) == 2)
        assert list(world.asked[0]) == [
            Swap(KEYS.robot("011"), 5, ENTRY.encode()), Swap(KEYS.robot("012"), 6, None)
        ]  # fmt: skip
        assert world.heard == [(order, ENTRY._replace(revision=7), 7, True), (delete, None, 7, True)]

    play(body)


def test_a_session_that_has_ended_meanwhile_is_not_written() -> None:
    """And nothing else happens to what stands there: it may be another server's."""

    async def body(world: World) -> None:
        world.go.set()
        world.has = None
        world.writer.give(order := put("011", 5))
        world.writer.give(delete := Delete("012", 6))
        await world.until(lambda: len(world.heard) + len(world.unheard) == 2)
        assert [swap.key for swap in world.asked[0]] == [KEYS.robot("012")]
        assert world.unheard == [order]
        assert [one for one, *_ in world.heard] == [delete]

    play(body)


def test_a_bug_costs_one_robot(said: Said, caplog: pytest.LogCaptureFixture) -> None:
    async def body(world: World) -> None:
        world.go.set()
        world.bug = "011"
        for name in ("010", "011", "012"):
            world.writer.give(put(name))
        await world.until(lambda: len(world.heard) == 2)
        assert [order.robot for order, *_ in world.heard] == ["010", "012"]

    play(body)
    assert any("robot 011 may remain unclaimed" in text for text in [*caplog.messages, *map(str, said)])


def test_what_is_there_instead_is_reported() -> None:
    async def body(world: World) -> None:
        world.go.set()
        other = ENTRY._replace(server="s2")

        def answer(swap: Swap) -> Swapped:
            found = {
                KEYS.robot("011"): KeyValue(swap.key, other.encode(), 9),
                KEYS.robot("012"): KeyValue(swap.key, b"no JSON", 9),
            }
            return Swapped(ok=False, revision=10, current=found.get(swap.key))

        world.answer = answer
        for name in ("011", "012", "013"):
            world.writer.give(put(name))
        await world.until(lambda: len(world.heard) == 3)
        entries = [entry for _order, entry, *_ in world.heard]
        assert entries == [other._replace(revision=9), Entry("", "", "", "", 0, revision=9), None]
        assert [(revision, done) for _order, _entry, revision, done in world.heard] == [(10, False)] * 3

    play(body)


def test_no_answer_is_reported_too() -> None:
    async def body(world: World) -> None:
        world.away = True
        world.go.set()
        world.writer.give(order := put("011"))
        await world.until(lambda: world.unheard == [order])
        assert world.writer.failed == 1

    play(body)


def test_at_the_end_nobody_is_waited_for() -> None:
    async def body(world: World) -> None:
        for number in range(200):
            world.writer.give(put(f"r{number}"))
        await world.until(lambda: len(world.asked) == 2)
        await world.writer.close()
        assert (world.heard, world.unheard) == ([], [])

    play(body)
