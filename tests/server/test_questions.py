"""Who asks, in words, and whom a server by itself can ask."""

import asyncio

import pytest

from shadow.errors import Unreachable
from shadow.server.overview import Overview
from shadow.server.questions import STREAMS, By, Question


@pytest.mark.parametrize(
    ("by", "words"),
    [
        (By(1000), "uid 1000"),
        (By(1000, "alice"), "uid 1000 (alice)"),
        (By(1000, "alice", "s2"), "uid 1000 (alice at server s2)"),
        (By(1000, "", "s2"), "uid 1000 (at server s2)"),
        (By(1000, "a\nb\x1b", "s2"), "uid 1000 (a?b? at server s2)"),
    ],
)
def test_who_it_is(by: By, words: str) -> None:
    assert str(by) == words


def test_a_server_by_itself_has_nobody_to_ask() -> None:
    others = Overview().others
    assert others.names == []

    async def take(_part: object) -> None:
        raise AssertionError

    with pytest.raises(Unreachable, match="server s2 is not one of the fleet"):
        asyncio.run(others.ask("s2", Question(STREAMS), 0, take))
