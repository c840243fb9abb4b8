"""The state machines: every legal step, and every illegal one."""

import contextlib
import itertools

import pytest

from shadow.errors import FrameError, LocalProtocolError, ShadowError
from shadow.wire.conversation import (
    CONTROL,
    DATA,
    PEER,
    Budget,
    Conversation,
    Party,
    State,
    speaks_our_version,
)
from shadow.wire.frames import (
    FRAME_MAX,
    Answer,
    Ask,
    Dial,
    Failed,
    Frame,
    Hello,
    Here,
    More,
    Move,
    Moved,
    Ping,
    Pong,
    Refusal,
    Sign,
    Signed,
    Start,
    Started,
    Unsigned,
    Visit,
    Welcome,
    Who,
)

CONTROL_HELLO = Hello(1, CONTROL, "011")
DATA_HELLO = Hello(1, DATA, "011", session="s")
PEER_HELLO = Hello(1, PEER, "server1", fleet="robots")
VISIT = Visit("011", "", "1", "s", 7, 1000, "alice", 1)
ASK = Ask("streams", "", 1000, "alice")
EVERY_FRAME: list[Frame] = [
    CONTROL_HELLO,
    Welcome(1), Refusal("x"), Ping(1), Pong(1), Dial(1), Start("", "1"), Started(), Failed("x"),
    Sign(b"", b"", b""), Signed(b""), Unsigned("x"), Move(),
    VISIT, Moved(), Who("011"), Here(), ASK, Answer(), Answer(more=True), More(),
]  # fmt: skip
Steps = list[tuple[Party, Frame]]

# What may be said in each state, written down once more and independently: by who dialled, by the other.
ROBOTS: dict[State, tuple[set[type], set[type]]] = {
    State.OPENING: ({Hello}, {Refusal}),
    State.GREETED: (set(), {Welcome, Refusal}),
    State.OPEN: ({Ping, Pong, Sign}, {Ping, Pong, Dial, Signed, Unsigned, Move, Refusal}),
    State.STANDBY: (set(), {Start, Refusal}),
    State.STARTING: ({Started, Failed}, set()),
    State.RAW: (set(), set()),
    State.CLOSED: (set(), set()),
}
PEERS: dict[State, tuple[set[type], set[type]]] = {
    State.OPENING: ({Hello}, {Refusal}),
    State.GREETED: (set(), {Welcome, Refusal}),
    State.STANDBY: ({Visit, Who, Ask}, {Refusal}),
    State.VISITING: (set(), {Started, Failed, Moved}),
    State.ASKED: (set(), {Here}),
    State.INQUIRED: (set(), {Answer}),
    State.TOLD: ({More}, set()),
    State.RAW: (set(), set()),
    State.CLOSED: (set(), set()),
}
_STANDBY: Steps = [(Party.ROBOT, DATA_HELLO), (Party.SERVER, Welcome(1))]
_STARTING: Steps = [*_STANDBY, (Party.SERVER, Start("", "1"))]
TO_ROBOTS: dict[State, Steps] = {
    State.OPENING: [],
    State.GREETED: [(Party.ROBOT, DATA_HELLO)],
    State.OPEN: [(Party.ROBOT, CONTROL_HELLO), (Party.SERVER, Welcome(1))],
    State.STANDBY: _STANDBY,
    State.STARTING: _STARTING,
    State.RAW: [*_STARTING, (Party.ROBOT, Started())],
    State.CLOSED: [*_STARTING, (Party.ROBOT, Failed("refused"))],
}
_MET: Steps = [(Party.ASKING, PEER_HELLO), (Party.ANSWERING, Welcome(1, answers=True))]
_INQUIRED: Steps = [*_MET, (Party.ASKING, ASK)]
_TOLD: Steps = [*_INQUIRED, (Party.ANSWERING, Answer(more=True))]
_VISITING: Steps = [*_MET, (Party.ASKING, VISIT)]
TO_PEERS: dict[State, Steps] = {
    State.OPENING: [],
    State.GREETED: [(Party.ASKING, PEER_HELLO)],
    State.STANDBY: _MET,
    State.VISITING: _VISITING,
    State.ASKED: [*_MET, (Party.ASKING, Who("011"))],
    State.INQUIRED: _INQUIRED,
    State.TOLD: _TOLD,
    State.RAW: [*_VISITING, (Party.ANSWERING, Started())],
    State.CLOSED: [*_MET, (Party.ANSWERING, Refusal("stopping"))],
}
CASES = [
    *itertools.product([(Party.ROBOT, Party.SERVER)], [False, True], ROBOTS, [False, True], EVERY_FRAME),
    *itertools.product([(Party.ASKING, Party.ANSWERING)], [False, True], PEERS, [False, True], EVERY_FRAME),
]


