"""A view that is wrong is found out, and one that is right is not."""

import asyncio

import pytest

from shadow import events
from shadow.fleet import audit as audits
from shadow.fleet.audit import Audit
from shadow.fleet.etcd import Swap
from shadow.fleet.keys import Keys
from tests.support.engine import Members
from tests.support.fleet import entry, following, until
from tests.support.log import Said


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a few robots."""
    monkeypatch.setattr(audits, "_LEAST", 3)
    monkeypatch.setattr(audits, "_TURN", 2)


ROBOTS = [f"robot-{number}" for number in range(10)]
ROUND = 5  # steps, at least, for all of them


@pytest.mark.parametrize("fault", ["missing", "old", "other", "too many", "none", "a stranger"])
def test_a_view_that_is_wrong(members: Members, keys: Keys, said: Said, fault: str) -> None:
    async def body() -> None:
        async with following(members, keys) as (engine, view):
            swapped = await engine.swap([Swap(keys.robot(name), 0, entry().encode()) for name in ROBOTS])
            await engine.swap([Swap(keys.robot("robot-x"), 0, b"no JSON")])
            revision = swapped[0].revision
            await until(lambda: len(view.entries) == 10, "the entries")
            audit = Audit(engine, keys, view)
            right = dict(view.entries)
            if fault == "missing":
                view.entries.remove("robot-7")
            elif fault == "old":
                view.entries.put("robot-7", entry(revision=revision - 1), entry().encode())
            elif fault == "other":
                other = entry(sid="other", revision=revision)
                view.entries.put("robot-7", other, other.encode())
            elif fault == "too many":
                view.entries.put("robot-71", entry(revision=revision), entry().encode())
            for _ in range(ROUND):
                await audit.step()
            if fault in {"none", "a stranger"}:
                assert view.resets == 1
                return
            assert any(kind is events.ViewDoubted and "robot-7" in text for kind, text in said)
            # The view notices at the next sign of life.
            await engine.swap([Swap(keys.server("a"), 0, b"1")])
            await until(lambda: view.resets == 2, "a new snapshot")
            assert dict(view.entries) == right

    asyncio.run(body())


def test_a_view_that_changes_all_the_time(members: Members, keys: Keys, said: Said) -> None:
    async def body() -> None:
        async with following(members, keys) as (engine, view):
            audit = Audit(engine, keys, view)
            stop = asyncio.Event()

            async def storm(part: int) -> None:
                names = ROBOTS[part::2]
                revisions = dict.fromkeys(names, 0)
                number = 0
                while not stop.is_set():
                    number += 1
                    values = [None if number % 3 == 0 else entry(sid=f"{number}").encode() for _ in names]
                    swaps = [
                        Swap(keys.robot(name), revisions[name], value)
                        for name, value in zip(names, values, strict=True)
                    ]
                    for swap, swapped in zip(swaps, await engine.swap(swaps), strict=True):
                        assert swapped.ok
                        name = swap.key.decode().rpartition("/")[2]
                        revisions[name] = 0 if swap.value is None else swapped.revision

            storms = [asyncio.create_task(storm(part)) for part in range(2)]
            for _ in range(60):
                await audit.step()
            stop.set()
            await asyncio.gather(*storms)
            assert view.resets == 1
        assert [text for kind, text in said if kind is events.ViewDoubted] == []

    asyncio.run(body())


def test_all_robots_have_their_turn_and_an_engine_that_is_away_is_no_fault(
    members: Members, keys: Keys
) -> None:
    async def body() -> None:
        async with following(members, keys) as (engine, view):
            await engine.swap([Swap(keys.robot(name), 0, entry().encode()) for name in ROBOTS])
            await until(lambda: len(view.entries) == 10, "the entries")
            audit = Audit(engine, keys, view)
            starts = []
            for _ in range(4):
                starts.append(audit._next)
                await audit.step()
            expected = [keys.robots, *(keys.robot(f"robot-{number}") + b"\0" for number in (2, 5, 8))]
            assert starts == expected
            assert audit._next == keys.robots, "and from the beginning"
            view.up = False
            await audit.step()
            assert audit._next == keys.robots
            assert view.touched is None
            assert audits.PAUSE * audits._PARTS == 640

    asyncio.run(body())


def test_changes_that_are_being_taken_in_are_waited_for(members: Members, keys: Keys) -> None:
    async def body() -> None:
        async with following(members, keys) as (engine, view):
            view.busy = True
            step = asyncio.create_task(Audit(engine, keys, view).step())
            for _ in range(10):
                await asyncio.sleep(audits._MOMENT)
                assert not step.done()
            view.busy = False
            await step
            assert view.resets == 1

    asyncio.run(body())
