"""Who waits for something to be said is woken by what concerns it, and by nothing else."""

import asyncio
from collections.abc import Callable

import pytest

from shadow.fleet.news import News
from tests.support.fleet import entry


def play(body: Callable[[News], None]) -> None:
    async def run() -> None:
        body(News())

    asyncio.run(run())


def test_all_who_wait_for_a_robot_hear_of_it() -> None:
    def body(news: News) -> None:
        first, second, other = news.of("011"), news.of("011"), news.of("012")
        news.tell("011")
        assert first.done()
        assert second.done()
        assert not other.done()
        later = news.of("011")
        assert not later.done(), "what was said before is no news"
        news.on_change("011", entry(), 7)
        assert later.done()
        assert not other.done()
        news.on_change("012", None, 8)
        assert other.done()

    play(body)


@pytest.mark.parametrize(
    "happens",
    [
        lambda news: news.on_live("b"),
        lambda news: news.on_reset(),
        lambda news: news.on_engine(up=False),
        lambda news: news.on_engine(up=True),
    ],
    ids=["a server", "everything", "the engine goes", "the engine comes"],
)
def test_what_concerns_all_robots_wakes_all(happens: Callable[[News], None]) -> None:
    def body(news: News) -> None:
        waiting = [news.of(name) for name in ("011", "012")]
        happens(news)
        assert all(future.done() for future in waiting)

    play(body)


def test_nothing_is_kept_for_those_who_do_not_wait() -> None:
    """However many changes there are, and however often somebody waits for the same."""

    def body(news: News) -> None:
        for number in range(100):
            news.on_change(f"{number}", None, number)
            news.of("011")
        assert len(news._futures) == 1
        news.tell("011")
        assert not news._futures

    play(body)


def test_who_waits_for_a_while_only_leaves_it_to_the_next() -> None:
    async def body() -> None:
        news = News()
        await asyncio.wait([news.of("011")], timeout=0)
        waiting = asyncio.create_task(asyncio.wait([news.of("011")]))
        await asyncio.sleep(0)
        news.tell("011")
        await waiting

    asyncio.run(body())
