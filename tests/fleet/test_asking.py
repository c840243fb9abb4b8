"""What is asked at one server, and another one knows or does: a server and its peer, and real ones."""

import asyncio
import json
import os
import pwd
import re
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shadow.errors import PeerError, Refused, Unreachable
from shadow.fleet import asking as module
from shadow.fleet.asking import Asking
from shadow.fleet.peers import Peers
from shadow.fleet.people import People
from shadow.server import questions
from shadow.server.questions import Question
from shadow.wire.conversation import PEER
from shadow.wire.frames import Answer, Ask, Frame, Hello, More, Welcome
from tests.support import DEADLINE, Authority, echo, serving, wait_for
from tests.support.answering import Answering, peer_trust
from tests.support.asked import NAME, Asked, play
from tests.support.call import INTERFACE, Call
from tests.support.fleet import until
from tests.support.log import Said
from tests.support.looking import ctl, get, good, listed
from tests.support.sites import Fleet, Site

STREAMS = Question(questions.STREAMS)
DISCONNECT = Question(questions.DISCONNECT, NAME)
ME = pwd.getpwuid(os.getuid()).pw_name
STREAM = {
    "id": "1f", "at": "b", "robot": NAME, "service": "", "uid": 0, "pid": 1, "user": "root", "server": "b",
    "seconds": 7.5, "bytesToRobot": 1, "bytesFromRobot": 2, "suite": "x", "kernelTls": False,
    "protected": True,
}  # fmt: skip
Facts = list[Mapping[str, Any]]


@asynccontextmanager
async def server_a(authority: Authority, endpoint: Any) -> AsyncIterator[Asking]:
    """Server a, which asks server b there."""
    peers = Peers(Hello(1, PEER, "a", fleet="robots"), peer_trust(authority, "a"), 30.0, DEADLINE)
    people = People()
    peers.meet("b", endpoint)
    try:
        yield Asking(peers, people)
    finally:
        await peers.close()
        people.close()


async def answer(asking: Asking, question: Question, server: str = "b") -> Facts:
    facts: Facts = []

    async def take(part: Sequence[Mapping[str, Any]]) -> None:
        facts.extend(part)

    await asking.ask(server, question, os.getuid(), take)
    return facts


def run(
    authority: Authority, body: Callable[[Asking, Answering], Awaitable[None]], welcome: Frame | None = None
) -> None:
    """With a server b that says what the test says."""

    async def scenario() -> None:
        b = Answering(peer_trust(authority, "b").settings, answer=welcome or Welcome(1, answers=True))
        async with asyncio.timeout(DEADLINE), b, server_a(authority, b.endpoint) as asking:
            await body(asking, b)
            # Nobody is on the way any more, whom the end would leave without an owner.
            await until(lambda: "2 standing by" in "".join(asking._peers.describe()), "channels")

    asyncio.run(scenario())


def test_a_server_does_what_another_one_is_told(authority: Authority, tmp_path: Path, said: Said) -> None:
    async def body(b: Asked) -> None:
        async with server_a(authority, b.endpoint) as asking:
            assert asking.names == ["b"]
            with pytest.raises(Refused) as caught:
                await answer(asking, DISCONNECT)
            assert caught.value.code == questions.NO_SUCH_ROBOT
            await b.begin()
            assert await answer(asking, DISCONNECT) == [{"ended": 1}]
            who = f"uid {os.getuid()} ({ME} at server a)"
            assert said[-1][1] == f"robot 011 disconnected: {who} has ended it"

    play(authority, tmp_path, body)


def test_a_part_is_asked_for_when_the_last_one_was_taken(authority: Authority) -> None:
    async def body(asking: Asking, b: Answering) -> None:
        b.answers = Answer(facts=(STREAM,) * 3, more=True)
        taken: list[int] = []

        async def take(part: Sequence[Mapping[str, Any]]) -> None:
            assert len(b.heard) == len(taken) + 1
            taken.append(len(part))
            if len(taken) == 3:
                b.answers = Answer(facts=(STREAM,))

        await asking.ask("b", STREAMS, os.getuid(), take)
        assert taken == [3, 3, 3, 1]
        assert b.heard == [Ask("streams", "", os.getuid(), ME), More(), More(), More()]
        assert await answer(asking, STREAMS) == [STREAM], "and another question after it"

    run(authority, body)


