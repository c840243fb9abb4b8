"""The view: the same as the engine, whatever happens to either."""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.processes import free_port
from shadow import events
from shadow.errors import Unavailable
from shadow.fleet.credentials import load_identity
from shadow.fleet.etcd import PAGE, SWAPS_MAX, Batch, Change, Engine, Swap, after
from shadow.fleet.keys import Keys, Live, Pointer, Strange
from shadow.fleet.live import BEAT
from shadow.fleet.turns import _TURN
from shadow.fleet.view import View
from shadow.pki.certificates import Files
from tests.support import Authority, now, wait_for
from tests.support.engine import Members, end
from tests.support.fleet import Told, entry, following, until
from tests.support.log import Said


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Members]:
    """A member that is the test's alone."""
    with Members(tmp_path / "one", 1) as made:
        yield made


async def claim(engine: Engine, keys: Keys, *names: str, sid: str = "5e55") -> int:
    """Write entries of robots, whatever was there; the revision."""
    swaps = []
    for name in names:
        found = await engine.get(keys.robot(name))
        swaps.append(Swap(keys.robot(name), 0 if found is None else found.revision, entry(sid=sid).encode()))
    swapped = await engine.swap(swaps)
    assert all(one.ok for one in swapped)
    return swapped[0].revision


async def answered(engine: Engine, keys: Keys) -> None:
    """Wait for an engine that was away: connections from before may still have to be found dead."""
    answer = False
    while not answer:
        with contextlib.suppress(Unavailable):
            await engine.get(keys.robot("1"))
            answer = True


async def claim_new(engine: Engine, keys: Keys, names: list[str]) -> None:
    """The same, for robots that have none."""
    swapped = await engine.swap([Swap(keys.robot(name), 0, entry().encode()) for name in names])
    assert all(one.ok for one in swapped)


async def same(engine: Engine, keys: Keys, view: View) -> None:
    """Wait until the view is what the engine has."""
    page = await engine.page(keys.robots, after(keys.robots))
    assert not page.more
    await until(lambda: view.revision >= max([0, *(one.revision for one in page.found)]), "the view")
    found = {one.key: (one.revision, one.value) for one in page.found}
    assert {keys.robot(name): view.entries.kept(name) for name in view.entries} == found


def test_everything_at_first_and_then_every_change_in_order(members: Members, keys: Keys) -> None:
    async def body() -> None:
        told = Told()
        engine = Engine(members.endpoints, members.identity())
        first = await claim(engine, keys, "1", "2")
        await end(engine)
        async with following(members, keys, told) as (engine, view):
            assert (told.resets, told.engine) == (1, [True])
            assert [change[0] for change in told.changes] == ["1", "2"]
            assert view.robot("1") == entry(revision=first)
            assert view.robot("3") is None
            second = await claim(engine, keys, "2", "3", sid="2")
            (gone,) = await engine.swap([Swap(keys.robot("1"), first, None)])
            await until(lambda: len(told.changes) == 5, "the changes")
            assert told.changes[2:] == [
                ("2", entry(sid="2", revision=second), second),
                ("3", entry(sid="2", revision=second), second),
                ("1", None, gone.revision),
            ]
            assert view.revision == gone.revision
            assert view.age == 0
            await same(engine, keys, view)

    asyncio.run(body())


def test_servers(members: Members, keys: Keys) -> None:
    async def body() -> None:
        told = Told()
        async with following(members, keys, told) as (engine, view):
            live = Live("1")
            (put,) = await engine.swap([Swap(keys.server("a"), 0, live.encode())])
            (again,) = await engine.swap([Swap(keys.server("a"), put.revision, live.encode())])
            await until(lambda: view.revision >= again.revision, "the sign of life")
            assert told.servers == ["a"], "signs of life are no news"
            assert view.live("a") == live
            assert view.servers == ["a"]
            assert view.counts(entry("a", "1"))
            assert not view.counts(entry("a", "2"))
            assert not view.counts(entry("b", "1"))
            (draining,) = await engine.swap(
                [Swap(keys.server("a"), again.revision, Live("1", draining=True).encode())]
            )
            await engine.swap([Swap(keys.server("a"), draining.revision, None)])
            await until(lambda: view.live("a") is None, "its end")
            assert told.servers == ["a"] * 3

    asyncio.run(body())


