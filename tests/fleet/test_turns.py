"""Others have their turns in the middle of long work."""

import asyncio

from shadow.fleet.turns import _TURN, in_turns


def test_everybody_else_has_a_turn_in_between() -> None:
    async def body() -> None:
        others = 0

        async def other() -> None:
            nonlocal others
            while True:
                others += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        items = list(range(10 * _TURN + 1))
        assert [item async for item in in_turns(items)] == items
        assert others == 10
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(body())
