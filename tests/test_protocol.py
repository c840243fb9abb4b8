"""The state machines: every legal step, every illegal one, and time."""

import contextlib
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow.errors import FrameError
from shadow.frames import (
    Dial,
    Failed,
    Frame,
    Hello,
    Ping,
    Pong,
    Refusal,
    Sign,
    Signed,
    Start,
    Started,
    Unsigned,
    Welcome,
)
from shadow.protocol import (
    CONTROL,
    DATA,
    Backoff,
    Budget,
    Conversation,
    Keepalive,
    Party,
    State,
    speaks_our_version,
)

CONTROL_HELLO = Hello(1, CONTROL, "011")
DATA_HELLO = Hello(1, DATA, "011", session="s")
EVERY_FRAME: list[Frame] = [
    CONTROL_HELLO,
    Welcome(1), Refusal("x"), Ping(1), Pong(1), Dial(1), Start("", "1"), Started(), Failed("x"),
    Sign(b"", b"", b""), Signed(b""), Unsigned("x"),
]  # fmt: skip

# What may be said in each state, written down once more and independently: (robot, server).
MAY_SAY: dict[State, tuple[set[type], set[type]]] = {
    State.OPENING: ({Hello}, {Refusal}),
    State.GREETED: (set(), {Welcome, Refusal}),
    State.OPEN: ({Ping, Pong, Sign}, {Ping, Pong, Dial, Signed, Unsigned, Refusal}),
    State.STANDBY: (set(), {Start, Refusal}),
    State.STARTING: ({Started, Failed}, set()),
    State.RAW: (set(), set()),
    State.CLOSED: (set(), set()),
}
HISTORY: dict[State, list[tuple[Party, Frame]]] = {
    State.OPENING: [],
    State.GREETED: [(Party.ROBOT, DATA_HELLO)],
    State.OPEN: [(Party.ROBOT, CONTROL_HELLO), (Party.SERVER, Welcome(1))],
    State.STANDBY: [(Party.ROBOT, DATA_HELLO), (Party.SERVER, Welcome(1))],
}
HISTORY[State.STARTING] = [*HISTORY[State.STANDBY], (Party.SERVER, Start("", "1"))]
HISTORY[State.RAW] = [*HISTORY[State.STARTING], (Party.ROBOT, Started())]
HISTORY[State.CLOSED] = [*HISTORY[State.STARTING], (Party.ROBOT, Failed("refused"))]


def conversation(us: Party, state: State) -> Conversation:
    made = Conversation(us)
    for speaker, frame in HISTORY[state]:
        (made.sent if speaker is us else made.received)(frame)
    assert made.state is state
    return made


@pytest.mark.parametrize(
    ("us", "state", "speaker", "frame"), list(itertools.product(Party, State, Party, EVERY_FRAME))
)
def test_every_step_is_allowed_or_refused(us: Party, state: State, speaker: Party, frame: Frame) -> None:
    talk = conversation(us, state)
    say = talk.sent if speaker is us else talk.received
    allowed = MAY_SAY[state][0 if speaker is Party.ROBOT else 1]
    if type(frame) in allowed:
        say(frame)
    else:
        with pytest.raises(FrameError, match=f"{type(frame).__name__} from the {speaker} while {state}"):
            say(frame)
        assert talk.state is state


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(FrameError, match="unknown role"):
        Conversation(Party.SERVER).received(Hello(1, "boss", "011"))


def test_versions() -> None:
    assert speaks_our_version(CONTROL_HELLO)
    assert not speaks_our_version(Hello(2, CONTROL, "011"))


def frames_until_cut_off(budget: Budget, now: float, *reads: int) -> int:
    frames = 0
    with contextlib.suppress(FrameError):
        while frames < 2**16:
            for size in reads:
                budget.read(size, now)
            budget.frame(now)
            frames += 1
    return frames


@pytest.mark.parametrize(("us", "at_once", "large"), [(Party.SERVER, 98, 7), (Party.ROBOT, 3261, 124)])
def test_a_budget_is_enough_for_who_means_well_and_no_more(us: Party, at_once: int, large: int) -> None:
    budget = Budget(us)
    for number in range(1000):  # ten PINGs a second, the shortest keepalive there is
        budget.read(4, number / 10)
        budget.read(20, number / 10)
        budget.frame(number / 10)
    assert frames_until_cut_off(budget, 1000.0, 4, 20) == pytest.approx(at_once, rel=0.05)
    assert frames_until_cut_off(budget, 1000.0, 4, 20) == 0
    assert frames_until_cut_off(budget, 2000.0, 4, 16380) == pytest.approx(large, rel=0.1)
    assert frames_until_cut_off(budget, 3000.0, *[1] * 24) < at_once / 5, "a byte at a time"


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


@given(st.integers(0, 2**32), st.floats(0, 1e18), st.integers(1, 20))
def test_a_server_that_sends_us_away_is_obeyed_for_an_hour_at_most(
    seed: int, wanted: float, failures: int
) -> None:
    backoff = Backoff(random.Random(seed))  # noqa: S311 - repeatable on purpose
    waits = [backoff.wait(wanted) for _ in range(failures)]
    assert min(waits) >= min(wanted, 3600)
    assert max(waits) <= 3600
    assert max(waits) <= max(30, 1.5 * wanted)
