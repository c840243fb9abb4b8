"""Replies that take time: other servers' words, as they come, and what is said of those that say nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shadow.admin import later
from shadow.admin.later import Gathering, answer_of
from shadow.errors import Refused, Unreachable
from shadow.server.questions import DISCONNECT, STREAMS, Others, Question, Take
from tests.support import DEADLINE

WHAT = Question(STREAMS)


class Told(Others):
    """Servers that answer as the test says."""

    def __init__(self, **answers: Callable[[Take], Awaitable[None]]) -> None:
        self._answers = answers
        self.asked: list[tuple[str, Question, int]] = []

    @property
    def names(self) -> list[str]:
        return sorted(self._answers)

    async def ask(self, server: str, question: Question, uid: int, take: Take) -> None:
        self.asked.append((server, question, uid))
        await self._answers[server](take)


def says(*numbers: int) -> Callable[[Take], Awaitable[None]]:
    async def answer(take: Take) -> None:
        for number in numbers:
            await take([{"n": number}])

    return answer


async def never(_take: Take) -> None:
    await asyncio.Event().wait()


async def is_away(_take: Take) -> None:
    raise Unreachable("server c is out of reach")


async def refuses(_take: Take) -> None:
    raise Refused("unknown", "what?")


async def breaks(_take: Take) -> None:
    raise RuntimeError


async def all_of(gathering: Gathering) -> tuple[list[int], list[dict[str, str]]]:
    found: list[int] = []
    while True:
        await asyncio.wait_for(gathering.news.wait(), DEADLINE)
        reply = gathering.take("them")
        found += [one["n"] for one in reply["them"]]
        if not reply["_continues"]:
            return found, reply["missing"]


def test_those_here_come_first_and_then_the_others_as_they_answer() -> None:
    async def scenario() -> None:
        others = Told(a=says(1, 2, 3), b=says(4))
        gathering = Gathering(iter([[{"n": 8}], [{"n": 9}]]), others, WHAT, 1000)
        found, missing = await all_of(gathering)
        assert found[:2] == [8, 9]
        assert [number for number in found if number < 4] == [1, 2, 3]
        assert sorted(found) == [1, 2, 3, 4, 8, 9]
        assert missing == []
        assert sorted(others.asked) == [("a", WHAT, 1000), ("b", WHAT, 1000)]

    asyncio.run(scenario())


def test_without_others_it_ends_with_those_here() -> None:
    async def scenario() -> None:
        assert await all_of(Gathering(iter([]), Told(), WHAT, 0)) == ([], [])
        assert await all_of(Gathering(iter([[{"n": 1}]]), Told(), WHAT, 0)) == ([1], [])

    asyncio.run(scenario())


def test_who_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def half(take: Take) -> None:
        await take([{"n": 1}])
        await never(take)

    async def scenario() -> None:
        monkeypatch.setattr(later, "_TOGETHER", 0.2)
        found, missing = await all_of(
            Gathering(iter([]), Told(a=half, b=breaks, c=is_away, d=refuses), WHAT, 0)
        )
        assert found == [1]
        assert missing == [
            {"server": "a", "reason": "server a takes longer than 0.2 s to answer"},
            {"server": "b", "reason": "server b is not asked: internal error of this server"},
            {"server": "c", "reason": "server c is out of reach"},
            {"server": "d", "reason": "server d refused (unknown): what?"},
        ]

    asyncio.run(scenario())
    assert "unexpected error" in caplog.text


def test_a_slow_reader_is_given_no_more_than_it_takes() -> None:
    """Whatever the others have to tell: it does not pile up here."""

    async def scenario() -> None:
        given: list[int] = []

        async def much(take: Take) -> None:
            for number in range(1000):
                await take([{"n": number}])
                given.append(number)

        gathering = Gathering(iter([]), Told(a=much, b=much), WHAT, 0)
        await asyncio.wait_for(gathering.news.wait(), DEADLINE)
        for taken in range(1, 4):
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(given) == taken
            assert gathering.news.is_set()
            gathering.take("them")
        gathering.close()
        await asyncio.gather(*gathering._tasks, return_exceptions=True)

    asyncio.run(scenario())


def test_there_is_no_news_while_nobody_says_anything() -> None:
    async def scenario() -> None:
        gathering = Gathering(iter([[{"n": 1}]]), Told(a=never), WHAT, 0)
        assert gathering.news.is_set()
        assert gathering.take("them") == {"them": [{"n": 1}], "_continues": True}
        assert not gathering.news.is_set()
        assert gathering.take("them") == {"them": (), "_continues": True}, "as the library does at first"
        gathering.close()
        await asyncio.wait_for(gathering.news.wait(), DEADLINE)

    asyncio.run(scenario())


def test_the_whole_answer_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> Any:
        assert await answer_of(Told(a=says(1, 2)), "a", WHAT, 0) == [{"n": 1}, {"n": 2}]
        with pytest.raises(Unreachable, match="out of reach"):
            await answer_of(Told(c=is_away), "c", WHAT, 0)
        monkeypatch.setattr(later, "_TOGETHER", 0.05)
        with pytest.raises(Unreachable, match=r"server a takes longer than 0.05 s to answer$"):
            await answer_of(Told(a=never), "a", WHAT, 0)
        perhaps = "to answer; it may have carried out the order, or may still do so$"
        with pytest.raises(Unreachable, match=perhaps):
            await answer_of(Told(a=never), "a", Question(DISCONNECT, "011"), 0)

    asyncio.run(scenario())
