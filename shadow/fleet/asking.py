"""What those who look after this server want of another one: it is asked over a channel between the two."""

import asyncio
from collections.abc import Sequence

from ..errors import PeerError, Refused, Unreachable
from ..server.questions import LISTS, ORDERS, PERHAPS_DONE, Others, Question, Take
from ..transport.channel import Channel
from ..wire.frames import Answer, Ask, More
from .hearsay import checked
from .peers import Peers
from .people import People
from .whereabouts import ask

_AT_ONCE = 4  # questions of a kind to one server: visitors need the channels, too
_WITHIN = 3.0  # seconds for a channel, and then for each part of the answer


class Asking(Others):
    """See ``questions.Others``."""

    def __init__(self, peers: Peers, people: People) -> None:
        """Ask nobody yet.

        Args:
            peers: the channels to other servers.
            people: knows the names of users.
        """
        self._peers = peers
        self._people = people
        self._turns: dict[tuple[str, Sequence[str]], asyncio.Semaphore] = {}

    @property
    def names(self) -> list[str]:
        """See ``Others``: whoever has a channel, or should have one."""
        return self._peers.names

    async def ask(self, server: str, question: Question, uid: int, take: Take) -> None:
        """See ``Others``."""
        if server not in self._peers.names:
            raise Unreachable(f"server {server} is gone, or does not say where to reach it")
        user = await self._people.name_of(uid)
        frame: Ask | More = Ask(question.what, question.name, uid, user, question.seconds)
        # Whoever may only look, and takes long to read, must keep no order and no list from its server.
        kind = next((kind for kind in (ORDERS, LISTS) if question.what in kind), ())
        turns = self._turns.setdefault((server, kind), asyncio.Semaphore(_AT_ONCE))
        async with turns, self._peers.lend(server, _WITHIN) as channel:
            if not channel.conversation.answers:
                raise PeerError(f"server {server} is too old to be asked")
            index = 0
            while True:
                answer = await self._hear(server, channel, frame, question)
                part = checked(server, question, answer.facts, index)
                if part is None:
                    raise PeerError(f"server {server} gives an answer that makes no sense")
                await take(part)
                if not answer.more:
                    return
                frame, index = More(), index + len(part)

    async def _hear(self, server: str, channel: Channel, frame: Ask | More, question: Question) -> Answer:
        try:
            answer = await ask(channel, frame, _WITHIN)
        except Unreachable as error:
            text = f"server {server} does not answer: {error}"
            if question.what in ORDERS:
                text += PERHAPS_DONE
            raise Unreachable(text) from error
        if not isinstance(answer, Answer):  # pragma: no cover - the conversation allows nothing else
            raise PeerError(f"server {server} says something else")
        if answer.code:
            raise Refused(answer.code, answer.text)
        return answer
