"""Lists of revoked certificates at the engine: taken from there, and put there.

A list is in pieces, because a request of etcd's has its bounds; a key of its own points to the newest list of
a CA. That key is written last, and only ever for a later list than the one before: so who reads it finds the
pieces. What a piece is called says what is in it, so two servers that write the same list at the same time do
not disturb each other.

The engine is not trusted: it can withhold a list, but what the CA has not signed gets no further than here.
"""

import asyncio
import hashlib
import itertools
import math
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from cryptography import x509

from ..errors import ConfigError, Unavailable
from ..pki.crl import LIST_MAX, RevocationList, read_list
from .etcd import SWAPS_MAX, Engine, KeyValue, Swap, after
from .keys import Keys, Pointer, parse_pointer

CHUNK = 2**19
"""Bytes of a piece: a request of etcd's has at most 1.5 MiB (``--max-request-bytes``)."""
CHUNKS_MAX = LIST_MAX // CHUNK
_AT_ONCE = 4  # pieces under way
_ATTEMPTS = 3  # to write a piece where somebody else has written something

T = TypeVar("T")


class BadList(Exception):
    """The engine has no list that would do; the text says why not.

    Attributes:
        incomplete: a piece is not there.
    """

    def __init__(self, why: str, *, incomplete: bool = False) -> None:
        super().__init__(why)
        self.incomplete = incomplete


def id_of(key: bytes) -> str:
    """A CA in the names of keys and files: SHA-256 of its public key (RFC 7093, section 2, method 4).

    Args:
        key: see ``keys.key_bytes``.
    """
    return hashlib.sha256(key).hexdigest()


def place_of(listed: RevocationList | None) -> tuple[int, int]:
    """See ``Pointer.place``; no list comes before all others."""
    return (-1, 0) if listed is None else (listed.number, max(0, int(listed.since.timestamp())))


def read_announced(der: bytes, authority: x509.Certificate, place: tuple[int, int]) -> RevocationList:
    """Read a list that somebody else has, and check that it is the one that it should be.

    Args:
        der: the list.
        authority: the CA that must have signed it.
        place: which list; see ``Pointer.place``.

    Raises:
        BadList: it is not.
    """
    try:
        listed = read_list(der, "it", authority)
    except ConfigError as error:
        raise BadList(str(error)) from error
    if place_of(listed) != place:
        raise BadList(f"it is list {listed.number}")
    return listed


class Lists:
    """What the engine has of them. All that is asked raises Unavailable and EngineRefused."""

    def __init__(self, engine: Engine, keys: Keys) -> None:
        self._engine = engine
        self._keys = keys

    async def pointer(self, ca: str) -> KeyValue | None:
        """What says which list of a CA is the newest; see ``read_pointer``."""
        return await self._engine.get(self._keys.pointer(ca))

    async def fetch(self, authority: x509.Certificate, ca: str, pointer: Pointer) -> RevocationList:
        """A list that the engine says it has.

        Args:
            authority: the CA that must have signed it.
            ca: its id.
            pointer: which list.

        Raises:
            BadList: it has not, or it is another one.
        """
        der = b"".join(
            await _few_at_once(self._fetch_piece(ca, pointer, place) for place in range(pointer.chunks))
        )
        if hashlib.sha256(der).hexdigest() != pointer.sha256:
            raise BadList("it is not what its checksum says")
        return read_announced(der, authority, pointer.place)

    async def _fetch_piece(self, ca: str, pointer: Pointer, place: int) -> bytes:
        found = await self._engine.get(self._keys.piece(ca, pointer, place))
        if found is None or len(found.value) > CHUNK:
            what = "is missing" if found is None else "is too large"
            raise BadList(f"piece {place + 1} of {pointer.chunks} {what}", incomplete=found is None)
        return found.value

    async def put(
        self, ca: str, listed: RevocationList, server: str, before: Pointer | None, revision: int
    ) -> bool:
        """Have the engine say that a list is the newest.

        Args:
            ca: whose list it is.
            listed: the list.
            server: who says so.
            before: which one was the newest; None: none that we can read.
            revision: of the key that says so; 0: there is none.

        Returns:
            Whether it says so now; if not, somebody has written that key meanwhile.
        """
        der = listed.der
        chunks = math.ceil(len(der) / CHUNK)
        pointer = Pointer(*place_of(listed), hashlib.sha256(der).hexdigest(), chunks, server)
        await _few_at_once(
            self._put_piece(self._keys.piece(ca, pointer, place), der[place * CHUNK : (place + 1) * CHUNK])
            for place in range(chunks)
        )
        (swapped,) = await self._engine.swap([Swap(self._keys.pointer(ca), revision, pointer.encode())])
        current = swapped.current
        if swapped.ok or (current is not None and current.value == pointer.encode()):
            await self._clear(ca, pointer, before)
            return True
        return False

    async def remove(self, ca: str, revision: int) -> None:
        """Have the engine say nothing about the newest list of a CA, unless it says something else by now."""
        await self._engine.swap([Swap(self._keys.pointer(ca), revision, None)])

    async def _put_piece(self, key: bytes, piece: bytes) -> None:
        revision = 0
        for _ in range(_ATTEMPTS):
            (swapped,) = await self._engine.swap([Swap(key, revision, piece)])
            current = swapped.current
            if swapped.ok or (current is not None and current.value == piece):
                return
            revision = 0 if current is None else current.revision
        raise Unavailable("somebody else writes to our keys at the fleet's engine")

    async def _clear(self, ca: str, pointer: Pointer, before: Pointer | None) -> None:
        """Remove the pieces of lists before this one: also of those that nobody has finished to write."""
        start = self._keys.pieces(ca)
        page = await self._engine.names(start, after(start))
        old = [found for found in page.found if self._is_old(found.key, pointer, before)]
        for begin in range(0, len(old), SWAPS_MAX):
            swaps = [Swap(found.key, found.revision, None) for found in old[begin : begin + SWAPS_MAX]]
            await self._engine.swap(swaps)

    def _is_old(self, key: bytes, pointer: Pointer, before: Pointer | None) -> bool:
        number, sha256 = self._keys.list_of(key) or (pointer.number, pointer.sha256)
        was_newest = before is not None and sha256 == before.sha256
        return sha256 != pointer.sha256 and (was_newest or number < pointer.number)


def read_pointer(found: KeyValue) -> Pointer:
    """Which list is the newest, as ``Lists.pointer`` has found it.

    Raises:
        Stranger: that is not what is there.
    """
    return parse_pointer(found.value, CHUNKS_MAX)


async def _few_at_once(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results, in order; the first error, once nothing runs any more."""
    found: list[T] = []
    rest = iter(work)
    while batch := list(itertools.islice(rest, _AT_ONCE)):
        results = await asyncio.gather(*batch, return_exceptions=True)
        if errors := [one for one in results if isinstance(one, BaseException)]:
            raise errors[0]
        found += [one for one in results if not isinstance(one, BaseException)]
    return found
