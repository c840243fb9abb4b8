"""The key that says that a server is alive: kept, lost, put again, and never two servers'."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from shadow import events
from shadow.errors import ConfigError, EngineFull, EngineRefused, Unavailable
from shadow.fleet import gateway
from shadow.fleet import live as lives
from shadow.fleet.etcd import Change, Engine, KeyValue, Swap, after
from shadow.fleet.gateway import SILENCE
from shadow.fleet.intake import Intake
from shadow.fleet.keys import Keys, Live, parse_live
from shadow.fleet.live import Announcement
from tests.support import DEADLINE
from tests.support.engine import Members, end
from tests.support.fleet import until
from tests.support.log import Said


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (lives.TTL, lives.KEEP, lives.BEAT, lives._DOUBT) == (10, 2.5, 3.0, 4.5)
    assert lives.BEAT * 3 <= SILENCE, "a watch that misses two is not yet dead"
    monkeypatch.setattr(lives, "KEEP", 0.1)
    monkeypatch.setattr(lives, "BEAT", 0.1)
    monkeypatch.setattr(lives, "_DOUBT", 1.0)
    monkeypatch.setattr(lives, "_AGAIN", 0.05)


@asynccontextmanager
async def engine_of(members: Members) -> AsyncIterator[Engine]:
    engine = Engine(members.endpoints, members.identity())
    try:
        async with asyncio.timeout(DEADLINE):
            yield engine
    finally:
        await end(engine)


class Taken(Intake):
    """Keeps whether what was written last was taken, and why not."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def took(self) -> None:
        self.said.append("")

    def refused(self, error: EngineFull | EngineRefused) -> None:
        self.said.append(str(error))


@asynccontextmanager
async def announced(
    engine: Engine, keys: Keys, inc: str = "1", doubts: list[str] | None = None, intake: Any = None
) -> AsyncIterator[Announcement]:
    """Server a says that it is alive."""
    doubted = ([] if doubts is None else doubts).append
    made = Announcement(engine, keys, "a", Live(inc), intake or Taken(), doubted)
    task = asyncio.create_task(made.run())
    try:
        yield made
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def found(engine: Engine, keys: Keys, inc: str = "1") -> KeyValue:
    """Wait until the key says this."""
    while True:
        there = await engine.get(keys.server("a"))
        if there is not None and parse_live(there.value).inc == inc:
            return there


async def later(engine: Engine, keys: Keys, than: int) -> KeyValue:
    """Wait until the key is written again."""
    while True:
        there = await engine.get(keys.server("a"))
        if there is not None and there.revision > than:
            return there


def test_it_hangs_on_a_lease_and_is_written_again_and_again(members: Members, keys: Keys) -> None:
    async def body() -> None:
        async with engine_of(members) as engine:
            async with announced(engine, keys) as announcement:
                first = await found(engine, keys)
                assert first.lease
                again = await later(engine, keys, first.revision)
                assert again.lease == first.lease
                assert parse_live(again.value) == announcement.live == Live("1")
                await announcement.leave()
            assert await engine.get(keys.server("a")) is None

    asyncio.run(body())


def test_news_are_said_at_once(members: Members, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "BEAT", 1000.0)

    async def body() -> None:
        async with engine_of(members) as engine, announced(engine, keys) as announcement:
            first = await found(engine, keys)
            announcement.say(Live("1", draining=True))
            assert parse_live((await later(engine, keys, first.revision)).value).draining
            await announcement.leave()

    asyncio.run(body())


@pytest.mark.parametrize(("beat", "keep"), [(0.1, 1000.0), (1000.0, 0.1)])
def test_a_lease_that_was_lost(
    members: Members, keys: Keys, said: Said, monkeypatch: pytest.MonkeyPatch, *, beat: float, keep: float
) -> None:
    """Whether writing the key or renewing the lease shows it first."""
    monkeypatch.setattr(lives, "BEAT", beat)
    monkeypatch.setattr(lives, "KEEP", keep)

    async def body() -> None:
        async with engine_of(members) as engine, announced(engine, keys) as announcement:
            first = await found(engine, keys)
            await engine.revoke(first.lease)
            while (await later(engine, keys, first.revision)).lease == first.lease:
                pass
            await announcement.leave()
        assert said == [(events.AnnouncedAgain, "server a was taken for dead; it announces itself again")]

    asyncio.run(body())


