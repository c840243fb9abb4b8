"""The client of the engine, with a real one: etcd of three members."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager

import pytest

from bench.processes import free_port
from shadow.errors import Compacted, LeaseLost, Unavailable
from shadow.fleet import gateway
from shadow.fleet.etcd import SWAPS_MAX, Batch, Change, Engine, Swap, Swapped, after
from shadow.fleet.keys import Keys
from shadow.net.address import Endpoint
from tests.support import DEADLINE
from tests.support.engine import HOST, Members, end


@asynccontextmanager
async def client(members: Members) -> AsyncIterator[Engine]:
    engine = Engine(members.endpoints, members.identity())
    try:
        yield engine
    finally:
        await end(engine)


def using(members: Members, body: Callable[[Engine], Awaitable[None]]) -> None:
    """Run ``body`` with a client."""

    async def run() -> None:
        async with client(members) as engine, asyncio.timeout(DEADLINE):
            await body(engine)

    asyncio.run(run())


def test_swaps_in_one_transaction_succeed_and_fail_alone(members: Members, keys: Keys) -> None:
    async def body(engine: Engine) -> None:
        a, b, c = map(keys.robot, "abc")
        first, second = await engine.swap([Swap(a, 0, b"1"), Swap(b, 0, b"2")])
        assert first.ok
        assert second.ok
        assert first.revision == second.revision, "one entry of the engine's log"
        found = await engine.get(a)
        assert found is not None
        assert (found.key, found.value, found.revision) == (a, b"1", first.revision)

        done, late, absent = await engine.swap(
            [Swap(a, first.revision, b"3"), Swap(b, first.revision - 1, b"4"), Swap(c, 7, b"5")]
        )
        assert done.ok
        assert not late.ok
        assert late.current == await engine.get(b), "who loses is told what is there"
        assert late.current is not None
        assert late.current.value == b"2"
        assert absent == Swapped(ok=False, revision=done.revision, current=None)

        gone, kept = await engine.swap([Swap(a, done.revision, None), Swap(b, 0, None)])
        assert gone.ok
        assert not kept.ok
        assert await engine.get(a) is None

    using(members, body)


def test_a_swap_unless_another_key_is_there(members: Members, keys: Keys) -> None:
    async def body(engine: Engine) -> None:
        robot, server = keys.robot("a"), keys.server("s")
        (put,) = await engine.swap([Swap(robot, 0, b"1")])
        (there,) = await engine.swap([Swap(server, 0, b"x")])
        (refused,) = await engine.swap([Swap(robot, put.revision, None, unless=server)])
        assert not refused.ok
        await engine.swap([Swap(server, there.revision, None)])
        (done,) = await engine.swap([Swap(robot, put.revision, None, unless=server)])
        assert done.ok

    using(members, body)


def test_as_many_swaps_as_fit_and_no_more(members: Members, keys: Keys) -> None:
    async def body(engine: Engine) -> None:
        swaps = [Swap(keys.robot(f"{number}"), 0, b"x") for number in range(SWAPS_MAX)]
        assert all(swapped.ok for swapped in await engine.swap(swaps))
        assert await engine.swap([]) == []
        with pytest.raises(ValueError, match="65 swaps"):
            await engine.swap([*swaps, Swap(keys.robot("more"), 0, b"x")])
        with pytest.raises(ValueError, match="several of one key"):
            await engine.swap([swaps[0], swaps[0]])

    using(members, body)


def test_pages_at_one_revision(members: Members, keys: Keys) -> None:
    async def body(engine: Engine) -> None:
        names = [keys.robot(f"{number:02}") for number in range(10)]
        await engine.swap([Swap(name, 0, b"old") for name in names])
        page = await engine.page(keys.prefix, after(keys.prefix), limit=4)
        revision = page.header.revision
        (swapped,) = await engine.swap([Swap(names[9], revision, b"new")])
        assert swapped.ok
        found = [*page.found]
        while page.more:
            page = await engine.page(found[-1].key + b"\0", after(keys.prefix), revision, limit=4)
            found += page.found
        assert [one.key for one in found] == names
        assert {one.value for one in found} == {b"old"}
        now = await engine.page(keys.prefix, after(keys.prefix))
        assert now.found[9].value == b"new"
        assert not now.more
        assert (await engine.header(names[0])).revision >= swapped.revision
        assert (await engine.header(names[0])).cluster == page.header.cluster
        bare = await engine.names(keys.prefix, after(keys.prefix), 4)
        assert [one.key for one in bare.found] == names[:4]
        assert [one.revision for one in bare.found] == [one.revision for one in now.found[:4]]
        assert {one.value for one in bare.found} == {b""}
        assert bare.more
        stale = await engine.page(keys.prefix, after(keys.prefix), revision, serializable=True)
        assert {one.value for one in stale.found} == {b"old"}

    using(members, body)


def test_a_watch_brings_every_change_in_order(members: Members, keys: Keys) -> None:
    async def body(engine: Engine) -> None:
        a, b = keys.robot("a"), keys.robot("b")
        (first,) = await engine.swap([Swap(a, 0, b"1")])
        async with aclosing(engine.watch(keys.prefix, after(keys.prefix), first.revision + 1)) as batches:
            assert await anext(batches) == Batch([], whole=True), "it is watching"
            (second,) = await engine.swap([Swap(a, first.revision, b"2")])
            third = await engine.swap([Swap(a, second.revision, None), Swap(b, 0, b"3")])
            seen: list[Change] = []
            while len(seen) < 3:
                seen += (await anext(batches)).changes
            assert seen == [
                Change(a, b"2", second.revision),
                Change(a, None, third[0].revision),
                Change(b, b"3", third[0].revision),
            ]

    using(members, body)


def test_a_watch_takes_up_where_another_ended(members: Members, keys: Keys) -> None:
    async def body(engine: Engine) -> None:
        revisions = [(await engine.swap([Swap(keys.robot(f"{n}"), 0, b"x")]))[0].revision for n in range(5)]
        seen: list[Change] = []
        async with aclosing(engine.watch(keys.prefix, after(keys.prefix), revisions[2])) as batches:
            while len(seen) < 3:
                seen += (await anext(batches)).changes
        assert [change.revision for change in seen] == revisions[2:]

    using(members, body)


def test_a_large_transaction_comes_in_parts(members: Members, keys: Keys) -> None:
    """Else a line could be as large as the history that a watch has to make up for."""

    async def body(engine: Engine) -> None:
        first = (await engine.header(keys.prefix)).revision + 1
        value = b"x" * 10_000
        for part in range(6):
            await engine.swap([Swap(keys.robot(f"{part}-{n}"), 0, value) for n in range(SWAPS_MAX)])
        seen, whole = 0, []
        async with aclosing(engine.watch(keys.prefix, after(keys.prefix), first)) as batches:
            while seen < 6 * SWAPS_MAX:
                batch = await anext(batches)
                seen += len(batch.changes)
                whole.append(batch.whole)
        assert False in whole
        assert whole[-1]

    using(members, body)


def test_compaction(members: Members, keys: Keys) -> None:
    async def body(engine: Engine) -> None:
        (first,) = await engine.swap([Swap(keys.robot("a"), 0, b"1")])
        (second,) = await engine.swap([Swap(keys.robot("a"), first.revision, b"2")])
        members.ask(members.members[0], "kv/compaction", {"revision": str(second.revision)})
        with pytest.raises(Compacted):
            await engine.page(keys.prefix, after(keys.prefix), first.revision)
        async with aclosing(engine.watch(keys.prefix, after(keys.prefix), first.revision)) as batches:
            assert await anext(batches) == Batch([], whole=True)
            with pytest.raises(Compacted):
                await anext(batches)

    using(members, body)


def test_leases(members: Members, keys: Keys) -> None:
    async def body(engine: Engine) -> None:
        lease = await engine.grant(10)
        (put,) = await engine.swap([Swap(keys.server("a"), 0, b"1", lease)])
        assert put.ok
        found = await engine.get(keys.server("a"))
        assert found is not None
        assert found.lease == lease
        await engine.keep_alive(lease)
        await engine.revoke(lease)
        assert await engine.get(keys.server("a")) is None, "it hangs on the lease"
        with pytest.raises(LeaseLost):
            await engine.keep_alive(lease)
        with pytest.raises(LeaseLost):
            await engine.swap([Swap(keys.robot("b"), 0, b"1"), Swap(keys.server("a"), 0, b"1", lease)])
        assert await engine.get(keys.robot("b")) is None, "nothing of such a transaction is done"
        await engine.revoke(lease)  # as often as you like

    using(members, body)


def test_a_member_that_hangs_is_passed_over_and_its_watch_ends(
    members: Members, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not only when the stream has been silent for too long."""
    monkeypatch.setattr(gateway, "_STREAM", gateway._STREAM._replace(pauses=None))

    async def body(engine: Engine) -> None:
        (put,) = await engine.swap([Swap(keys.robot("a"), 0, b"1")])
        async with aclosing(engine.watch(keys.prefix, after(keys.prefix), put.revision)) as batches:
            await anext(batches)
            await anext(batches)
            with members.members[engine._gateway._at].stopped():
                found = await engine.get(keys.robot("a"))
                assert found is not None
                assert found.revision == put.revision
                with pytest.raises(Unavailable):
                    await anext(batches)

    using(members, body)


