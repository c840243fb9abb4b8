"""Where a robot is that is not here: what the directory says, what others say, and whom to believe."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shadow.errors import Unreachable
from shadow.fleet.whereabouts import Place, Whereabouts, ask
from shadow.wire.frames import Frame, Here, Moved, Who
from tests.support import virtual_time
from tests.support.directory import Directory

NAME = "011"


class Channel:
    """Leads to a server that answers at once, never, or with its end."""

    def __init__(self, answer: Frame | Exception | None) -> None:
        self.answer = answer
        self.asked: list[Frame] = []
        self.paused = 0
        self._heard: Callable[[Any], None]
        self._lost: Callable[[Any], None]

    def hear(self, on_frame: Callable[[Any], None], on_lost: Callable[[Any], None]) -> None:
        self._heard, self._lost = on_frame, on_lost

    def pause(self) -> None:
        self.paused += 1

    def send(self, frame: Frame) -> None:
        self.asked.append(frame)
        loop = asyncio.get_running_loop()
        if isinstance(self.answer, Frame):
            loop.call_soon(self._heard, self.answer)
        elif self.answer is not None:
            loop.call_soon(self._lost, self.answer)


class Peers:
    """Channels to other servers.

    Attributes:
        answers: what each server says.
        asked: how often each was asked.
        lent: how many channels are; ``most``: at once.
    """

    def __init__(self, **answers: Frame | Exception | None) -> None:
        self.answers = dict(answers)
        self.asked: Counter[str] = Counter()
        self.lent = self.most = 0

    @property
    def names(self) -> list[str]:
        return sorted(self.answers)

    @asynccontextmanager
    async def lend(self, server: str, _within: float) -> AsyncIterator[Channel]:
        self.asked[server] += 1
        self.lent += 1
        self.most = max(self.most, self.lent)
        try:
            if server == "away":
                await asyncio.get_running_loop().create_future()
            if server == "closed":
                raise Unreachable("nobody is there")
            yield Channel(self.answers[server])
        finally:
            self.lent -= 1


class Scene:
    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self.directory = Directory("a")
        registrar: Any = self.directory
        lent: Any = peers
        self.whereabouts = Whereabouts(registrar, lent)

    async def find(self, hint: Place | None = None, *tried: Place) -> Place | None:
        return await self.whereabouts.find(NAME, hint, tried)


def play(body: Callable[[Scene], Awaitable[None]], **answers: Frame | Exception | None) -> None:
    async def run() -> None:
        scene = Scene(Peers(**answers))
        await body(scene)
        await scene.whereabouts.close()
        assert scene.peers.lent == 0

    virtual_time.run(run())


def test_where_the_directory_says() -> None:
    async def body(scene: Scene) -> None:
        assert await scene.find() is None
        scene.directory.say(NAME, "b", "5e55", 7)
        assert await scene.find() == Place("b", "5e55", 7)
        assert scene.whereabouts.moved(NAME) == Moved("b", 7)
        assert scene.whereabouts.name == "a"
        assert not scene.peers.asked, "nobody is asked while the directory answers"

    play(body, b=Here("sid"))


def test_a_server_may_know_of_something_newer() -> None:
    async def body(scene: Scene) -> None:
        newer, older = Place("c", "", 9), Place("c", "", 5)
        assert await scene.find(older) == older, "the directory says nothing"
        scene.directory.say(NAME, "b", "5e55", 7)
        entry = Place("b", "5e55", 7)
        assert await scene.find(newer) == newer
        assert await scene.find(older) == entry
        assert await scene.find(newer, newer) == entry
        assert await scene.find(newer, entry, newer) is None
        assert await scene.find(older, entry) is None

    play(body, b=None, c=None)


def test_servers_that_are_not_there_are_not_visited() -> None:
    async def body(scene: Scene) -> None:
        scene.directory.say(NAME, "gone", "5e55", 7)
        assert await scene.find() is None
        assert await scene.find(Place("a", "", 9)) is None, "and we ourselves know that it is not here"
        assert await scene.find(Place("b", "", 9)) == Place("b", "", 9)

    play(body, b=None)


@pytest.mark.parametrize("lacks", ["up", "open"])
def test_without_the_directory_all_are_asked(lacks: str) -> None:
    """Or while it takes nothing that servers write."""

    async def body(scene: Scene) -> None:
        setattr(scene.directory, lacks, False)
        assert await scene.find() == Place("c", "sid", 0)
        assert scene.peers.asked == {"b": 1, "c": 1, "closed": 1, "lost": 1, "strange": 1}
        assert await scene.find(None, Place("c", "sid", 0)) is None

    play(body, b=Here(), c=Here("sid", "b1", 3), closed=None, lost=Unreachable("gone"), strange=Moved("c", 3))


def test_what_the_directory_said_last_is_tried_first() -> None:
    async def body(scene: Scene) -> None:
        scene.directory.say(NAME, "b", "5e55", 7)
        scene.directory.up = False
        entry = Place("b", "5e55", 7)
        assert await scene.find() == entry
        assert not scene.peers.asked
        assert await scene.find(None, entry) == Place("c", "sid", 0)

    play(body, b=Here(), c=Here("sid"))


@pytest.mark.parametrize(
    ("answers", "server"),
    [
        ({"b": Here("s1", "b1", 3, 1.0), "c": Here("s2", "b1", 4, 20.0)}, "c"),
        ({"b": Here("s1", "b1", 4, 20.0), "c": Here("s2", "b1", 3, 1.0)}, "b"),
        ({"b": Here("s1", "b1", 9, 20.0), "c": Here("s2", "b2", 1, 1.0)}, "c"),
        ({"b": Here("s1", "b1", 1, 1.0), "c": Here("s2", "b2", 9, 20.0)}, "b"),
        ({"b": Here("s1", "b1", 9, 20.0), "c": Here("s2", "b2", 2, 5.0), "d": Here("s3", "b2", 1, 1.0)}, "c"),
    ],
    ids=["later", "earlier", "rebooted", "first boot", "three"],
)
def test_of_several_the_newest_is_believed(answers: dict[str, Frame], server: str) -> None:
    """Of one boot the highest attempt; of two the one that was heard last."""

    async def body(scene: Scene) -> None:
        scene.directory.up = False
        found = await scene.find()
        assert found is not None
        assert found.server == server

    play(body, **answers)


def test_many_who_want_the_same_ask_once() -> None:
    async def body(scene: Scene) -> None:
        scene.directory.up = False
        leaving = asyncio.create_task(scene.find())
        others = [asyncio.create_task(scene.find()) for _ in range(50)]
        await asyncio.sleep(0)
        leaving.cancel()  # its visitor has left; the others get their answer
        assert set(await asyncio.gather(*others)) == {Place("b", "sid", 0)}
        assert scene.peers.asked == {"b": 1}
        assert await scene.find() == Place("b", "sid", 0)
        assert scene.peers.asked == {"b": 2}, "an answer is not kept: the robot may move"

    play(body, b=Here("sid"))


def test_made_up_names_do_not_take_all_channels() -> None:
    async def body(scene: Scene) -> None:
        scene.directory.up = False
        names = [f"made-up-{number}" for number in range(100)]
        found = await asyncio.gather(*(scene.whereabouts.find(name, None, ()) for name in names))
        assert set(found) == {None}
        assert scene.peers.asked == {"b": 100}
        assert scene.peers.most == 16

    play(body, b=Here())


def test_one_that_does_not_answer_is_passed_over() -> None:
    """Whether there is a channel to it or not."""

    async def body(scene: Scene) -> None:
        scene.directory.up = False
        began = asyncio.get_running_loop().time()
        assert await scene.find() == Place("c", "sid", 0)
        assert asyncio.get_running_loop().time() - began == pytest.approx(1.0)

    play(body, away=None, b=None, c=Here("sid"))


def test_at_the_end_nobody_is_asked_any_more() -> None:
    async def body(scene: Scene) -> None:
        scene.directory.up = False
        finding = asyncio.create_task(scene.find())
        await asyncio.sleep(0.1)
        assert scene.peers.lent == 1
        await scene.whereabouts.close()
        assert scene.peers.lent == 0
        await asyncio.wait([finding])
        assert finding.cancelled()

    play(body, b=None)


def test_what_is_newer_than_a_place() -> None:
    async def body(scene: Scene) -> None:
        newer, place = scene.whereabouts.has_newer, Place("b", "s1", 5)
        assert not newer(NAME, place)
        scene.directory.say(NAME, "b", "s2", 7)
        assert not newer(NAME, place), "it is there again"
        scene.directory.say(NAME, "c", "s3", 5)
        assert not newer(NAME, place)
        scene.directory.say(NAME, "c", "s3", 6)
        assert newer(NAME, place)
        scene.directory.up = False
        assert not newer(NAME, place), "that may be long ago"

    play(body)


def test_a_question_has_one_answer() -> None:
    async def body(_scene: Scene) -> None:
        channel = Channel(Here("sid"))
        asked: Any = channel
        assert await ask(asked, Who(NAME), 1.0) == Here("sid")
        assert (channel.asked, channel.paused) == ([Who(NAME)], 1)
        for answer, why in ((None, "no answer within 1 s"), (Unreachable("cut"), "was lost: cut")):
            channel.answer = answer
            with pytest.raises(Unreachable, match=why):
                await ask(asked, Who(NAME), 1.0)

    play(body)