def test_what_is_none_of_ours_is_ignored_and_said_once(members: Members, keys: Keys, said: Said) -> None:
    async def body() -> None:
        told = Told()
        async with following(members, keys, told) as (engine, view):
            revision = await claim(engine, keys, "1")
            await engine.swap(
                [
                    Swap(keys.robot("1"), revision, b"no JSON"),
                    Swap(keys.robot("2"), 0, b'{"v":2}'),
                    Swap(keys.robot("3"), 0, b'{"v":2}'),
                    Swap(keys.robot("4"), 0, b'{"v":1}'),
                    Swap(keys.server("a"), 0, b"\xff"),
                    Swap(keys.prefix + b"else\x1b[2J", 0, b"1"),
                    Swap(keys.prefix + b"else2", 0, b"1"),
                    Swap(keys.prefix + b"op/drain", 0, b"1"),
                    Swap(keys.robot("5"), 0, entry().encode()),
                ]
            )
            await until(lambda: view.robot("5"), "the last of them")
            assert list(view.entries) == ["5"]
            assert [change[:2] for change in told.changes[1:2]] == [("1", None)], "it is no entry any more"
            assert view.strangers == {Strange.JSON: 2, Strange.VERSION: 2, Strange.FIELD: 1, Strange.KEY: 2}
            lines = [text for event, text in said if event is events.KeyIgnored]
            assert len(lines) == 4
            assert all(line.isprintable() for line in lines)
            assert any("another version" in line for line in lines)
        async with following(members, keys) as (_engine, view):  # the same by a snapshot
            assert list(view.entries) == ["5"]
            assert any("no JSON object: 2" in line for line in view.describe())

    asyncio.run(body())


def test_a_storm_gives_everybody_else_their_turns(members: Members, keys: Keys) -> None:
    async def body() -> None:
        engine = Engine(members.endpoints, members.identity())
        view = View(engine, keys, Told())
        value = entry().encode()
        storm = Batch([Change(keys.robot(f"{n}"), value, n + 1) for n in range(5000)], whole=True)
        task = asyncio.create_task(view._take(storm))
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        assert len(view.entries) == 5000
        assert turns >= 5000 / _TURN

    asyncio.run(body())


def test_only_part_of_a_revision(members: Members, keys: Keys) -> None:
    """If the watch ends within it, it is asked for again, and nothing is told twice."""

    async def body() -> None:
        told = Told()
        view = View(Engine(members.endpoints, members.identity()), keys, told)
        changes = [Change(keys.robot(f"{n}"), entry().encode(), 7) for n in range(4)]
        await view._take(Batch(changes[:2], whole=False))
        assert view.revision == 6
        await view._take(Batch(changes, whole=True))
        assert view.revision == 7
        assert [change[0] for change in told.changes] == ["0", "1", "2", "3"]
        await view._take(Batch([Change(keys.robot("0"), entry(sid="old").encode(), 5)], whole=True))
        assert (view.revision, view.entries["0"].sid) == (7, entry().sid), "nor does anything go back"

    asyncio.run(body())


