"""What other servers ask of this one, over real TLS: to connect their visitors, and who is here."""

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from shadow.errors import Unreachable
from shadow.fleet.doors import PeerDoor
from shadow.server.session import Cause
from shadow.transport.link import Link
from shadow.wire.conversation import State
from shadow.wire.frames import Failed, Here, Moved, Refusal, Start, Started, Who
from tests.support import DEADLINE, Authority
from tests.support.asked import NAME, NOWHERE, Asked, a_visit, play
from tests.support.fleet import until
from tests.support.log import Said


def waits(asked: Asked) -> bool:
    return bool(asked.session.board.visitors)


@pytest.mark.parametrize(
    ("sid", "revision", "known"),
    [("", 99, (7, 5)), ("another", 7, (7, 5)), ("another", 12, (7, 12)), ("another", 0, (0, 0))],
    ids=["this session", "as far as the view", "as far as our claim", "nothing"],
)
def test_a_visitor_is_served_if_we_know_all_that_its_server_knows(
    authority: Authority, tmp_path: Path, said: Said, sid: str, revision: int, known: tuple[int, int]
) -> None:
    """It means just this session, or nothing newer than what we have seen: of the fleet, or of this robot."""

    async def body(asked: Asked) -> None:
        await asked.begin()
        robot = await asked.stand_by()
        asked.directory.revision, asked.directory.claimed[NAME] = known
        channel = await asked.dial()
        answer = asked.ask(channel, a_visit(sid or asked.session.sid, revision))
        assert isinstance(await robot.hear(), Start)
        await robot.say(Started())
        assert await answer == Started()
        (stream,) = asked.durable.streams
        assert isinstance(stream.near, Link)
        (visitor,) = (visitor for _pump, visitor in asked.robot.streams.items())
        assert (visitor.uid, visitor.pid, visitor.user, visitor.host, visitor.there) == (
            1000, 4711, "alice", "a", "2a",
        )  # fmt: skip
        assert visitor.on_settled is None
        assert list(asked.answering.describe()) == [], "what is a stream is nobody's channel"
        (text,) = (text for _kind, text in said if "stream" in text)
        assert text == f"robot 011: stream {visitor.stream} started for uid 1000 (alice at server a)"

    play(authority, tmp_path, body)


def test_who_knows_more_than_we_is_sent_where_we_take_the_robot_to_be(
    authority: Authority, tmp_path: Path
) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin()
        asked.directory.say(NAME, "b", asked.session.sid, 7)
        channel = await asked.dial()
        assert await asked.ask(channel, a_visit("another", 8)) == NOWHERE
        asked.directory.say(NAME, "c", "5e55", 9)
        assert await asked.ask(channel, a_visit("another", 10)) == Moved("c", 9), (
            "the channel stands by again"
        )
        assert not waits(asked)
        assert asked.answering.count == {"moved": 2, "taken": 0, "refused": 0}

    play(authority, tmp_path, body)


def test_a_robot_that_is_not_here_has_moved(authority: Authority, tmp_path: Path) -> None:
    async def body(asked: Asked) -> None:
        assert await asked.answer(a_visit("any")) == NOWHERE
        assert not asked.robots, "nobody makes robots by asking"
        asked.directory.say(NAME, "c", "5e55", 9)
        assert await asked.answer(a_visit("any")) == Moved("c", 9)
        control = await asked.begin()
        control.sock.close()
        await until(lambda: asked.robot.session is None, "its end")
        assert await asked.answer(a_visit("any")) == Moved("c", 9)

    play(authority, tmp_path, body)


def test_a_service_that_the_robot_has_not(authority: Authority, tmp_path: Path) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin("web")
        answer = await asked.answer(a_visit(asked.session.sid, service="db\n"))
        assert answer == Failed("no-such-service", "the robot has no service db?")
        answer = await asked.answer(a_visit(asked.session.sid, service="x" * 512))
        assert answer == Failed("no-such-service", f"the robot has no service {'x' * 64}")
        assert asked.answering.count == {"moved": 0, "taken": 0, "refused": 2}

    play(authority, tmp_path, body)