def test_a_server_of_before_there_were_questions_is_not_asked(authority: Authority) -> None:
    """It would take the frame for an error, and hang up."""

    async def body(asking: Asking, b: Answering) -> None:
        with pytest.raises(PeerError, match=r"^server b is too old to be asked$"):
            await answer(asking, STREAMS)
        assert b.heard == []
        assert b.lost == []

    run(authority, body, Welcome(1))


@pytest.mark.parametrize(
    ("question", "more"),
    [(STREAMS, ""), (DISCONNECT, "; it may have carried out the order, or may still do so")],
    ids=["a question", "an order"],
)
def test_one_that_is_silent(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, question: Question, more: str
) -> None:
    async def body(asking: Asking, b: Answering) -> None:
        await until(lambda: len(b.channels) == 2, "channels that stand by")
        monkeypatch.setattr(module, "_WITHIN", 0.2)
        b.answers = None
        says = f"server b does not answer: no answer within 0.2 s{more}"
        with pytest.raises(Unreachable, match=f"^{re.escape(says)}$"):
            await answer(asking, question)

    run(authority, body)


@pytest.mark.parametrize(
    "nonsense",
    [
        Answer(facts=({"ended": "x"},)),
        Answer(facts=({},)),
        Answer(facts=(STREAM | {"uid": "root"},), more=True),
    ],
)
def test_one_that_talks_nonsense(authority: Authority, nonsense: Answer) -> None:
    async def body(asking: Asking, b: Answering) -> None:
        b.answers = nonsense
        with pytest.raises(PeerError, match=r"^server b gives an answer that makes no sense$"):
            await answer(asking, STREAMS)
        with pytest.raises(PeerError, match="makes no sense"):
            await answer(asking, DISCONNECT)

    run(authority, body)


def test_one_that_nobody_has_heard_of(authority: Authority) -> None:
    async def body(asking: Asking, _b: Answering) -> None:
        with pytest.raises(Unreachable, match=r"^server c is gone, or does not say where to reach it$"):
            await answer(asking, STREAMS, "c")

    run(authority, body)


def test_who_takes_long_to_read_takes_no_channels_from_visitors(authority: Authority) -> None:
    """Four questions to a server at once: others wait for their turn."""

    async def body(asking: Asking, b: Answering) -> None:
        b.answers = Answer(facts=(STREAM,), more=True)
        at_once = 0
        enough = asyncio.Event()

        async def take(_part: object) -> None:
            nonlocal at_once
            at_once += 1
            b.answers = Answer(facts=(STREAM,))
            await enough.wait()

        tasks = [asyncio.create_task(asking.ask("b", STREAMS, 0, take)) for _ in range(9)]
        await until(lambda: at_once == 4, "some of them")
        for _ in range(20):
            await asyncio.sleep(0)
        assert at_once == 4
        enough.set()
        await asyncio.gather(*tasks)

    run(authority, body)


def test_who_takes_long_to_read_keeps_no_order_and_no_list_from_its_server(authority: Authority) -> None:
    """To look, less is needed than to give orders."""

    async def body(asking: Asking, b: Answering) -> None:
        b.answers = Answer(facts=(STREAM,))
        reading, enough = 0, asyncio.Event()

        async def take(_part: object) -> None:
            nonlocal reading
            reading += 1
            await enough.wait()

        tasks = [asyncio.create_task(asking.ask("b", STREAMS, 0, take)) for _ in range(9)]
        await until(lambda: reading == 4, "as many as may")
        b.answers = Answer(facts=({"ended": 1},))
        assert await answer(asking, DISCONNECT) == [{"ended": 1}]
        number = {"number": "7", "since": 1}
        b.answers = Answer(facts=(number,))
        assert await answer(asking, Question(questions.NEWEST_LIST)) == [number]
        assert reading == 4
        b.answers = Answer(facts=(STREAM,))
        enough.set()
        await asyncio.gather(*tasks)

    run(authority, body)