def test_a_bug_of_a_subscribers_does_not_end_the_view(
    members: Members, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    class Buggy(Told):
        def on_change(self, *_: object) -> None:
            raise RuntimeError("bug")

    async def body() -> None:
        async with following(members, keys, Buggy()) as (engine, view):
            await claim(engine, keys, "1")
            await until(lambda: view.robot("1"), "the entry")

    with caplog.at_level(logging.ERROR, "shadow"):
        asyncio.run(body())
    assert "please report" in caplog.text


def test_more_robots_than_fit_one_page(members: Members, keys: Keys) -> None:
    async def body() -> None:
        engine = Engine(members.endpoints, members.identity())
        names = [f"{number:05}" for number in range(PAGE + 50)]
        for begin in range(0, len(names), SWAPS_MAX):
            await claim_new(engine, keys, names[begin : begin + SWAPS_MAX])
        await end(engine)
        told = Told()
        async with following(members, keys, told) as (engine, view):
            assert list(view.entries) == names
            assert len(told.changes) == len(names)
            assert not (await engine.swap([Swap(keys.robot(names[0]), 1, None)]))[0].ok
            view.doubt("a test")
            await engine.swap([Swap(keys.robot(names[0]), view.entries.revision(names[0]), None)])
            await until(lambda: view.resets == 2, "a new snapshot")
            assert set(view.entries) == set(names[1:])
            assert len(told.changes) == len(names) + 1, "differences are told, and nothing else"

    asyncio.run(body())


@pytest.mark.long
def test_what_else_there_is_may_be_large(members: Members, keys: Keys) -> None:
    """Some 34 MiB, which no answer may have: lists of revoked certificates stand there."""

    async def body() -> None:
        async with following(members, keys) as (engine, view):
            await claim(engine, keys, "011")
            for number in range(68):
                pointer = Pointer(number, 0, "5e" * 32, 1, "a")
                await engine.swap([Swap(keys.piece("c0" * 32, pointer, 0), 0, bytes(2**19))])
            view.doubt("a test")
            await engine.swap([Swap(keys.server("b"), 0, b"x")])  # the next batch
            await until(lambda: view.resets == 2, "all to be read again")
            assert list(view.entries) == ["011"]

    asyncio.run(body())


def test_when_to_look_at_the_lists_of_revoked_certificates(members: Members, keys: Keys) -> None:
    """At first, and whenever the key that points to one changes: its pieces alone are of no use."""

    async def body() -> None:
        ca, pointer = "c0" * 32, Pointer(1, 0, "5e" * 32, 1, "a")
        async with following(members, keys) as (engine, view):
            assert view.lists.is_set()
            view.lists.clear()
            await engine.swap([Swap(keys.piece(ca, pointer, 0), 0, b"x")])
            await claim(engine, keys, "011")
            await until(lambda: view.robot("011"), "the entry")
            assert not view.lists.is_set()
            (written,) = await engine.swap([Swap(keys.pointer(ca), 0, pointer.encode())])
            await until(view.lists.is_set, "the key to be seen")
            view.lists.clear()
            await engine.swap([Swap(keys.pointer(ca), written.revision, None)])
            await until(view.lists.is_set, "its end to be seen")

    asyncio.run(body())


def test_compaction(members: Members, keys: Keys) -> None:
    """While the view was not there, more happened than the engine remembers."""

    async def body() -> None:
        told = Told()
        engine = Engine(members.endpoints, members.identity())
        view = View(engine, keys, told)
        first = await claim(engine, keys, "1", "2")
        task = asyncio.create_task(view.run())
        await until(lambda: view.up, "the view")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        told.changes.clear()
        await engine.swap([Swap(keys.robot("1"), first, None)])
        last = await claim(engine, keys, "3")
        members.ask(members.members[0], "kv/compaction", {"revision": str(last)})
        task = asyncio.create_task(view.run())
        await until(lambda: view.resets == 2, "a new snapshot")
        await same(engine, keys, view)
        assert [change[:1] for change in told.changes] == [("3",), ("1",)]
        assert told.changes[1][1] is None
        assert told.resets == 2
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await end(engine)

    asyncio.run(body())


def test_the_leader_is_killed(members: Members, keys: Keys, said: Said) -> None:
    """Every change comes, once and in order; nothing is read again."""

    async def body() -> None:
        told = Told()
        async with following(members, keys, told) as (engine, view):
            leader = members.leader
            stop = asyncio.Event()

            async def write() -> None:
                number = 0
                while not stop.is_set():
                    number += 1
                    with_retries = 0
                    while True:
                        try:
                            await claim(engine, keys, f"{number % 7}", sid=f"{number}")
                            break
                        except (Unavailable, AssertionError):
                            with_retries += 1
                            assert with_retries < 100

            writer = asyncio.create_task(write())
            await until(lambda: len(told.changes) > 20, "changes")
            leader.kill()
            before = len(told.changes)
            await until(lambda: len(told.changes) > before + 20, "changes after the kill")
            stop.set()
            await writer
            await same(engine, keys, view)
            assert told.engine[-1], "on a slow machine nobody may answer for a moment, but no longer"
            assert view.resets == 1
            revisions = [revision for _name, _entry, revision in told.changes]
            assert revisions == sorted(set(revisions))
            assert all(kind is not events.ViewDoubted for kind, _text in said)

    try:
        asyncio.run(body())
    finally:
        for member in members.members:
            if member.process is not None and member.process.poll() is not None:
                members.start(member)
        wait_for(lambda: all(map(members.is_up, members.members)), "all members")


def test_the_engine_goes_and_comes_back(one: Members, keys: Keys, said: Said) -> None:
    async def body() -> None:
        told = Told()
        async with following(one, keys, told) as (engine, view):
            await claim(engine, keys, "1")
            await until(lambda: view.robot("1"), "the entry")
            one.members[0].kill()
            await until(lambda: not view.up, "the end")
            assert view.age > 0
            assert view.robot("1") is not None, "what was known is known"
            one.start(one.members[0])
            await until(lambda: view.up, "the engine")
            await claim(engine, keys, "2")
            await until(lambda: view.robot("2"), "the entry")
            assert told.engine == [True, False, True]
            assert told.resets == 1
        kinds = [kind for kind, _text in said]
        assert kinds == [events.EngineFound, events.EngineLost, events.EngineFound]
        assert "Connection refused" in said[1][1]
        assert said[2][1] == "following the fleet's engine: 1 robot of 0 servers"

    asyncio.run(body())


def test_an_engine_restored_from_a_backup(one: Members, keys: Keys, said: Said) -> None:
    async def body() -> None:
        told = Told()
        member = one.members[0]
        async with following(one, keys, told) as (engine, view):
            first = await claim(engine, keys, "1", "2")
            await until(lambda: view.robot("2"), "the entries")
            member.kill()
            shutil.copytree(one.folder / member.name, one.folder / "backup")
            one.start(member)
            await answered(engine, keys)
            await claim(engine, keys, "2", sid="new")
            await claim(engine, keys, "3")
            await until(lambda: view.robot("3"), "the entries")
            member.kill()
            shutil.rmtree(one.folder / member.name)
            shutil.move(one.folder / "backup", one.folder / member.name)
            one.start(member)
            await until(lambda: view.resets == 2, "a new snapshot")
            await same(engine, keys, view)
            assert view.robot("2") == entry(revision=first)
            assert told.changes[-1][:2] == ("3", None)
        assert [text for kind, text in said if kind is events.ViewDoubted and "gone back" in text]

    asyncio.run(body())


def test_another_engine_at_the_same_address(one: Members, keys: Keys, said: Said) -> None:
    async def body() -> None:
        member = one.members[0]
        async with following(one, keys) as (engine, view):
            await claim(engine, keys, "1")
            await until(lambda: view.robot("1"), "the entry")
            member.kill()
            shutil.rmtree(one.folder / member.name)
            one.start(member, "--initial-cluster-token=another")
            await until(lambda: view.resets == 2, "a new snapshot")
            assert dict(view.entries) == {}
        assert [text for kind, text in said if kind is events.ViewDoubted and "another engine" in text]

    asyncio.run(body())


def test_a_new_engine_that_has_come_further_than_the_old_one(one: Members, keys: Keys, said: Said) -> None:
    """Members of the same names and tokens have the same id, and its term is no lower: nothing else tells."""

    async def body() -> None:
        member = one.members[0]
        async with following(one, keys) as (engine, view):
            await claim(engine, keys, "1")
            await until(lambda: view.robot("1"), "the entry")
            member.kill()
            shutil.rmtree(one.folder / member.name)
            # Others meet there first.
            port, member.client = member.client, free_port()
            one.start(member)
            await until(lambda: one.is_up(member), "the engine")
            others = Engine(one.endpoints, one.identity())
            for sid in range(view.revision + 10):
                await claim(others, keys, "2", sid=f"{sid}")
            await others.close()
            member.kill()
            member.client = port
            one.start(member)
            await until(lambda: view.resets == 2, "a new snapshot")
            await same(engine, keys, view)
            assert set(view.entries) == {"2"}
        assert [text for kind, text in said if kind is events.ViewDoubted and "another past" in text]

    asyncio.run(body())


def test_an_engine_that_refuses_us(members: Members, keys: Keys, tmp_path: Path, said: Said) -> None:
    async def body() -> None:
        other = Authority(tmp_path / "other", "Other CA")
        engine = Engine(members.endpoints, load_identity(Files(other.ca, *other.robot("a")), None, [], now()))
        view = View(engine, keys, Told())
        task = asyncio.create_task(view.run())
        await until(lambda: said, "a word about it")
        assert not task.done()
        assert said[0][0] is events.EngineLost
        assert "refuses us" in said[0][1]
        assert said[0][1].endswith("robots and visitors here are served all the same")
        assert view.age == float("inf")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await end(engine)

    asyncio.run(body())


@pytest.mark.long
def test_a_member_that_hangs_is_found_out_by_its_silence(members: Members, keys: Keys, said: Said) -> None:
    """Though no request is made there: the other servers' signs of life are missing."""

    async def body() -> None:
        told = Told()
        async with following(members, keys, told) as (_engine, view):
            other = Engine(members.endpoints, members.identity())
            revision = (await other.swap([Swap(keys.server("b"), 0, Live("1").encode())]))[0].revision

            async def beat() -> None:
                nonlocal revision
                while True:
                    with contextlib.suppress(Unavailable):
                        swap = Swap(keys.server("b"), revision, Live("1").encode())
                        swapped = (await other.swap([swap]))[0]
                        revision = swapped.current.revision if swapped.current else swapped.revision
                    await asyncio.sleep(BEAT)

            beating = asyncio.create_task(beat())
            await until(lambda: view.live("b"), "the other server")
            at = next(iter(_engine._gateway._streams.values()))
            with members.members[at].stopped():
                await until(lambda: at not in _engine._gateway._streams.values(), "the end of the watch")
                await until(lambda: _engine._gateway._streams, "another watch")
                before = view.revision
                await until(lambda: view.revision > before, "a sign of life")
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            await other.close()
            assert told.engine == [True]
            assert view.resets == 1

    asyncio.run(body())


class Mover:
    """Claims robots, in parts, whatever happens to the engine."""

    def __init__(self, engine: Engine, keys: Keys, names: list[str]) -> None:
        self._engine = engine
        self._keys = keys
        self.revisions = dict.fromkeys(names, 0)

    async def move(self, sid: str) -> None:
        names = list(self.revisions)
        parts = [names[begin : begin + SWAPS_MAX] for begin in range(0, len(names), SWAPS_MAX)]

        async def work() -> None:
            while parts:
                part = parts.pop()
                while part:
                    part = await self._claim(part, sid)

        await asyncio.gather(work(), work())

    async def _claim(self, part: list[str], sid: str) -> list[str]:
        """Once; those that are not claimed yet."""
        value = entry(sid=sid).encode()
        swaps = [Swap(self._keys.robot(name), self.revisions[name], value) for name in part]
        try:
            answers = await self._engine.swap(swaps)
        except Unavailable:
            return part
        for name, swapped in zip(part, answers, strict=True):
            self.revisions[name] = swapped.current.revision if swapped.current else swapped.revision
        mine = [swapped.ok or (swapped.current and swapped.current.value == value) for swapped in answers]
        return [name for name, done in zip(part, mine, strict=True) if not done]


@pytest.mark.long
def test_ten_thousand_robots_that_all_move_while_the_leader_is_killed(
    members: Members, keys: Keys, said: Said
) -> None:
    """Two servers' views are equal at the end, and equal to the engine; nothing was read again."""

    async def body() -> None:
        async with (
            following(members, keys) as (engine, first),
            following(members, keys, alone=False) as (_other, second),
        ):
            mover = Mover(engine, keys, [f"{number:05}" for number in range(10_000)])
            revisions = mover.revisions
            await mover.move("1")
            moving = asyncio.create_task(mover.move("2"))
            leader = members.leader
            leader.kill()
            await moving
            members.start(leader)
            await until(lambda: first.revision == second.revision == max(revisions.values()), "the views")
            assert {name: first.entries.revision(name) for name in revisions} == revisions
            assert {name: second.entries.kept(name) for name in revisions} == {
                name: first.entries.kept(name) for name in revisions
            }
            assert {one.sid for one in first.entries.values()} == {"2"}
            assert first.resets == second.resets == 1

    try:
        asyncio.run(body())
    finally:
        wait_for(lambda: all(map(members.is_up, members.members)), "all members")
