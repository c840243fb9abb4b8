"""How often a robot tries to reach its server."""

import math
import random

import pytest

from shadow.client.attempts import Attempts
from shadow.errors import HandshakeError, Refused, ShadowError, Unreachable
from shadow.wire.timing import Backoff


class Latest(Backoff):
    """Always waits as long as it may."""

    def __init__(self) -> None:
        super().__init__(type("", (random.Random,), {"uniform": lambda _self, _a, b: b})())


@pytest.mark.parametrize(
    ("interval", "streams", "error", "reach", "waits"),
    [
        (30.0, 0, Unreachable("no route"), math.inf, [0.5, 1, 2, 4, 8, 16, 30]),
        (30.0, 1, Unreachable("no route"), 7.5, [0.5, 1, 2, 3.75, 3.75, 3.75, 3.75]),
        (30.0, 1, HandshakeError("not for you"), 7.5, [0.5, 1, 2, 4, 8, 16, 30]),
        (30.0, 1, Refused("busy", "later", 60.0), 7.5, [90.0] * 7),
        (0.1, 1, Unreachable("no route"), 3.0, [0.5, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_while_streams_wait_for_it_a_robot_tries_often(
    interval: float, streams: int, error: ShadowError, reach: float, waits: list[float]
) -> None:
    """Or one that sends both ways does not find out in time that its line is back; see net.lines."""
    attempts = Attempts(Latest())
    attempts.connected(interval)
    assert attempts.reach(streams) == reach
    assert [attempts.wait(error, streams) for _ in waits] == waits


def test_streams_of_a_client_that_was_killed_wait_for_the_first_session_of_the_next() -> None:
    attempts = Attempts(Latest())
    assert (attempts.reach(0), attempts.reach(1)) == (math.inf, 7.5)
    assert [attempts.wait(Unreachable("no route"), 1) for _ in range(7)][-1] == 3.75


def test_a_session_that_has_lived_a_minute_starts_the_series_anew() -> None:
    attempts = Attempts(Latest())
    waits = []
    for seconds in (0.0, 59.0, 60.0):
        attempts.lived(seconds)
        waits.append(attempts.wait(Unreachable("no route"), 0))
    assert waits == [0.5, 1, 0.5]
