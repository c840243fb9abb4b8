"""What another server says is what the interface promises, or it is nothing."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow.fleet import hearsay
from shadow.fleet.hearsay import checked
from shadow.server import questions
from shadow.server.questions import Question
from tests.support import CHECKOUT
from tests.support.call import INTERFACE

ROBOT: dict[str, Any] = {
    "name": "011", "connected": True, "server": "s1", "services": ("", "web"), "standbys": 2, "waiting": 0,
    "streams": 1, "peer": "192.0.2.7:3", "software": "", "seconds": 1.5, "suite": "x", "kernelTls": True,
    "serial": "0c", "certificateEnds": "2030-01-01T00:00:00+00:00",
}  # fmt: skip
STREAM: dict[str, Any] = {
    "id": "1f", "at": "s1", "robot": "011", "service": "", "uid": 0, "pid": 1, "user": "root", "server": "s1",
    "seconds": 7, "bytesToRobot": 1, "bytesFromRobot": 2, "suite": "x", "kernelTls": False, "protected": True,
}  # fmt: skip
ABOUT = Question(questions.ROBOT, "011")
STREAMS = Question(questions.STREAMS)
KINDS = {"string": (str,), "int": (int,), "bool": (bool,), "[]string": (tuple,), "float": (int, float)}


def heard(question: Question, facts: Any, index: int) -> list[dict[str, Any]] | None:
    return checked("s1", question, facts, index)


def interface(name: str) -> dict[str, tuple[type, ...]]:
    text = (CHECKOUT / "shadow" / f"{INTERFACE}.varlink").read_text()
    found = re.search(rf"^type {name} \((.*?)^\)", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return {
        field: KINDS[kind] for field, kind in re.findall(r"^  (\w+): \??([\[\]\w]+)", found[1], re.MULTILINE)
    }


def test_it_is_what_the_interface_has() -> None:
    assert interface("Robot") == {**hearsay.ROBOT, **hearsay.CONNECTED}
    assert interface("Stream") == {**hearsay.STREAM, **hearsay.FROM_AFAR}


def test_what_is_right_is_taken_and_what_nobody_knows_left_out() -> None:
    assert heard(ABOUT, [ROBOT | {"colour": "blue"}, STREAM], 0) == [ROBOT, STREAM]
    assert heard(ABOUT, [STREAM | {"idThere": "2a"}], 7) == [STREAM | {"idThere": "2a"}]
    gone = {name: ROBOT[name] for name in hearsay.ROBOT} | {"connected": False}
    assert heard(ABOUT, [gone], 0) == [gone]
    assert heard(STREAMS, [STREAM], 0) == [STREAM]
    assert heard(STREAMS, [], 0) == heard(ABOUT, [], 1) == []
    assert heard(Question(questions.CUT, "1f"), [{"ended": 1}], 0) == [{"ended": 1}]
    assert heard(Question(questions.DRAIN), [{"robots": 1}], 0) == [{"robots": 1}]


@pytest.mark.parametrize("question", [ABOUT, *(Question(order) for order in questions.ORDERS)])
def test_there_must_be_an_answer(question: Question) -> None:
    assert heard(question, [], 0) is None


@pytest.mark.parametrize("name", sorted(ROBOT))
def test_a_robot_that_lacks_something(name: str) -> None:
    assert heard(ABOUT, [{key: value for key, value in ROBOT.items() if key != name}], 0) is None or (
        name == "connected"
    )
    assert heard(ABOUT, [ROBOT | {name: {}}], 0) is None or name == "connected"


@pytest.mark.parametrize("name", sorted(STREAM))
def test_a_stream_that_lacks_something(name: str) -> None:
    assert heard(STREAMS, [STREAM, {key: value for key, value in STREAM.items() if key != name}], 0) is None
    assert heard(STREAMS, [STREAM | {name: {}}], 0) is None


def test_it_speaks_for_itself_and_of_what_it_was_asked() -> None:
    """Streams that are said to be at another server would stand beside that one's own, or in their place."""
    assert heard(STREAMS, [STREAM | {"at": "s2"}], 0) is None
    assert heard(STREAMS, [STREAM | {"robot": "012"}], 0) == [STREAM | {"robot": "012"}]
    assert heard(Question(questions.STREAMS, "011"), [STREAM | {"robot": "012"}], 0) is None
    for other in (ROBOT | {"name": "012"}, ROBOT | {"server": "s2"}):
        assert heard(ABOUT, [other], 0) is None
    for other in (STREAM | {"at": "s2"}, STREAM | {"robot": "012"}):
        assert heard(ABOUT, [ROBOT, other], 0) is None


@pytest.mark.parametrize("when", ["soon", "", "2030-01-01T00:00:00", "2030-01-01"])
def test_a_certificate_ends_at_a_time(when: str) -> None:
    assert heard(ABOUT, [ROBOT | {"certificateEnds": when}], 0) is None


def test_one_answer_to_an_order() -> None:
    assert heard(Question(questions.CUT, "1"), [{"ended": 1}, {"ended": 1}], 0) is None
    assert heard(Question(questions.CUT, "1"), [{"ended": 1}], 1) is None
    assert heard(Question(questions.DRAIN), [{"ended": 1}], 0) is None
    assert heard(Question(questions.DRAIN), [{"robots": True}], 0) is None


def test_lists_of_revoked_certificates() -> None:
    place, number = Question(questions.NEWEST_LIST), {"number": "7", "since": 1}
    assert heard(place, [number], 0) == [number]
    for wrong in [], [number, number], [{"number": 7, "since": 1}], [{"number": "7"}], [{"piece": "x"}]:
        assert heard(place, wrong, 0) is None
    pieces, piece = Question(questions.LIST), {"piece": "x"}
    assert heard(pieces, [piece, piece], 0) == heard(pieces, [piece, piece], 5) == [piece, piece]
    for wrong in [], [number], [{"piece": 7}]:
        assert heard(pieces, wrong, 0) is None


values = st.one_of(st.text(max_size=9), st.booleans(), st.integers(), st.floats(), st.just(()), st.none())


@given(st.sampled_from([ABOUT, STREAMS]), st.dictionaries(st.sampled_from(sorted({*ROBOT, *STREAM})), values))
def test_whatever_it_says_is_nothing_or_has_all_that_is_needed(question: Question, changed: Any) -> None:
    before = ROBOT if question is ABOUT else STREAM
    found = heard(question, [{**before, **changed}], 0)
    if found is not None:
        (fact,) = found
        assert set(fact) <= set(before)
        assert all(type(fact[name]) in (str, bool, int, float, tuple) for name in fact)