def test_who_gives_up_in_the_middle_leaves_no_channel_half_asked(authority: Authority) -> None:
    async def body(asking: Asking, b: Answering) -> None:
        b.answers = Answer(facts=(STREAM,), more=True)
        reached = asyncio.Event()

        async def take(_part: object) -> None:
            reached.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(asking.ask("b", STREAMS, 0, take))
        await reached.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: b.lost == [None], "its end")
        b.answers = Answer()
        assert await answer(asking, STREAMS) == []

    run(authority, body)


# Real ones


def say(visitor: socket.socket, data: bytes = b"x") -> None:
    visitor.sendall(data)
    assert visitor.recv(len(data), socket.MSG_WAITALL) == data


def rows(text: str) -> list[list[str]]:
    """Of a table: without its head, and without its sum."""
    return [line.split() for line in text.splitlines()[1:] if line][:-1]


@pytest.mark.usefixtures("robot")
def test_the_status_of_a_robot_at_another_server(asked: Fleet) -> None:
    one, two = asked.sites
    with two.tunnel.visit() as visitor, one.tunnel.visit() as other:
        say(visitor)
        say(other)
        here, there = (json.loads(good(site, "status", NAME, "--json")) for site in asked.sites)
        for told in (here, there):
            del told["robot"]["seconds"], told["robot"]["standbys"]
        assert there["robot"] == here["robot"], "whoever is asked"
        assert "age" not in there
        text = good(two, "status", NAME)
        assert re.match(rf"● {NAME} - connected to server s1 from \S+ for \d", text)
        assert re.search(r"^     Software: shadow-client ", text, re.MULTILINE)
        shown = rows(text[text.index("STREAM") :].partition("\n\n2 streams")[0] + "\n2 streams")
        assert sorted(row[1:5] for row in shown) == [
            ["s1", NAME, "default", f"{ME}@s1"], ["s1", NAME, "default", f"{ME}@s2"],
        ]  # fmt: skip
        status, output, errors = ctl(two, "status", NAME, "--local")
        assert (status, errors) == (0, "")
        assert "not connected, but some streams of it go on" in output


@pytest.mark.usefixtures("robot")
def test_the_streams_of_all_servers(asked: Fleet) -> None:
    two = asked.sites[1]
    assert good(two, "streams") == "0 streams\n"
    with two.tunnel.visit() as visitor:
        say(visitor)
        for words in (["streams"], ["streams", NAME]):
            for site in asked.sites:
                text = good(site, *words)
                assert text.splitlines()[0].split()[:2] == ["STREAM", "SERVER"]
                (row,) = rows(text)
                assert row[1:5] == ["s1", NAME, "default", f"{ME}@s2"]
        # Each has a half of it.
        (row,) = rows(good(two, "streams", "--local"))
        assert row[1:5] == ["s2", NAME, "default", ME]
        (mine, other) = sorted(both_halves(two), key=lambda stream: str(stream["at"]))[::-1]
        assert (mine["at"], mine["id"]) == (other["server"], other["idThere"]) == ("s2", mine["id"])
        assert mine["bytesToRobot"] == other["bytesToRobot"] == 1
    assert ctl(two, "streams", "0111")[0] == 69
    with Call(two.tunnel.ldir / INTERFACE) as call:
        assert call.ask("ListStreams", {"fleet": True})["error"] == "org.varlink.service.ExpectedMore"


def both_halves(site: Site) -> list[dict[str, Any]]:
    with Call(site.tunnel.ldir / INTERFACE) as call:
        call.say("ListStreams", {"fleet": True}, more=True)
        found: list[dict[str, Any]] = []
        while True:
            answer = call.hear()
            found += answer["parameters"]["streams"]
            if not answer["continues"]:
                assert answer["parameters"]["missing"] == []
                return found


