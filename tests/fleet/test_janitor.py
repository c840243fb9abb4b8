"""Entries that lead nowhere go, and no others."""

import asyncio
from collections.abc import Sequence

import pytest

from shadow import events
from shadow.fleet.etcd import SWAPS_MAX, Engine, Swap, Swapped, after
from shadow.fleet.janitor import PATIENCE, Janitor
from shadow.fleet.keys import Keys, Live
from shadow.fleet.view import View
from tests.support.engine import Members
from tests.support.fleet import entry, following, until
from tests.support.log import Said


async def set_up(engine: Engine, keys: Keys, view: View) -> None:
    """Servers b and c are alive, c in its second life; there are robots of all, and of a, which is gone."""
    entries = {f"a{number}": entry("a", "1") for number in range(70)}
    entries |= {"b1": entry("b", "1"), "c1": entry("c", "1"), "c2": entry("c", "2")}
    swaps = [Swap(keys.robot(name), 0, one.encode()) for name, one in entries.items()]
    await engine.swap(swaps[:64])
    await engine.swap(swaps[64:])
    await engine.swap([Swap(keys.server("b"), 0, Live("1").encode())])
    await engine.swap([Swap(keys.server("c"), 0, Live("2").encode())])
    await until(lambda: len(view.entries) == 73 and len(view.servers) == 2, "the entries")


async def names(engine: Engine, keys: Keys) -> set[str]:
    page = await engine.page(keys.robots, after(keys.robots))
    return {found.key.decode().rpartition("/")[2] for found in page.found}


def test_entries_of_servers_that_are_gone(members: Members, keys: Keys, said: Said) -> None:
    async def body() -> None:
        async with following(members, keys) as (engine, view):
            await set_up(engine, keys, view)
            first, second = (Janitor(engine, keys, view, server) for server in "bc")
            for janitor in (first, second):
                await janitor.step(1000.0)
                await janitor.step(1000.0 + PATIENCE - 1)
            assert len(await names(engine, keys)) == 73, "not yet"
            await second.step(1000.0 + PATIENCE)
            assert len(await names(engine, keys)) == 73, "one server does it"
            await first.step(1000.0 + PATIENCE)
            assert await names(engine, keys) == {"b1", "c2"}
        lines = sorted(text for kind, text in said if kind is events.EntriesCleared)
        assert lines == [
            "removed 1 robot of server c, which is gone",
            "removed 70 robots of server a, which is gone",
        ]

    asyncio.run(body())


def test_a_server_that_comes_back_at_the_last_moment(members: Members, keys: Keys) -> None:
    """Before the view has heard of it."""

    async def body() -> None:
        async with following(members, keys) as (engine, view):
            await set_up(engine, keys, view)
            janitor = Janitor(engine, keys, view, "b")
            await janitor.step(0.0)
            await engine.swap([Swap(keys.server("a"), 0, Live("1").encode())])
            await until(lambda: view.live("a"), "the server")
            del view._servers["a"]
            await janitor.step(PATIENCE)
            assert await names(engine, keys) == {f"a{number}" for number in range(70)} | {"b1", "c2"}

    asyncio.run(body())


def test_a_robot_that_comes_back_at_the_last_moment(members: Members, keys: Keys) -> None:
    async def body() -> None:
        async with following(members, keys) as (engine, view):
            await set_up(engine, keys, view)
            janitor = Janitor(engine, keys, view, "b")
            await janitor.step(0.0)
            stale = view.entries.kept("a5")
            assert stale is not None
            await engine.swap([Swap(keys.robot("a5"), stale[0], entry("b", "1").encode())])
            await until(lambda: view.entries["a5"].server == "b", "the claim")
            view.entries.put("a5", entry("a", "1", revision=stale[0]), stale[1])  # as if it had not heard
            await janitor.step(PATIENCE)
            assert await names(engine, keys) == {"a5", "b1", "c2"}

    asyncio.run(body())


def test_a_robot_that_comes_back_while_others_are_removed(
    members: Members, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with following(members, keys) as (engine, view):
            await set_up(engine, keys, view)
            janitor = Janitor(engine, keys, view, "b")
            await janitor.step(0.0)
            swap, back = engine.swap, list[str]()

            async def slow(swaps: Sequence[Swap]) -> list[Swapped]:
                answers = await swap(swaps)
                mine = {one.key for one in swaps}
                rest = [name for name in view.entries if keys.robot(name) not in mine and name[0] == "a"]
                if len(swaps) == SWAPS_MAX and not back:
                    back.append(rest[0])
                    value = entry("b", "1").encode()
                    await swap([Swap(keys.robot(rest[0]), view.entries.revision(rest[0]), value)])
                    await until(lambda: view.entries[rest[0]].server == "b", "the claim")
                return answers

            monkeypatch.setattr(engine, "swap", slow)
            await janitor.step(PATIENCE)
            assert await names(engine, keys) == {*back, "b1", "c2"}

    asyncio.run(body())


def test_while_the_engine_is_away_nobody_is_gone(members: Members, keys: Keys) -> None:
    async def body() -> None:
        async with following(members, keys) as (engine, view):
            await set_up(engine, keys, view)
            janitor = Janitor(engine, keys, view, "b")
            await janitor.step(0.0)
            view.up = False
            await janitor.step(PATIENCE)
            view.up = True
            await janitor.step(PATIENCE)
            assert len(await names(engine, keys)) == 73
            await janitor.step(2 * PATIENCE)
            assert len(await names(engine, keys)) == 2

    asyncio.run(body())
