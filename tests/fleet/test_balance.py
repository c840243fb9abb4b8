"""How many robots a server sends away: by itself, and several servers that do so at once."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.fleet.balance import Balance, Terms
from shadow.fleet.entries import Holder

TERMS = Terms()


def others(*counts: int) -> dict[Holder, int]:
    return {Holder(f"s{number}", "1"): count for number, count in enumerate(counts, 2)}


def calm(*counts: int, here: int = 0) -> Balance:
    """One that has seen the same servers for long enough."""
    balance = Balance()
    balance.look(0.0, here, others(*counts), 0)
    return balance


# One look at a time


@pytest.mark.parametrize(
    ("here", "there", "leaving", "count"),
    [
        (1000, (100, 100), 0, 5),  # 0.5 % a second
        (20000, (100, 100), 0, 100),
        (100, (20, 20), 0, 1),  # at least one
        (240, (180, 180), 0, 0),  # 1.2 times the mean is not above it
        (300, (150, 150), 50, 2),
        (300, (150, 150), 60, 0),  # those on their way count as gone
        (249, (176, 175), 0, 0),  # 49 above the mean
        (250, (175, 175), 0, 2),  # 50
        (60, (0, 0), 0, 0),
        (100, (1000, 1000), 0, 0),
        (1000, (), 0, 0),  # nobody else takes them
    ],
)
def test_how_many(here: int, there: tuple[int, ...], leaving: int, count: int) -> None:
    assert calm(*there).look(60.0, here, others(*there), leaving) == count


def test_it_goes_on_below_what_it_begins_at_and_then_stops() -> None:
    balance = calm(100, 100)
    assert balance.look(60.0, 1000, others(100, 100), 0) == 5
    assert balance.look(61.0, 215, others(193, 192), 0) == 2
    assert balance.surplus(215) == 5
    assert balance.look(62.0, 215, others(193, 192), 4) == 1, "down to 1.05 times the mean of 200"
    assert balance.look(62.0, 215, others(193, 192), 5) == 0
    assert balance.look(63.0, 210, others(195, 195), 0) == 0
    assert not balance.sheds
    assert balance.look(64.0, 215, others(193, 192), 0) == 0, "and begins no sooner than before"


@pytest.mark.parametrize(
    "change",
    [
        {Holder("s2", "1"): 10},  # one has gone
        {Holder("s2", "1"): 10, Holder("s3", "1"): 10, Holder("s4", "1"): 10},  # one has come
        {Holder("s2", "1"): 10, Holder("s3", "2"): 10},  # one has died, and its robots are on their way
        None,  # the engine was away
    ],
)
def test_not_while_servers_come_and_go(change: dict[Holder, int] | None) -> None:
    balance, same = calm(10, 10), others(10, 10)
    assert balance.look(59.9, 1000, same, 0) == 0
    assert balance.look(60.0, 1000, same, 0) > 0
    assert balance.look(61.0, 1000, change, 0) == 0
    assert not balance.sheds
    assert balance.look(62.0, 1000, same, 0) == 0
    assert balance.look(121.9, 1000, same, 0) == 0
    assert balance.look(122.0, 1000, same, 0) > 0


def test_nobody_who_could_go() -> None:
    balance, same = calm(10, 10), others(10, 10)
    assert balance.look(60.0, 1000, same, 0) > 0
    balance.rest(61.0)
    assert not balance.sheds
    assert balance.look(660.9, 1000, same, 0) == 0
    assert balance.look(661.0, 1000, same, 0) > 0


# Many servers, each for itself

Landing = Callable[["World", int], int]


class World:
    """Servers, and robots on their way from one to another."""

    def __init__(self, counts: list[int], landing: Landing, seed: int = 0) -> None:
        self.counts = counts
        self.landing = landing
        self.chance = random.Random(seed)  # noqa: S311 - a run that can be run again
        self.balances = [Balance() for _ in counts]
        self.leaving = [0] * len(counts)  # of each
        self.on_their_way: list[tuple[float, int]] = []
        self.sent = 0
        self.last_sent = 0.0
        self.turn = 0
        self.now = 0.0

    @property
    def mean(self) -> float:
        return sum(self.counts) / len(self.counts)

    def look(self, server: int) -> None:
        seen = {Holder(f"s{other}", "1"): self.counts[other] for other in self.others(server)}
        count = self.balances[server].look(self.now, self.counts[server], seen, self.leaving[server])
        left = self.counts[server] - self.leaving[server] - count
        assert count >= 0
        assert not count or left >= self.mean, "below the mean nobody is sent away"
        for _ in range(count):
            self.on_their_way.append((self.now + self.chance.uniform(0.1, 30.0), server))
        self.leaving[server] += count
        self.sent += count
        self.last_sent = self.now if count else self.last_sent

    def others(self, server: int) -> list[int]:
        return [other for other in range(len(self.counts)) if other != server]

    def land(self) -> None:
        for when, server in sorted(self.on_their_way):
            if when <= self.now:
                self.on_their_way.remove((when, server))
                there = self.landing(self, server)
                self.leaving[server] -= 1
                self.counts[server] -= 1
                self.counts[there] += 1

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1.0
            self.land()
            for server in range(len(self.counts)):
                self.look(server)


def anywhere(world: World, server: int) -> int:
    """Addresses in random order, ours last."""
    return world.chance.choice(world.others(server))


def in_turn(world: World, server: int) -> int:
    """A balancer that knows no better; it may lead back."""
    world.turn += 1
    return world.turn % len(world.counts)


def where_there_are_fewest(world: World, server: int) -> int:
    """leastconn."""
    return min(range(len(world.counts)), key=world.counts.__getitem__)


COUNTS = st.lists(st.integers(0, 1200), min_size=2, max_size=5)


@pytest.mark.parametrize("landing", [anywhere, in_turn, where_there_are_fewest])
@settings(max_examples=25, deadline=None)
@given(counts=COUNTS, seed=st.integers(0, 2**32))
def test_servers_find_their_balance_and_leave_it_at_that(
    landing: Landing, counts: list[int], seed: int
) -> None:
    world = World(list(counts), landing, seed)
    total, mean = sum(counts), world.mean
    too_many = sum(max(0, count - math.floor(mean)) for count in counts)
    world.run(60)
    assert world.sent == 0, "they have just met"
    world.run(1400)
    assert sum(world.counts) == total
    for count in world.counts:
        assert count <= max(mean * TERMS.above, mean + TERMS.least)
    assert world.last_sent < 1000, "it ends"
    # Robots that land where there are too many as well go on, and none goes to and fro for ever.
    assert world.sent <= 2 * len(counts) * too_many
    if landing is where_there_are_fewest:
        assert world.sent <= too_many, "none goes twice"


@settings(max_examples=20, deadline=None)
@given(count=st.integers(0, 2000), spread=st.integers(0, 49))
def test_what_is_about_even_stays_as_it_is(count: int, spread: int) -> None:
    world = World([count + spread, count, count], anywhere)
    world.run(120)
    assert world.sent == 0
