"""Replies of the API that take time, because other servers have a say in them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from ..errors import Refused, ShadowError, Unreachable, brief
from ..server.questions import ORDERS, PERHAPS_DONE, Others, Question

Facts = dict[str, Any]
Part = Sequence[Mapping[str, Any]]

_TOGETHER = 10.0  # seconds that a server has for all of its answer


class Later(Exception):
    """What a method raises that cannot reply at once; ``message`` is what it comes to."""

    def __init__(self, message: Callable[[], Awaitable[Facts]]) -> None:
        """Nothing happens before ``message`` is called."""
        super().__init__()
        self.message = message


class Source(Protocol):
    """Has replies of one call, from time to time.

    Attributes:
        news: set while there is one.
    """

    news: asyncio.Event

    def close(self) -> None:
        """No more of them are wanted."""


def why_not(server: str, error: ShadowError) -> str:
    """Why another server has not answered, in a line that names it."""
    return f"server {server} {brief(error)}" if isinstance(error, Refused) else brief(error)


async def answer_of(others: Others, server: str, question: Question, uid: int) -> list[Facts]:
    """All that another server answers.

    Raises:
        Refused, PeerError: see ``Others.ask``.
    """
    facts: list[Facts] = []

    async def take(part: Part) -> None:
        facts.extend(map(dict, part))

    await _ask(others, server, question, uid, take)
    return facts


class Gathering:
    """The facts of this server, and then those of all others, as they come; see ``Source``.

    Of each other server there is one part at most that nobody has taken yet.

    Attributes:
        news: see ``Source``.
    """

    def __init__(self, here: Iterator[Part], others: Others, question: Question, uid: int) -> None:
        """Begin to ask.

        Args:
            here: those of this server.
            others: the other servers.
            question: what is asked of them.
            uid: the user who wants it.
        """
        self.news = asyncio.Event()
        self._here = here
        self._next = next(here, None)
        self._there: asyncio.Queue[Part] = asyncio.Queue(1)
        self._missing: dict[str, str] = {}
        self._tasks = {
            asyncio.create_task(self._gather(others, server, question, uid)) for server in others.names
        }
        for task in self._tasks:
            task.add_done_callback(self._gathered)
        self._look()

    def take(self, name: str) -> Facts:
        """The next reply; one without facts if there is no news.

        Args:
            name: under which the facts are to be found in it.
        """
        part: Part = ()
        if self._next is not None:
            part, self._next = self._next, next(self._here, None)
        elif not self._there.empty():
            part = self._there.get_nowait()
        elif not self._tasks:
            missing = [{"server": server, "reason": why} for server, why in sorted(self._missing.items())]
            return {name: [], "missing": missing, "_continues": False}
        self._look()
        return {name: part, "_continues": True}

    def close(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()

    async def _gather(self, others: Others, server: str, question: Question, uid: int) -> None:
        try:
            await _ask(others, server, question, uid, self._put)
        except ShadowError as error:
            self._missing[server] = why_not(server, error)
        except Exception:
            logging.getLogger("shadow").exception("unexpected error: server %s is not asked", server)
            self._missing[server] = f"server {server} is not asked: internal error of this server"

    async def _put(self, part: Part) -> None:
        await self._there.put(part)
        self._look()

    def _gathered(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._look()

    def _look(self) -> None:
        if self._next is not None or not self._there.empty() or not self._tasks:
            self.news.set()
        else:
            self.news.clear()


async def _ask(
    others: Others, server: str, question: Question, uid: int, take: Callable[[Part], Awaitable[None]]
) -> None:
    try:
        async with asyncio.timeout(_TOGETHER):
            await others.ask(server, question, uid, take)
    except TimeoutError:
        more = PERHAPS_DONE if question.what in ORDERS else ""
        raise Unreachable(f"server {server} takes longer than {_TOGETHER:g} s to answer{more}") from None
