"""What a server answers those who look after it, and what it does for them."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.errors import LocalError, Refused
from shadow.server import questions
from shadow.server.desk import Desk
from shadow.server.questions import By, Question
from shadow.server.visitor import Visitor
from tests.support import Authority
from tests.support.asked import NAME, Asked, play
from tests.support.log import Said

BY = By(1000, "alice", "s2")


@pytest.mark.parametrize(
    ("question", "code"),
    [
        (Question(questions.ROBOT, "012"), "no-such-robot"),
        (Question(questions.DISCONNECT, "012"), "no-such-robot"),
        (Question(questions.CUT, "1f"), "no-such-stream"),
        (Question(questions.DRAIN), "failed"),
        (Question("sing"), "unknown"),
        (Question("", NAME), "unknown"),
    ],
)
def test_what_cannot_be_has_a_code(
    authority: Authority, tmp_path: Path, question: Question, code: str
) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin()
        with pytest.raises(Refused) as caught:
            Desk(asked.robots).answer(question, BY)
        assert caught.value.code == code

    play(authority, tmp_path, body)


def test_the_robot_comes_before_its_streams(authority: Authority, tmp_path: Path) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin("", "web")
        (robot,) = Desk(asked.robots).answer(Question(questions.ROBOT, NAME), BY)
        assert robot["name"] == NAME
        assert robot["services"] == ["", "web"]
        assert list(Desk(asked.robots).answer(Question(questions.STREAMS, "nobody"), BY)) == []
        assert "nobody" not in asked.robots

    play(authority, tmp_path, body)


def test_who_has_disconnected_a_robot_is_in_the_log(authority: Authority, tmp_path: Path, said: Said) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin()
        assert list(Desk(asked.robots).answer(Question(questions.DISCONNECT, NAME), BY)) == [{"ended": 1}]
        assert asked.robot.session is None
        assert said[-1][1] == "robot 011 disconnected: uid 1000 (alice at server s2) has ended it"

    play(authority, tmp_path, body)


def test_a_stream_that_begins_while_others_are_told_is_not_older_than_it_is() -> None:
    """Nor does it begin in the future: no frame can say how many seconds that would be."""

    async def body() -> None:
        loop, link = asyncio.get_running_loop(), SimpleNamespace(suite="a suite", in_kernel=True, moved=0)
        pump = SimpleNamespace(up=link, down=link, link=link, kept=True)

        def begin(number: int) -> Any:
            visitor = Visitor(None, "", f"{number:x}", 0, 7, loop.time())
            return SimpleNamespace(items=lambda: [(pump, visitor)])

        one, two = (SimpleNamespace(name=name) for name in ("011", "012"))
        one.streams = begin(1)
        streams = Desk(Robots({"011": one, "012": two}, SimpleNamespace(server="s1"))).streams("")  # type: ignore[arg-type]
        assert next(streams)["id"] == "1"
        begun = loop.time()
        while loop.time() < begun + 0.01:  # the facts have milliseconds
            await asyncio.sleep(0.001)
        two.streams = begin(2)
        (last,) = streams
        assert last["id"] == "2"
        assert last["seconds"] >= 0

    asyncio.run(body())


class Drainer:
    """It can, unless nobody else is there."""

    def __init__(self) -> None:
        self.calls: list[tuple[By, float | None]] = []
        self.moves: dict[tuple[str, str], int] = {}
        self.others = True

    def start(self, by: By, timeout: float | None = None) -> None:
        if not self.others:
            raise LocalError("nobody else is there")
        self.calls.append((by, timeout))

    def stop(self, by: By) -> None:
        self.calls.append((by, None))


def test_a_server_is_drained_as_it_is_told_and_knows_by_whom(authority: Authority, tmp_path: Path) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin()
        drainer = asked.robots.drainer = Drainer()
        desk = Desk(asked.robots)
        orders = (
            Question(questions.DRAIN),
            Question(questions.DRAIN, seconds=600.0),
            Question(questions.UNDRAIN),
        )
        for order in orders:
            assert list(desk.answer(order, BY)) == [{"robots": 1}]
        assert drainer.calls == [(BY, None), (BY, 600.0), (BY, None)]
        drainer.others = False
        with pytest.raises(Refused, match="nobody else is there"):
            desk.answer(Question(questions.DRAIN), BY)

    play(authority, tmp_path, body)


def test_streams_that_outlive_a_robot_that_is_elsewhere_by_now_are_not_ended_with_it() -> None:
    """Its own server is to be asked, and one stream can be cut all the same."""
    cut: list[str] = []
    there: Any = SimpleNamespace(live=True)
    overview = SimpleNamespace(find=lambda _name: there, server="s1")

    def end(_wanted: object, why: str) -> int:
        cut.append(why)
        return 1

    streams = SimpleNamespace(cut=end, items=lambda: [(None, SimpleNamespace(stream="1f"))])
    robot = SimpleNamespace(name=NAME, session=None, is_here=True, streams=streams)
    robots: Any = Robots({NAME: robot}, overview)
    with pytest.raises(Refused) as caught:
        Desk(robots).answer(Question(questions.DISCONNECT, NAME), BY)
    assert caught.value.code == "no-such-robot"
    assert cut == []
    assert list(Desk(robots).answer(Question(questions.CUT, "1f"), By(0))) == [{"ended": 1}]
    assert cut == ["uid 0 has ended it"]


class Robots(dict[str, Any]):
    """Those of a server of a fleet."""

    def __init__(self, robots: dict[str, Any], overview: Any) -> None:
        super().__init__(robots)
        self.elsewhere = SimpleNamespace(overview=overview)
