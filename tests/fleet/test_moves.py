"""Robots that were told to go to another server: who has gone, and who has stayed."""

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

from shadow.fleet.moves import Moves
from shadow.wire.frames import Frame, Move
from tests.support import virtual_time


class Robots(dict[str, Any]):
    """Some of them, each with a session, and what it was told."""

    def __init__(self, *names: str, moves: bool = True) -> None:
        super().__init__()
        for name in names:
            self[name] = SimpleNamespace(name=name)
            self.come(name, moves=moves)

    def come(self, name: str, *, moves: bool = True) -> None:
        told: list[Frame] = []
        self[name].session = SimpleNamespace(
            moves=moves, channel=SimpleNamespace(send=told.append), told=told
        )


def run(body: Coroutine[Any, Any, None]) -> None:
    virtual_time.run(body)


def test_gone_or_stayed() -> None:
    async def body() -> None:
        robots: Any = Robots("forgotten", "left", "back", "slow", "other")
        moves = Moves(robots)
        for name in ("forgotten", "left", "back", "slow"):
            assert moves.tell(robots[name], robots[name].session)
        assert [len(robot.session.told) for robot in robots.values()] == [1, 1, 1, 1, 0]
        assert robots["slow"].session.told == [Move()]
        assert (len(moves), "slow" in moves, "other" in moves) == (4, True, False)
        assert moves.look() == [], "it takes a moment"
        del robots["forgotten"]
        robots["left"].session = None
        robots.come("back")  # a balancer has sent it here
        assert moves.look() == ["back"]
        assert (len(moves), "back" in moves, "slow" in moves) == (1, False, True)
        assert moves.count == {"gone": 2, "stayed": 1}
        await asyncio.sleep(59)
        assert moves.look() == []
        await asyncio.sleep(2)
        assert moves.look() == ["slow"]
        assert moves.count == {"gone": 2, "stayed": 2}
        assert len(moves) == 0

    run(body())


def test_who_does_not_understand_it_is_not_told() -> None:
    async def body() -> None:
        robots: Any = Robots("old", moves=False)
        moves = Moves(robots)
        assert not moves.tell(robots["old"], robots["old"].session)
        assert robots["old"].session.told == []
        robots["old"].session = None
        assert moves.look() == []
        assert moves.count == {"gone": 1, "stayed": 0}

    run(body())


def test_nobody_is_on_the_way_any_more() -> None:
    async def body() -> None:
        robots: Any = Robots("one")
        moves = Moves(robots)
        moves.tell(robots["one"], robots["one"].session)
        moves.forget()
        robots["one"].session = None
        assert moves.look() == []
        assert moves.count == {"gone": 0, "stayed": 0}

    run(body())
