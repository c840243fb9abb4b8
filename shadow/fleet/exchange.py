"""Lists of revoked certificates from server to server, while there is no engine to have them from.

Who has read a newer list tells the others its number; they come for it at once. And now and then each asks
all others for the number of theirs: one of them may not have been within reach.
"""

import asyncio
import base64
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cryptography import x509

from ..errors import PeerError, Refused
from ..pki.crl import LIST_MAX, RevocationList
from ..server import questions
from ..server.facts import Facts
from ..server.questions import Others, Question
from ..server.trust import Trust
from .lists import BadList, id_of, place_of, read_announced
from .view import View

_PIECE = 384  # bytes: 512 characters in base64 (``frames.TEXT_MAX``)
_NUMBER_MAX = 49  # digits, see ``keys.Pointer``
_PLACE_WITHIN = 10.0  # seconds for the number of a list
_LIST_WITHIN = 60.0  # seconds for all of a list, in some hundreds of parts


class Shown:
    """What others get to see of our lists."""

    def __init__(self, trust: Trust, view: View) -> None:
        """Show them.

        Args:
            trust: has them.
            view: is told when somebody has a newer one.
        """
        self._trust = trust
        self._view = view

    def answer(self, question: Question) -> Iterator[Facts]:
        """The number of a list (NEWEST_LIST), or all of it (LIST).

        Raises:
            Refused: there is none.
        """
        ca, *theirs = question.name.split(" ")
        ours = next((listed for listed in self._trust.lists if id_of(listed.key) == ca), None)
        if question.what == questions.NEWEST_LIST:
            with contextlib.suppress(ValueError):
                number, since = map(_number, theirs)
                if (number, since) > place_of(ours):
                    self._view.lists_elsewhere = True
                    self._view.lists.set()
        if ours is None:
            raise Refused(questions.FAILED, "there is no list of this CA")
        if question.what == questions.NEWEST_LIST:
            number, since = place_of(ours)
            return iter([{"number": str(number), "since": since}])
        return _pieces(ours.der)


def _pieces(der: bytes) -> Iterator[Facts]:
    for begin in range(0, len(der), _PIECE):
        yield {"piece": base64.b64encode(der[begin : begin + _PIECE]).decode()}


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _NUMBER_MAX):
        raise ValueError(text)
    return int(text)


async def ask_all(
    others: Others, authority: x509.Certificate, key: bytes, ours: RevocationList | None
) -> tuple[str, RevocationList] | None:
    """Tell all other servers which list of a CA we have, and take a newer one from whoever has the newest.

    Args:
        others: those servers.
        authority: the CA.
        key: its public key.
        ours: the list that we have.

    Returns:
        The server that has it, and the list; None: nobody has a newer one that is good.
    """
    ca, place = id_of(key), place_of(ours)
    said = f"{ca} {place[0]} {place[1]}" if ours is not None else ca
    names = others.names
    answers = await asyncio.gather(*(_place_at(others, name, said) for name in names))
    newer = [(found, name) for found, name in zip(answers, names, strict=True) if found > place]
    for found, name in sorted(newer, reverse=True):
        try:
            return name, await _fetch(others, name, ca, authority, found)
        except (PeerError, BadList, TimeoutError) as error:
            logging.getLogger("shadow").debug("list %d from server %s: %s", found[0], name, error)
    return None


async def _place_at(others: Others, server: str, said: str) -> tuple[int, int]:
    facts: list[Mapping[str, Any]] = []

    async def take(part: Sequence[Mapping[str, Any]]) -> None:
        facts.extend(part)

    try:
        async with asyncio.timeout(_PLACE_WITHIN):
            await others.ask(server, Question(questions.NEWEST_LIST, said), 0, take)
        return _number(facts[0]["number"]), facts[0]["since"]
    except (PeerError, ValueError, TimeoutError):  # it has none, is too old, or out of reach: the log says so
        return -1, 0


async def _fetch(
    others: Others, server: str, ca: str, authority: x509.Certificate, place: tuple[int, int]
) -> RevocationList:
    """A list.

    Raises:
        PeerError: the server does not answer.
        BadList: it has another one.
        TimeoutError: it takes too long: who sends a byte now and then would never end.
    """
    der = bytearray()

    async def take(part: Sequence[Mapping[str, Any]]) -> None:
        for fact in part:
            try:
                der.extend(base64.b64decode(fact["piece"], validate=True))
            except ValueError as error:
                raise BadList("a piece makes no sense") from error
        if len(der) > LIST_MAX:
            raise BadList("it is too large")

    async with asyncio.timeout(_LIST_WITHIN):
        await others.ask(server, Question(questions.LIST, ca), 0, take)
    return read_announced(bytes(der), authority, place)
