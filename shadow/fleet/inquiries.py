"""What those who look after other servers of the fleet want of this one: it is as if they were here.

An answer comes in parts that fit a frame; the next one is made when it is asked for.
"""

import asyncio
import collections
import json
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

from ..errors import Refused
from ..server.desk import Desk
from ..server.facts import Facts
from ..server.questions import LISTS, By, Question
from ..server.server import Server
from ..transport.channel import Channel
from ..wire.codec import BODY_MAX
from ..wire.frames import FACTS_MAX, TEXT_MAX, Answer, Ask, Fact
from .exchange import Shown
from .people import People
from .registrar import Registrar

_ROOM = BODY_MAX - 100  # bytes for facts in a frame
_USER_MAX = 64  # characters of the name of a user


class Inquiries:
    """Answers them, on channels that have said ASK."""

    def __init__(self, server: Server, registrar: Registrar) -> None:
        """Answer nobody yet.

        Args:
            server: ours.
            registrar: knows its name, and has the view.
        """
        self._lists = Shown(server.trust, registrar.view)
        self._desk = Desk(server.robots)
        self._name = registrar.name
        self._people = People()
        self._rest: dict[Channel, _Rest] = {}  # of the answer on each channel that has heard a part of it
        self._tasks: dict[Channel, asyncio.Task[None]] = {}

    def ask(self, channel: Channel, server: str, ask: Ask) -> None:
        """A server asks; an order is carried out when this returns, and has an answer soon."""
        by = By(ask.uid, ask.user[:_USER_MAX], server)
        question = Question(ask.what, ask.name, ask.seconds)
        try:
            if question.what in LISTS:
                facts = self._lists.answer(question)
            else:
                facts = self._desk.answer(question, by)
        except Refused as refused:
            channel.send(Answer(refused.code, refused.text[:TEXT_MAX]))
            return
        self._rest[channel] = _Rest(facts)
        self.more(channel)

    def more(self, channel: Channel) -> None:
        """It asks for the next part."""
        self._start(channel, self._say(channel, self._rest[channel]))

    def forget(self, channel: Channel) -> None:
        """The channel has gone."""
        self._rest.pop(channel, None)
        if (task := self._tasks.pop(channel, None)) is not None:
            task.cancel()

    async def close(self) -> None:
        """Answer no more."""
        tasks = list(self._tasks.values())
        for channel in {*self._tasks, *self._rest}:
            self.forget(channel)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._people.close()

    def _start(self, channel: Channel, body: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[channel] = asyncio.get_running_loop().create_task(body)
        task.add_done_callback(lambda task: self._said(channel, task))

    def _said(self, channel: Channel, task: asyncio.Task[None]) -> None:
        if self._tasks.get(channel) is task:
            del self._tasks[channel]
        if not task.cancelled() and task.exception() is not None:
            text = "unexpected error: another server gets no answer (please report)"
            logging.getLogger("shadow").error(text, exc_info=task.exception())
            self.forget(channel)
            channel.close()

    async def _say(self, channel: Channel, rest: "_Rest") -> None:
        ahead = rest.look_ahead()
        await self._name_visitors(ahead)
        part = rest.take()
        more = rest.is_more
        if not more:
            del self._rest[channel]
        channel.send(Answer(facts=tuple(part), more=more))

    async def _name_visitors(self, facts: "collections.deque[Facts]") -> None:
        """Of a visitor here, say who that is: nobody else knows the names of our users."""
        ours = [fact for fact in facts if "uid" in fact and "server" not in fact]
        uids = sorted({fact["uid"] for fact in ours})
        names = dict(zip(uids, await asyncio.gather(*map(self._people.name_of, uids)), strict=True))
        for fact in ours:
            fact |= {"user": names[fact["uid"]][:_USER_MAX], "server": self._name}


class _Rest:
    """What is left to say of an answer."""

    def __init__(self, facts: Iterator[Facts]) -> None:
        self._facts = facts
        self._ahead: collections.deque[Facts] = collections.deque()

    def look_ahead(self) -> "collections.deque[Facts]":
        """As much of it as a frame may have, or more."""
        while len(self._ahead) < FACTS_MAX and (fact := next(self._facts, None)) is not None:
            self._ahead.append(fact)
        return self._ahead

    def take(self) -> list[Fact]:
        """As much as fits a frame."""
        part: list[Fact] = []
        room = _ROOM
        while self._ahead and (room := room - _size(self._ahead[0])) >= 0:
            part.append(self._ahead.popleft())
        return part

    @property
    def is_more(self) -> bool:
        """Whether anything is left."""
        return bool(self._ahead or self.look_ahead())


def _size(fact: Facts) -> int:
    """In a frame, with the comma after it."""
    return len(json.dumps(fact, separators=(",", ":"))) + 1
