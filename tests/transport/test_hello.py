"""The robot's first words. How servers answer badly is in test_client.py, over real TLS."""

import asyncio
import contextlib
import time

import pytest

from shadow.errors import PeerError, Refused
from shadow.transport.channel import Channel
from shadow.transport.hello import greet
from shadow.transport.link import KernelLink
from shadow.wire.conversation import DATA
from shadow.wire.frames import Hello, Refusal, Start, Welcome
from tests.support import tcp_pair
from tests.support.frame_end import FrameEnd

HELLO = Hello(1, DATA, "011", session="an id")


async def _greet(end: FrameEnd, link: KernelLink, *answers: Welcome | Refusal | Start) -> list[object]:
    heard: list[object] = []

    def welcomed(channel: Channel, welcome: Welcome) -> None:
        heard.append(welcome)
        channel.on_frame = heard.append

    async def serve() -> None:
        assert await end.hear() == HELLO
        await end.say(*answers)

    await asyncio.gather(greet(link, HELLO, welcomed, 0.5), serve())
    return heard


def play(*answers: Welcome | Refusal | Start) -> list[object]:
    async def run() -> list[object]:
        near, far = tcp_pair()
        with contextlib.closing(near), contextlib.closing(far):
            near.setblocking(False)
            far.setblocking(False)
            return await _greet(FrameEnd(far), KernelLink(near, "", []), *answers)

    return asyncio.run(run())


def test_what_comes_right_behind_welcome_finds_the_new_owner() -> None:
    welcome, start = Welcome(1, "an id"), Start("", "1")
    assert play(welcome, start) == [welcome, start]


def test_a_welcome_that_comes_with_the_end_of_the_deadline_counts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a machine that stood still: when it goes on, both are there."""
    say = FrameEnd.say

    async def say_and_stand_still(end: FrameEnd, *frames: Welcome | Refusal | Start) -> None:
        await say(end, *frames)
        time.sleep(0.7)

    monkeypatch.setattr(FrameEnd, "say", say_and_stand_still)
    assert play(Welcome(1, "an id")) == [Welcome(1, "an id")]


def test_a_refusal_is_raised() -> None:
    with pytest.raises(Refused, match=r"refused \(limit\): full") as caught:
        play(Refusal("limit", "full", 60.0))
    assert caught.value.retry_after == 60.0


def test_another_version() -> None:
    with pytest.raises(PeerError, match="the server speaks protocol version 9"):
        play(Welcome(9))


def test_no_answer() -> None:
    with pytest.raises(PeerError, match=r"no WELCOME within 0\.5 s"):
        play()
