"""Lines whose number a peer decides."""

import logging

from shadow import events
from shadow.client.sparing import Sparing
from tests.support.log import Said


def test_what_a_peer_can_repeat_at_will_is_counted_and_not_written(
    said: Said,
) -> None:
    now = 100.0
    sparing = Sparing(lambda: now, at_once=3, a_minute=6)
    lost = events.SessionLost(robot="011")
    logged = [sparing.log(lost, logging.WARNING, f"no {number}") for number in range(1000)]
    assert logged == [True] * 3 + [False] * 997
    now = 110.0
    assert sparing.log(events.SessionLost(robot="011"), logging.WARNING, "one more")
    assert not sparing.log(events.SessionLost(robot="011"), logging.WARNING, "too soon")
    now = 200.0
    assert sparing.log(events.SessionLost(robot="011"), logging.WARNING, "and now")
    assert [text for _event, text in said] == [
        "no 0", "no 1", "no 2",
        "one more (997 more before it were not logged)",
        "and now (1 more before it were not logged)",
    ]  # fmt: skip
