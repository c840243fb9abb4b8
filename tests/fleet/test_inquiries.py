"""What those who look after other servers want of this one, over real TLS."""

import asyncio
import base64
import os
import pwd
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.errors import Unreachable
from shadow.server.visitor import Visitor
from shadow.transport.channel import Channel
from shadow.wire.conversation import State
from shadow.wire.frames import Answer, Ask, Fact, Here, More, Start, Started, Who
from tests.support import Authority
from tests.support.asked import NAME, Asked, a_visit, play
from tests.support.fleet import until
from tests.support.lists import Trusting, id_of_ca, listed
from tests.support.log import Said

ME = pwd.getpwuid(os.getuid()).pw_name


def asks(what: str, name: str = "") -> Ask:
    return Ask(what, name, 1000, "alice")


async def hear(asked: Asked, channel: Channel, frame: Ask | More) -> Answer:
    answer = await asked.ask(channel, frame)
    assert isinstance(answer, Answer)
    return answer


async def hear_all(asked: Asked, channel: Channel, frame: Ask) -> list[Fact]:
    answer = await hear(asked, channel, frame)
    found = list(answer.facts)
    while answer.more:
        assert channel.conversation.state is State.TOLD
        answer = await hear(asked, channel, More())
        found += answer.facts
    assert channel.stands_by
    return found