@pytest.mark.long
def test_a_watch_at_a_member_without_its_leader_ends(
    members: Members, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would hear of nothing, and say nothing."""
    monkeypatch.setattr(gateway, "_STREAM", gateway._STREAM._replace(pauses=None))

    async def body(engine: Engine) -> None:
        (put,) = await engine.swap([Swap(keys.robot("a"), 0, b"1")])
        async with aclosing(engine.watch(keys.prefix, after(keys.prefix), put.revision)) as batches:
            await anext(batches)
            await anext(batches)
            alone = engine._gateway._at
            one, two = (member for at, member in enumerate(members.members) if at != alone)
            with one.stopped(), two.stopped(), pytest.raises(Unavailable):
                await anext(batches)

    using(members, body)


def test_nobody_there(members: Members, keys: Keys) -> None:
    async def body() -> None:
        ports = free_port(), free_port()
        engine = Engine([Endpoint(HOST, port) for port in ports], members.identity())
        with pytest.raises(Unavailable) as caught:
            await engine.get(keys.prefix)
        assert all(f"{HOST}:{port}: Connection refused" in str(caught.value) for port in ports)
        with pytest.raises(Unavailable, match="Connection refused"):
            async with aclosing(engine.watch(keys.prefix, after(keys.prefix), 1)) as batches:
                await anext(batches)
        await end(engine)

    asyncio.run(body())
