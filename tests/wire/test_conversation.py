"""The state machines: every legal step, and every illegal one."""

import contextlib
import itertools

import pytest

from shadow.errors import FrameError, LocalProtocolError, ShadowError
from shadow.wire.conversation import CONTROL, DATA, Budget, Conversation, Party, State, speaks_our_version
from shadow.wire.frames import (
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
        fault = LocalProtocolError if speaker is us else FrameError
        with pytest.raises(fault, match=f"{type(frame).__name__} from the {speaker} while {state}"):
            say(frame)
        assert talk.state is state


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(FrameError, match="unknown role"):
        Conversation(Party.SERVER).received(Hello(1, "boss", "011"))
    with pytest.raises(LocalProtocolError, match="unknown role"):
        Conversation(Party.ROBOT).sent(Hello(1, "boss", "011"))


def test_a_bug_of_ours_is_not_caught_as_a_fault_of_the_peers() -> None:
    assert not issubclass(LocalProtocolError, ShadowError)


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
