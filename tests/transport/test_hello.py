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
from tests.support import DEADLINE, tcp_pair
from tests.support.frame_end import FrameEnd

HELLO = Hello(1, DATA, "011", session="an id")


async def _greet(end: FrameEnd, link: KernelLink, *answers: Welcome | Refusal | Start) -> list[object]:
    async def serve() -> None:
        assert await end.hear() == HELLO
        await end.say(*answers)

    (channel, welcome), _none = await asyncio.gather(greet(link, HELLO, 0.5), serve())
    heard: list[object] = [welcome]
    await asyncio.sleep(0.05)  # the new owner takes its time
    channel.hear(heard.append, heard.append)
    async with asyncio.timeout(DEADLINE):
        while len(heard) < len(answers):
            await asyncio.sleep(0.001)
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


def test_whoever_does_not_want_it_any_more_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even in the moment in which it is welcomed."""
    pause = Channel.pause

    async def run() -> None:
        near, far = tcp_pair()
        near.setblocking(False)
        far.setblocking(False)
        end = FrameEnd(far)
        greeting = asyncio.create_task(greet(KernelLink(near, "", []), HELLO, DEADLINE))

        def pause_and_cancel(channel: Channel) -> None:
            pause(channel)
            greeting.cancel()

        monkeypatch.setattr(Channel, "pause", pause_and_cancel)
        assert await end.hear() == HELLO
        await end.say(Welcome(1, "an id"))
        with pytest.raises(asyncio.CancelledError):
            await greeting
        await end.hears_the_end()
        far.close()

    asyncio.run(run())