def test_a_planned_restart(members: Members, keys: Keys, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same life: the key is never away, and nobody waits."""
    monkeypatch.setattr(lives, "_DOUBT", 1000.0)

    async def body() -> None:
        async with engine_of(members) as engine:
            async with announced(engine, keys):
                first = await found(engine, keys)
            async with announced(engine, keys) as second:
                while (await later(engine, keys, first.revision)).lease == first.lease:
                    pass
                await second.leave()
        assert said == []

    asyncio.run(body())


def test_after_a_crash(members: Members, keys: Keys) -> None:
    """Another life, and nobody writes the key of the last one any more."""

    async def body() -> None:
        async with engine_of(members) as engine:
            async with announced(engine, keys, "1"):
                await found(engine, keys, "1")
            async with announced(engine, keys, "2") as second:
                await found(engine, keys, "2")
                await second.leave()

    asyncio.run(body())


def test_two_servers_of_one_name(members: Members, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lives, "BEAT", 0.5)

    async def body() -> None:
        async with engine_of(members) as engine, announced(engine, keys, "1") as first:
            begin = (await found(engine, keys, "1")).revision
            second = Announcement(engine, keys, "a", Live("2"), Taken(), list[str]().append)
            with pytest.raises(ConfigError, match="another server with --server-id=a is alive") as caught:
                await second.run()
            assert caught.value.exit_status == 78
            end_of_it = (await found(engine, keys, "1")).revision
            written: list[Change] = []
            async with aclosing(engine.watch(keys.prefix, after(keys.prefix), begin)) as batches:
                while not written or written[-1].revision < end_of_it:
                    written += (await anext(batches)).changes
            assert {parse_live(change.value or b"").inc for change in written} == {"1"}, "never overwritten"
            await first.leave()

    asyncio.run(body())


def test_something_else_under_its_name(members: Members, keys: Keys) -> None:
    """It is overwritten unless it moves."""

    async def body() -> None:
        async with engine_of(members) as engine:
            await engine.swap([Swap(keys.server("a"), 0, b"no JSON")])
            async with announced(engine, keys) as announcement:
                while (there := await engine.get(keys.server("a"))) is None or there.value == b"no JSON":
                    pass
                await announcement.leave()

    asyncio.run(body())


def test_an_engine_that_has_gone_back(members: Members, keys: Keys) -> None:
    doubts: list[str] = []

    async def body() -> None:
        async with engine_of(members) as engine, announced(engine, keys, "1", doubts) as announcement:
            first = await found(engine, keys)
            # Its own answer is on its way, perhaps.
            await until(lambda: announcement._revision >= first.revision, "the announcement to know")
            announcement._revision += 10**9
            await until(lambda: doubts, "the doubt")
            await later(engine, keys, first.revision)
            await announcement.leave()

    asyncio.run(body())
    assert doubts == ["it has gone back: was it restored from a backup?"]


def test_an_engine_that_is_away(members: Members, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    brief = gateway._REQUEST._replace(begins=0.3)

    async def body() -> None:
        async with engine_of(members) as engine, announced(engine, keys) as announcement:
            first = await found(engine, keys)
            with monkeypatch.context() as patched, members.members[0].stopped(), members.members[1].stopped():
                patched.setattr(gateway, "_REQUEST", brief)
                for _ in range(2):
                    with pytest.raises(Unavailable):
                        await engine.get(keys.server("a"))
            await later(engine, keys, first.revision + 1)
            await announcement.leave()

    asyncio.run(body())


@pytest.mark.parametrize("why", [EngineFull("no room"), EngineRefused("not you")])
def test_an_engine_that_does_not_take_it(
    members: Members, keys: Keys, monkeypatch: pytest.MonkeyPatch, why: Exception
) -> None:
    """Somebody is told so, and when it does again."""

    async def body() -> None:
        intake = Taken()
        async with engine_of(members) as engine, announced(engine, keys, intake=intake) as announcement:
            first = await found(engine, keys)
            await until(lambda: intake.said, "a word about it")
            assert set(intake.said) == {""}
            swap = engine.swap

            async def refuse(_swaps: object) -> Any:
                raise why

            monkeypatch.setattr(engine, "swap", refuse)
            await until(lambda: intake.said[-1] == str(why), "a word about it")
            monkeypatch.setattr(engine, "swap", swap)
            await until(lambda: intake.said[-1] == "", "the next one to be taken")
            assert (await later(engine, keys, first.revision)).lease == first.lease
            await announcement.leave()

    asyncio.run(body())