def test_without_descriptors_nobody_is_let_in(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin()
        monkeypatch.setattr(asked.robots.descriptors, "for_visitor", lambda: False)
        answer = await asked.answer(a_visit(asked.session.sid))
        assert answer == Failed("limit", "the robot's server has too few descriptors left")
        assert not waits(asked)

    play(authority, tmp_path, body)


def test_no_more_than_a_robot_may_have(authority: Authority, tmp_path: Path) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin()
        first = asked.ask(await asked.dial(), a_visit(asked.session.sid))
        await until(lambda: waits(asked), "the first")
        assert await asked.answer(a_visit(asked.session.sid)) == Failed(
            "visitor", "the robot has 1 visitors (--max-streams)"
        )
        asked.robot.end_session("enough", Cause.OPERATOR)
        assert await first == NOWHERE
        assert asked.robots.descriptors._promised == 0

    play(authority, tmp_path, body, max_streams=1)


def test_a_visitor_that_waits_follows_the_robot(authority: Authority, tmp_path: Path) -> None:
    """By way of its own server: from here it is passed on to nobody."""

    async def body(asked: Asked) -> None:
        await asked.begin()
        channel = await asked.dial()
        answer = asked.ask(channel, a_visit(asked.session.sid))
        await until(lambda: waits(asked), "the visitor")
        asked.directory.say(NAME, "c", "5e55", 9)
        asked.robot.end_session("it has moved", Cause.SUPERSEDED)
        assert await answer == Moved("c", 9)
        assert not asked.robot.visitors.elsewhere
        assert asked.robots.descriptors._promised == 0
        assert channel.conversation.state is State.STANDBY
        assert await asked.ask(channel, Who("012")) == Here()

    play(authority, tmp_path, body)


def test_what_the_robot_says_instead_is_passed_on(authority: Authority, tmp_path: Path) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin()
        channel = await asked.dial()
        for _ in range(2):
            robot = await asked.stand_by()
            answer = asked.ask(channel, a_visit(asked.session.sid))
            assert isinstance(await robot.hear(), Start)
            await robot.say(Failed("refused", "nobody listens"))
            assert await answer == Failed(
                "visitor", "the robot could not connect it ('refused': 'nobody listens')"
            )
        assert asked.robots.descriptors._promised == 0
        assert list(asked.answering.describe()) == ["server a has 1 channels to us that carry no stream"]

    play(authority, tmp_path, body)


def test_one_that_leaves_while_it_waits_costs_no_channel(authority: Authority, tmp_path: Path) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin()
        leaving = await asked.dial()
        answer = asked.ask(leaving, a_visit(asked.session.sid))
        await until(lambda: waits(asked), "the visitor")
        leaving.close()
        await until(lambda: not list(asked.answering.describe()), "its end")
        answer.cancel()
        robot = await asked.stand_by()
        assert robot.is_silent
        assert not waits(asked)
        assert asked.robots.descriptors._promised == 0
        following = asked.ask(await asked.dial(), a_visit(asked.session.sid))
        assert isinstance(await robot.hear(), Start)
        await robot.say(Started())
        assert await following == Started()

    play(authority, tmp_path, body)


def test_one_that_leaves_before_the_robot_has_answered(
    authority: Authority, tmp_path: Path, said: Said
) -> None:
    """Its service is connected, and nobody is there any more."""

    async def body(asked: Asked) -> None:
        await asked.begin()
        robot = await asked.stand_by()
        leaving = await asked.dial()
        answer = asked.ask(leaving, a_visit(asked.session.sid))
        assert isinstance(await robot.hear(), Start)
        leaving.close()
        await until(lambda: not list(asked.answering.describe()), "its end")
        answer.cancel()
        await robot.say(Started())
        await robot.hears_the_end()
        assert not asked.durable.streams
        assert asked.robots.descriptors._promised == 0
        assert not asked.robot.visitors.starting
        assert said[-1][1].endswith("turned away: its server hung up on it")

    play(authority, tmp_path, body)


def test_who_asks_hears_what_there_is_to_know(authority: Authority, tmp_path: Path) -> None:
    async def body(asked: Asked) -> None:
        channel = await asked.dial()
        assert await asked.ask(channel, Who(NAME)) == Here()
        await asked.begin()
        session = asked.session
        now = asyncio.get_running_loop().time
        session.keepalive.heard(now() - 20.0)
        here = await asked.ask(channel, Who(NAME))
        assert isinstance(here, Here)
        assert (here.sid, here.boot, here.attempt) == (session.sid, "b007" * 4, 3)
        assert 20.0 <= here.heard < 20.0 + DEADLINE
        session.keepalive.heard(now() + 1000.0)
        here = await asked.ask(channel, Who(NAME))
        assert isinstance(here, Here)
        assert here.heard == 0.0, "never in the future: the frame has no room for that"
        assert session.id not in repr(here)
        asked.robot.end_session("gone", Cause.LOST)
        assert await asked.ask(channel, Who(NAME)) == Here()

    play(authority, tmp_path, body)


def test_at_the_end_those_that_stand_by_hear_why_and_those_that_wait_come_again(
    authority: Authority, tmp_path: Path
) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin()
        idle, waiting, running = [await asked.dial() for _ in range(3)]
        answer = asked.ask(waiting, a_visit(asked.session.sid))
        await until(lambda: waits(asked), "the visitor")
        robot = await asked.stand_by()
        assert isinstance(await robot.hear(), Start)
        await robot.say(Started())
        assert await answer == Started()
        waiting, running = running, waiting
        answer = asked.ask(waiting, a_visit(asked.session.sid))
        await until(lambda: waits(asked), "another one")
        heard: list[object] = []
        idle.hear(heard.append, heard.append)
        await asked.answering.close()
        await asked.answering.close()
        with pytest.raises(Unreachable, match="it hung up"):
            await answer
        await until(lambda: len(heard) == 2, "the refusal")
        assert heard == [Refusal("stopping", "the server is stopping"), None]
        with pytest.raises(BlockingIOError):
            running.link.read(1)

    play(authority, tmp_path, body)


def test_at_the_end_nobody_comes_in_any_more(authority: Authority, tmp_path: Path) -> None:
    """Not even one that is about to."""

    async def body(asked: Asked) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as coming:
            coming.setblocking(False)
            await loop.sock_connect(coming, (asked.endpoint.host, asked.endpoint.port))
            await until(lambda: asked.answering._handshakes.running, "its handshake")
            await asked.answering.close()
            assert await loop.sock_recv(coming, 1) == b""

    play(authority, tmp_path, body)


def test_a_server_that_was_revoked_is_cut_off(authority: Authority, tmp_path: Path) -> None:
    async def body(asked: Asked) -> None:
        await asked.begin()
        idle, waiting = await asked.dial(), await asked.dial()
        other = await asked.dial("c")
        answer = asked.ask(waiting, a_visit(asked.session.sid))
        await until(lambda: waits(asked), "the visitor")
        heard: list[object] = []
        idle.hear(heard.append, heard.append)
        asked.answering.cut_off_revoked()
        assert list(asked.answering.describe()) == [
            "server a has 2 channels to us that carry no stream",
            "server c has 1 channels to us that carry no stream",
        ]
        asked.revoked.add("a")
        asked.answering.cut_off_revoked()
        with pytest.raises(Unreachable, match="it hung up"):
            await answer
        await until(lambda: len(heard) == 2, "the refusal")
        assert heard == [Refusal("revoked", "a was revoked"), None]
        assert await asked.ask(other, Who("012")) == Here()
        robot = await asked.stand_by()
        assert robot.is_silent, "its visitor is gone, too"

    play(authority, tmp_path, body)


def test_a_door_that_is_closed_twice(authority: Authority, tmp_path: Path) -> None:
    """The visitor's and the channel's ends may both come, in either order."""

    async def body(asked: Asked) -> None:
        await asked.begin()
        channel = await asked.dial()
        answer = asked.ask(channel, a_visit(asked.session.sid))
        await until(lambda: waits(asked), "the visitor")
        (visitor,) = asked.session.board.visitors
        assert isinstance(visitor.door, PeerDoor)
        visitor.close()
        visitor.close()
        with pytest.raises(Unreachable, match="it hung up"):
            await answer
        assert asked.robots.descriptors._promised == 0
        with contextlib.suppress(ValueError):
            asked.session.board.visitors.remove(visitor)

    play(authority, tmp_path, body)