def conversation(us: Party, steps: Steps) -> Conversation:
    made = Conversation(us)
    for speaker, frame in steps:
        (made.sent if speaker is us else made.received)(frame)
    return made


@pytest.mark.parametrize(("ends", "we_dial", "state", "they_speak", "frame"), CASES)
def test_every_step_is_allowed_or_refused(
    ends: tuple[Party, Party],
    we_dial: bool,  # noqa: FBT001
    state: State,
    they_speak: bool,  # noqa: FBT001
    frame: Frame,
) -> None:
    to_robots = Party.ROBOT in ends
    dialling, other = ends
    us = dialling if we_dial else other
    speaker = dialling if we_dial is not they_speak else other
    talk = conversation(us, (TO_ROBOTS if to_robots else TO_PEERS)[state])
    assert talk.state is state
    say = talk.sent if speaker is us else talk.received
    fault = LocalProtocolError if speaker is us else FrameError
    if type(frame) not in (ROBOTS if to_robots else PEERS)[state][speaker is not dialling]:
        with pytest.raises(fault, match=f"{type(frame).__name__} from the {speaker} while {state}"):
            say(frame)
        assert talk.state is state
    elif isinstance(frame, Hello) and not to_robots:
        with pytest.raises(fault, match="Hello with the unknown role 'control'"):
            say(frame)
    else:
        say(frame)


@pytest.mark.parametrize("answer", [Failed("refused"), Moved("server2", 9)])
def test_a_visit_that_came_to_nothing_leaves_the_channel_standing_by(answer: Frame) -> None:
    talk = conversation(Party.ASKING, [*_VISITING, (Party.ANSWERING, answer)])
    assert talk.state is State.STANDBY
    talk.sent(VISIT)


def test_a_channel_stands_by_when_it_was_asked_who_is_here() -> None:
    talk = conversation(Party.ANSWERING, [*TO_PEERS[State.ASKED], (Party.ANSWERING, Here("s", "b", 1, 0.5))])
    assert talk.state is State.STANDBY


@pytest.mark.parametrize("us", [Party.ASKING, Party.ANSWERING])
def test_an_answer_may_come_in_parts(us: Party) -> None:
    parts: Steps = [(Party.ASKING, More()), (Party.ANSWERING, Answer(more=True))]
    talk = conversation(us, [*_TOLD, *parts, *parts])
    assert talk.state is State.TOLD
    last: Steps = [(Party.ASKING, More()), (Party.ANSWERING, Answer())]
    assert conversation(us, [*_TOLD, *parts, *last]).state is State.STANDBY
    assert conversation(us, [*_INQUIRED, (Party.ANSWERING, Answer())]).state is State.STANDBY


@pytest.mark.parametrize("us", [Party.ASKING, Party.ANSWERING])
def test_only_who_has_said_that_it_answers_is_asked(us: Party) -> None:
    """Another version would cut the connection off."""
    before: Steps = [(Party.ASKING, PEER_HELLO), (Party.ANSWERING, Welcome(1))]
    with pytest.raises(LocalProtocolError if us is Party.ASKING else FrameError, match="Ask from the asking"):
        conversation(us, [*before, (Party.ASKING, ASK)])


@pytest.mark.parametrize(("us", "hello"), [(Party.SERVER, PEER_HELLO), (Party.ANSWERING, DATA_HELLO)])
def test_a_role_belongs_to_one_port(us: Party, hello: Hello) -> None:
    with pytest.raises(FrameError, match=f"unknown role '{hello.role}'"):
        Conversation(us).received(hello)


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


@pytest.mark.parametrize(
    ("us", "at_once", "large"),
    [(Party.SERVER, 98, 7), (Party.ROBOT, 3261, 124), (Party.ANSWERING, 3261, 124)],
)
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


@pytest.mark.parametrize("frame", [ASK, More()], ids=["ASK", "MORE"])
def test_what_we_have_asked_for_costs_nothing(frame: Frame) -> None:
    """However long the answer is: a frame for each question; one more is the peer's expense."""
    budget = Budget(Party.ASKING)
    for _ in range(1000):
        budget.said(frame)
        budget.read(4, 1000.0)
        budget.read(FRAME_MAX - 4, 1000.0)
        budget.frame(1000.0)
    budget.said(Who("011"))
    assert frames_until_cut_off(budget, 1000.0, 4, FRAME_MAX - 4) == pytest.approx(124, rel=0.1)
    budget.said(frame)
    budget.read(4, 1000.0)