@pytest.mark.usefixtures("robot")
def test_a_server_that_does_not_answer_is_named(asked: Fleet) -> None:
    one, two = asked.sites
    with one.tunnel.visit() as visitor, two.tunnel.visit() as other:
        say(visitor)
        say(other)
        one.daemon.process.send_signal(signal.SIGSTOP)
        try:
            # At once: by and by it would count as gone.
            lines = ["streams"], ["status", NAME], ["disconnect", NAME], ["drain", "s1"]
            with ThreadPoolExecutor() as pool:
                streams, of_robot, *orders = pool.map(lambda line: ctl(two, *line), lines)
        finally:
            one.daemon.process.send_signal(signal.SIGCONT)
    status, output, errors = streams
    assert status == 0
    assert "server s1 " in errors
    assert errors.endswith("; not all of its streams are shown\n")
    assert [row[1:5] for row in rows(output)] == [["s2", NAME, "default", ME]]
    status, output, errors = of_robot
    assert status == 0
    assert output.startswith(f"● {NAME} - connected to server s1 from ")
    assert "More: only server s1 knows" in output
    assert errors.endswith("; this is what it has announced\n")
    for status, output, errors in orders:
        assert (status, output) == (69, "")
        assert "server s1 " in errors


@pytest.mark.usefixtures("robot")
def test_a_robot_or_a_stream_is_disconnected_at_another_server(asked: Fleet) -> None:
    one, two = asked.sites
    who = rf"uid {os.getuid()} \({ME} at server s2\)"
    with one.tunnel.visit() as first, one.tunnel.visit() as second:
        say(first)
        say(second)
        number = min(row[0] for row in rows(good(two, "streams")))
        assert ctl(two, "disconnect", "--stream", number) == (
            69, "", f"shadowctl: there is no stream {number!r}\n"
        )  # fmt: skip
        assert good(two, "disconnect", "--stream", number, "--server=s1") == (
            f"stream {number}: 1 connection ended\n"
        )
        assert first.recv(1) == b""
        say(second)
        one.daemon.wait_for_log(rf"robot {NAME}: stream {number} cut off \({who} has ended it\)")
        assert good(two, "disconnect", NAME) == f"robot {NAME}: 2 connections ended\n"
        assert second.recv(1) == b""
    one.daemon.wait_for_log(rf"robot {NAME} disconnected: {who} has ended it")
    one.daemon.wait_for_log(f"robot {NAME} connected", 2)
    assert (
        ctl(two, "disconnect", NAME, "--server=s3")[2] == "shadowctl: server 's3' is not one of the fleet\n"
    )
    assert ctl(two, "disconnect", "099", "--server=s1")[0] == 69


@pytest.mark.usefixtures("robot")
def test_another_server_is_drained(asked: Fleet) -> None:
    one, two = asked.sites
    who = rf"uid {os.getuid()} \({ME} at server s2\)"
    assert good(two, "drain", "s1", "--timeout=600") == (
        "1 robot to go to other servers; streams that are left then are ended after 600 s\n"
    )
    text = "draining: 1 robot to go to other servers; streams that are left then are ended after 600 s"
    one.daemon.wait_for_log(f"{text}; by order of {who}")
    wait_for(lambda: "s1      draining" in good(two, "servers"), "its announcement")
    # The only one left cannot be drained as well, wherever the order is given.
    for site in asked.sites:
        status, _output, errors = ctl(site, "drain", "s2")
        assert status == 71
        assert errors == (
            "shadowctl: nothing has changed: no other server of the fleet is alive and takes robots\n"
        )
    assert good(two, "undrain", "s1") == ""
    one.daemon.wait_for_log(f"draining is over: robots are taken again; by order of {who}")
    wait_for(lambda: "s1      live" in good(two, "servers"), "its announcement")
    assert ctl(two, "drain", "s3") == (69, "", "shadowctl: server 's3' is not one of the fleet\n")
    assert get(two, "Drain", draining=False, server="s2") == {"robots": 0}, "its own name"


def test_many_streams_of_another_server(asked: Fleet) -> None:
    """More than fit one frame."""
    one, two = asked.sites
    with serving(echo) as service:
        one.tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1", "--standby=16")
        wait_for(lambda: listed(two), "the second server to know the robot")
        visitors: list[socket.socket] = []
        try:
            for _ in range(70):
                visitors.append(one.tunnel.visit())
                say(visitors[-1])
            streams = json.loads(good(two, "streams", "--json"))
            assert len({stream["id"] for stream in streams}) == len(streams) == 70
            assert {stream["at"] for stream in streams} == {"s1"}
        finally:
            for visitor in visitors:
                visitor.close()
