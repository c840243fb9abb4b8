"""Keepalive, backoff, paces and windows."""

import random

from hypothesis import given
from hypothesis import strategies as st

from shadow.wire.timing import Backoff, Keepalive, Pace, Window


def test_three_missed_intervals_are_death_and_a_word_is_life() -> None:
    keepalive = Keepalive(10.0, now=100.0)
    assert not keepalive.is_dead(129.9)
    assert keepalive.is_dead(130.0)
    keepalive.heard(125.0)
    assert not keepalive.is_dead(130.0)
    assert keepalive.deadline == 155.0


@given(st.integers(0, 2**32), st.integers(1, 5000))
def test_backoff_stays_between_nothing_and_its_ceiling(seed: int, failures: int) -> None:
    backoff = Backoff(random.Random(seed))  # noqa: S311 - repeatable on purpose
    waits = [backoff.wait() for _ in range(failures)]
    for number, wait in enumerate(waits):
        assert 0.0 <= wait <= min(30.0, 0.5 * 2 ** min(number, 10))


def test_backoff_reaches_its_ceiling_and_is_reset_by_a_healthy_minute_only() -> None:
    class Always(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    backoff = Backoff(Always())
    waits = [backoff.wait() for _ in range(8)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30]
    backoff.lived(59.9)
    assert backoff.wait() == 30
    backoff.lived(60.0)
    assert backoff.wait() == 0.5


@given(st.integers(0, 2**32), st.floats(0.1, 60), st.integers(1, 20))
def test_who_is_in_a_hurry_waits_no_longer_than_that(seed: int, at_most: float, failures: int) -> None:
    backoff = Backoff(random.Random(seed))  # noqa: S311 - repeatable on purpose
    assert all(backoff.wait(at_most=at_most) <= min(at_most, 30.0) for _ in range(failures))
    assert backoff.wait(at_least=90.0, at_most=at_most) >= 90.0, "the server's word comes first"


@given(st.integers(0, 2**32), st.floats(0, 1e18), st.integers(1, 20))
def test_a_server_that_sends_us_away_is_obeyed_for_an_hour_at_most(
    seed: int, wanted: float, failures: int
) -> None:
    backoff = Backoff(random.Random(seed))  # noqa: S311 - repeatable on purpose
    waits = [backoff.wait(wanted) for _ in range(failures)]
    assert min(waits) >= min(wanted, 3600)
    assert max(waits) <= 3600
    assert max(waits) <= max(30, 1.5 * wanted)


def test_a_pace() -> None:
    pace = Pace(10)
    assert [pace.delay(0.0) for _ in range(10)] == [0.0] * 10
    assert abs(pace.delay(0.0) - 0.1) < 1e-9
    assert abs(pace.delay(0.05) - 0.05) < 1e-9
    assert pace.delay(0.1001) == 0.0
    assert pace.delay(0.1002) > 0
    assert [pace.delay(99.0) for _ in range(10)] == [0.0] * 10  # and not what ten seconds would give
    assert pace.delay(99.0) > 0


def test_a_pace_with_more_at_once_and_with_something_given_back() -> None:
    pace = Pace(2.0, 5)
    assert [pace.delay(100.0) for _ in range(5)] == [0.0] * 5
    assert pace.delay(100.0) == 0.5
    pace.give_back()
    assert pace.delay(100.0) == 0.0
    assert pace.delay(200.0) == 0.0
    for _ in range(9):
        pace.give_back()
    assert [pace.delay(200.0) for _ in range(6)] == [0.0] * 5 + [0.5]


def test_a_window_opens_while_it_costs_no_time_and_closes_when_it_does() -> None:
    window = Window()
    first = window.size
    for _ in range(100):
        window.took(1.9, 0.0)
    assert window.size == 64
    window.took(1.0, 0.0)
    before = window.size
    window.took(3.0, 0.0)
    assert window.size == before, "neither good nor bad"
    for _ in range(100):
        window.took(4.1, 0.0)
    assert window.size == 2 < first
    window.failed()
    assert window.size == 2


def test_half_of_a_window_is_lost_with_each_failure() -> None:
    window = Window()
    for _ in range(100):
        window.took(1.0, 0.0)
    window.failed()
    assert window.size == 32
    window.failed()
    assert window.size == 16


def test_a_line_that_has_become_longer_is_taken_for_that_some_day() -> None:
    window = Window()
    window.took(0.02, 0.0)
    now = 0.0
    for _ in range(100):
        now += 0.1
        window.took(2.0, now)
    assert window.size == 2
    window.took(2.0, now + 600)
    assert window.size == 3
    window.took(2.0, now + 1e9)
    assert window.size == 4
