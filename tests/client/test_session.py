"""A robot's session while it lives; how it begins and ends is in test_client.py, with a real server."""

import asyncio
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from shadow import events
from shadow.wire.frames import Pong, Welcome
from tests.support import DEADLINE, Authority
from tests.support.log import Said
from tests.support.robot_session import Scene, play


def test_what_the_session_hears_its_streams_know(authority: Authority) -> None:
    async def body(scene: Scene) -> None:
        began = asyncio.get_running_loop().time()
        session = scene.begin()
        line = scene.lines.of(session.channel.link.sock)
        assert line is not None
        assert line.times[1] >= began, "WELCOME"
        _since, before = line.times
        await scene.control.say(Pong(1.0))
        async with asyncio.timeout(10):
            while line.times[1] == before:
                await asyncio.sleep(0.005)

    play(authority, body)


def test_a_silent_server_is_given_up_in_time(authority: Authority) -> None:
    """Not only when the next PING would be due: the streams may wait to hear that the line is back."""

    async def body(scene: Scene) -> None:
        session = scene.begin()
        heard = session._keepalive.deadline - 60.0
        times: list[float] = []
        now = heard
        clock = SimpleNamespace(time=lambda: now, call_at=lambda when, _look: times.append(when))
        session._loop = clock  # type: ignore[assignment]
        for passed in (20.0, 39.9, 59.9):
            now = heard + passed
            session._keep_alive()
        assert [round(when - heard, 1) for when in times] == [40.0, 59.9, 60.0]
        now = heard + 60.0
        session._keep_alive()
        assert session.lost.done()

    play(authority, body)


def test_a_robot_that_had_to_queue_lets_others_in_first(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return 1.0

    async def check(scene: Scene) -> None:
        session = scene.begin()
        begun: list[float] = []
        monkeypatch.setattr(session.standbys, "begin", lambda _interval, delay: begun.append(delay))
        session.stand_by(0.2)
        assert (begun, asked) == ([0.0], [])
        session.stand_by(3.0)
        assert (begun, asked) == ([0.0, 1.0], [(0, 12.0)])

    monkeypatch.setattr(random, "uniform", uniform)
    play(authority, check)


def test_it_shows_itself(authority: Authority) -> None:
    async def body(scene: Scene) -> None:
        session = scene.begin()
        standbys = "<Standbys 1 of 1 wanted, 0 opening, 0 asked for, 0 being connected"
        who = f"<Session 'an id' with 198.51.100.1:4242 since {session.agreed.since}, "
        assert repr(session) == f"{who}given up in 60.0 s if unheard, {standbys}>>"
        scene.control.sock.close()
        async with asyncio.timeout(DEADLINE):
            await session.lost
        lost = "<Standbys 0 of 1 wanted, 0 opening, 0 asked for, 0 being connected, closed>"
        assert repr(session) == f"{who}lost: {session.lost.result()!r}, {lost}>"

    play(authority, body)


@pytest.mark.parametrize(
    ("dial", "complaint"),
    [
        ("tunnel.example", "'tunnel.example' is not HOST:PORT"),
        ("0.0.0.0:2222", "nobody can dial it"),
        ("a\0b\n:1", r"'a\x00b\n' is neither a name nor an address"),
        ("x" * 512, "is not HOST:PORT"),
    ],
)
def test_a_server_that_advertises_nonsense(
    authority: Authority, said: Said, dial: str, complaint: str
) -> None:
    """One line says so, and all is as if it had said nothing."""

    async def body(scene: Scene) -> None:
        session = scene.begin(Welcome(1, "an id", 20.0, dial=dial))
        assert session.agreed.dial is None
        assert [event for event, _text in said] == [events.AddressFailed, events.SessionStarted]
        text = said[0][1]
        assert text.startswith("the server advertises nonsense (")
        assert complaint in text
        assert text.isprintable()
        assert text.endswith("; data channels go where the control channel went")
        assert "data channels" not in repr(session)

    play(authority, body)


def test_a_session_says_where_its_data_channels_go(authority: Authority, said: Said) -> None:
    async def body(scene: Scene) -> None:
        session = scene.begin(Welcome(1, "an id", 20.0, dial="192.0.2.7:2222"))
        ((event, text),) = said
        assert event is events.SessionStarted
        assert text.endswith("; its data channels go to 192.0.2.7:2222")
        assert f"since {session.agreed.since}, data channels at 192.0.2.7:2222, given up" in repr(session)

    play(authority, body)


def test_no_more_of_its_number_is_shown_than_in_the_log(authority: Authority) -> None:
    """It is between the two."""

    async def body(scene: Scene) -> None:
        session = scene.begin()
        session.agreed = replace(session.agreed, id="abcdefghijklmnop")
        assert "<Session 'abcdefgh' with" in repr(session)
        assert "ghi" not in repr(session)

    play(authority, body)