class Streaming:
    """Streams of a robot, without a relay behind them."""

    def __init__(self, robot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._robot, self._patch = robot, monkeypatch
        self.all: list[tuple[Any, Visitor]] = []

    def add(self, number: int, **more: Any) -> None:
        visitor = Visitor(None, "web", f"{number:x}", os.getuid(), 7, 0.0)
        for name, value in more.items():
            setattr(visitor, name, value)
        direction = SimpleNamespace(moved=number)
        link = SimpleNamespace(suite="a suite", in_kernel=True)
        self.all.append((SimpleNamespace(up=direction, down=direction, link=link, kept=True), visitor))
        self._patch.setattr(self._robot.streams, "items", lambda: self.all)


def test_all_about_a_robot_that_is_here(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(asked: Asked) -> None:
        channel = await asked.dial()
        nobody = await hear(asked, channel, asks("robot", NAME))
        assert nobody == Answer("no-such-robot", "the robot is not here")
        assert not asked.robots, "nobody makes robots by asking"
        await asked.begin("", "web")
        overview: Any = SimpleNamespace(server="b")
        asked.visits.overview = overview
        streams = Streaming(asked.robot, monkeypatch)
        streams.add(1)
        streams.add(2, user="bob", host="c", there="2a")
        robot, own, distant = await hear_all(asked, channel, asks("robot", NAME))
        assert (robot["name"], robot["server"], robot["services"]) == (NAME, "b", ("", "web"))
        assert robot["connected"] is True
        # Nobody else knows the names of the users here.
        assert (own["at"], own["user"], own["server"], own.get("idThere")) == ("b", ME, "b", None)
        assert (distant["user"], distant["server"], distant["idThere"]) == ("bob", "c", "2a")
        assert await asked.ask(channel, Who("012")) == Here(), "the channel is good for more"

    play(authority, tmp_path, body)


@pytest.mark.parametrize(("count", "parts"), [(0, 1), (1, 1), (500, 12)])
def test_very_many_come_in_parts(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, parts: int
) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin()
        streams = Streaming(asked.robot, monkeypatch)
        for number in range(1, count + 1):
            streams.add(number)
        channel = await asked.dial()
        sizes: list[int] = []
        answer = await hear(asked, channel, asks("streams"))
        numbers = [fact["id"] for fact in answer.facts]
        while answer.more:
            sizes.append(len(answer.facts))
            answer = await hear(asked, channel, More())
            numbers += [fact["id"] for fact in answer.facts]
        assert numbers == [f"{number:x}" for number in range(1, count + 1)]
        assert len(sizes) + 1 <= parts
        assert len(set(sizes[1:])) <= 3, "each is as much as fits"

    play(authority, tmp_path, body)


def test_long_words_take_room(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's name of astral characters takes twelve bytes for each."""

    async def body(asked: Asked) -> None:
        await asked.begin()
        streams = Streaming(asked.robot, monkeypatch)
        for number in range(1, 40):
            streams.add(number, user="\U0001f916" * 64, host="c" * 64, there="2a")
        channel = await asked.dial()
        assert len(await hear_all(asked, channel, asks("streams", NAME))) == 39

    play(authority, tmp_path, body)


def test_orders_are_carried_out_and_the_log_says_whose(
    authority: Authority, tmp_path: Path, said: Said
) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin()
        channel = await asked.dial()
        answer = await hear(asked, channel, asks("disconnect", NAME))
        assert answer == Answer(facts=({"ended": 1},))
        assert said[-1][1] == "robot 011 disconnected: uid 1000 (alice at server a) has ended it"
        assert (await hear(asked, channel, asks("disconnect", NAME))).code == "no-such-robot"
        assert (await hear(asked, channel, asks("cut", "1f"))).code == "no-such-stream"
        assert (await hear(asked, channel, asks("drain"))).code == "failed"
        assert (await hear(asked, channel, asks("sing"))).code == "unknown"
        bragging = Ask("disconnect", NAME, 0, "x" * 512)
        await asked.begin()
        await hear(asked, channel, bragging)
        assert said[-1][1] == f"robot 011 disconnected: uid 0 ({'x' * 64} at server a) has ended it"

    play(authority, tmp_path, body)


def test_one_that_leaves_in_the_middle_is_forgotten(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin()
        streams = Streaming(asked.robot, monkeypatch)
        for number in range(1, 200):
            streams.add(number)
        channel = await asked.dial()
        assert (await hear(asked, channel, asks("streams"))).more
        inquiries = asked.answering._inquiries
        assert len(inquiries._rest) == 1
        channel.close()
        await until(lambda: not list(asked.answering.describe()), "its end")
        assert not inquiries._rest
        assert not inquiries._tasks

    play(authority, tmp_path, body)


def test_at_the_end_and_when_it_is_revoked_nobody_is_told_the_rest(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin()
        streams = Streaming(asked.robot, monkeypatch)
        for number in range(1, 200):
            streams.add(number)
        inquiries = asked.answering._inquiries
        for end in (asked.answering.cut_off_revoked, asked.answering.close):
            channel = await asked.dial()
            assert (await hear(asked, channel, asks("streams"))).more
            asked.revoked.add("a")
            if (ending := end()) is not None:
                await ending
            with pytest.raises(Unreachable, match="it hung up"):
                await asked.ask(channel, More())
            asked.revoked.clear()
            assert not inquiries._rest

    play(authority, tmp_path, body)


def test_what_is_wrong_with_us_ends_the_channel_and_not_the_server(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin()
        streams = Streaming(asked.robot, monkeypatch)
        streams.add(1)
        streams.all[0][0].up = None
        channel = await asked.dial()
        with pytest.raises(Unreachable, match="it hung up"):
            await asked.ask(channel, asks("streams"))
        assert await asked.answer(Who("012")) == Here()
        assert not asked.answering._inquiries._rest

    play(authority, tmp_path, body)
    assert "another server gets no answer" in caplog.text


def test_a_visit_on_the_same_channel(authority: Authority, tmp_path: Path) -> None:
    """First a question, then a visit: it becomes a stream, and nothing is left of either."""

    async def body(asked: Asked) -> None:
        await asked.begin()
        robot = await asked.stand_by()
        channel = await asked.dial()
        assert await hear_all(asked, channel, asks("streams")) == []
        answer = asked.ask(channel, a_visit(asked.session.sid))
        assert isinstance(await robot.hear(), Start)
        await robot.say(Started())
        assert await answer == Started()
        assert list(asked.answering.describe()) == []

    play(authority, tmp_path, body)


def test_names_are_not_waited_for_for_ever(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin()
        streams = Streaming(asked.robot, monkeypatch)
        streams.add(1, uid=4242)
        streams.add(2, uid=4243)
        waited: list[int] = []

        async def name_of(uid: int) -> str:
            waited.append(uid)
            while len(waited) < 2:  # at once, not one after the other
                await asyncio.sleep(0)
            return ""

        monkeypatch.setattr(asked.answering._inquiries._people, "name_of", name_of)
        facts = await hear_all(asked, await asked.dial(), asks("streams"))
        assert [fact["user"] for fact in facts] == ["", ""]
        assert [fact["uid"] for fact in facts] == [4242, 4243]

    play(authority, tmp_path, body)


def test_a_list_of_revoked_certificates(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number, and all of it, in parts: as large a list as you like."""

    async def body(asked: Asked) -> None:
        made = listed(authority, 7, *range(2**100, 2**100 + 1000))
        inquiries: Any = asked.answering._inquiries
        monkeypatch.setattr(inquiries._lists, "_trust", Trusting(made))
        channel, ca = await asked.dial(), id_of_ca(authority)
        (place,) = await hear_all(asked, channel, asks("newest-list", f"{ca} 3 0"))
        assert place["number"] == "7"
        pieces = [str(fact["piece"]) for fact in await hear_all(asked, channel, asks("list", ca))]
        assert b"".join(map(base64.b64decode, pieces)) == made.der
        nothing = await hear(asked, channel, asks("list", "5e" * 32))
        assert nothing == Answer("failed", "there is no list of this CA")

    play(authority, tmp_path, body)
