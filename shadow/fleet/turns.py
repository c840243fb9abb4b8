"""Long work in turns: everybody else has one after so many items."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

_TURN = 100  # items: some two milliseconds

T = TypeVar("T")


async def in_turns(items: Sequence[T]) -> AsyncIterator[T]:
    """Each of them; everybody else has a turn in between."""
    for number, item in enumerate(items, 1):
        yield item
        if number % _TURN == 0:
            await asyncio.sleep(0)
