"""Lists of revoked certificates at a real engine: in pieces, and which pieces go when."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from shadow.fleet import lists as module
from shadow.fleet.etcd import Engine, after
from shadow.fleet.keys import Keys, Pointer
from shadow.fleet.lists import CHUNK, CHUNKS_MAX, BadList, Lists, place_of, read_pointer
from shadow.pki.crl import LIST_MAX
from tests.support import Authority
from tests.support.engine import Members, end
from tests.support.lists import id_of_ca, listed, pointer_to, write

SMALL = 100  # bytes of a piece


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that each list has several."""
    monkeypatch.setattr(module, "CHUNK", SMALL)


class Scene:
    """The lists of one CA."""

    def __init__(self, own: Authority, engine: Engine, keys: Keys) -> None:
        self.own, self.engine, self.keys = own, engine, keys
        self.ca = id_of_ca(own)
        self.lists = Lists(engine, keys)

    async def newest(self) -> tuple[Pointer | None, int]:
        found = await self.lists.pointer(self.ca)
        return (None, 0) if found is None else (read_pointer(found), found.revision)

    async def put(self, number: int, *serials: int) -> bool:
        return await self.lists.put(self.ca, listed(self.own, number, *serials), "a", *await self.newest())

    async def fetch(self, pointer: Pointer) -> int:
        return (await self.lists.fetch(self.own.certificate, self.ca, pointer)).number

    async def pieces(self) -> list[int]:
        """The numbers of the lists that they belong to."""
        page = await self.engine.names(self.keys.lists, after(self.keys.lists))
        found = (self.keys.list_of(one.key) for one in page.found)
        return [one[0] for one in found if one is not None]


def play(own: Authority, members: Members, keys: Keys, body: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        engine = Engine(members.endpoints, members.identity())
        try:
            await body(Scene(own, engine, keys))
        finally:
            await end(engine)

    asyncio.run(run())


def test_the_largest_list_that_a_file_may_have_fits() -> None:
    assert CHUNK * CHUNKS_MAX == LIST_MAX


@pytest.mark.usefixtures("small")
def test_there_and_back_in_pieces(own: Authority, members: Members, keys: Keys) -> None:
    async def body(scene: Scene) -> None:
        assert await scene.put(5, 1, 2)
        pointer, _ = await scene.newest()
        assert pointer is not None
        assert (pointer.number, pointer.server) == (5, "a")
        assert pointer.chunks > 2
        assert await scene.pieces() == [5] * pointer.chunks
        found = await scene.lists.fetch(own.certificate, scene.ca, pointer)
        assert set(found.revoked) == {1, 2}
        assert place_of(found) == pointer.place

    play(own, members, keys, body)


@pytest.mark.usefixtures("small")
def test_old_pieces_go_and_those_of_newer_lists_stay(own: Authority, members: Members, keys: Keys) -> None:
    """Also those of a list that nobody has finished to write; but somebody may just write a later one."""

    async def body(scene: Scene) -> None:
        await scene.put(3)
        for number in (4, 9):
            begun = listed(own, number)
            await write(scene.engine, scene.keys.piece(scene.ca, pointer_to(begun), 0), b"begun")
        foreign = scene.keys.pieces(scene.ca) + b"foreign"
        await write(scene.engine, foreign, b"x")
        await scene.put(5)
        assert set(await scene.pieces()) == {5, 9}
        assert await scene.engine.get(foreign) is not None

    play(own, members, keys, body)


@pytest.mark.usefixtures("small")
def test_lists_without_numbers(own: Authority, members: Members, keys: Keys) -> None:
    """Which one is later, the date says; the pieces of the one before go as well."""

    async def body(scene: Scene) -> None:
        await scene.put(0)
        before, _ = await scene.newest()
        await scene.put(0, 1)
        pointer, _ = await scene.newest()
        assert before is not None
        assert pointer is not None
        assert pointer.sha256 != before.sha256
        assert await scene.pieces() == [0] * pointer.chunks

    play(own, members, keys, body)


@pytest.mark.usefixtures("small")
def test_what_somebody_has_written_in_the_place_of_a_piece(
    own: Authority, members: Members, keys: Keys
) -> None:
    async def body(scene: Scene) -> None:
        one = listed(own, 5)
        await write(scene.engine, scene.keys.piece(scene.ca, pointer_to(one), 0), b"garbage")
        assert await scene.lists.put(scene.ca, one, "a", None, 0)
        pointer, _ = await scene.newest()
        assert pointer is not None
        assert await scene.fetch(pointer) == 5

    play(own, members, keys, body)


def test_who_is_late_learns_of_it(own: Authority, members: Members, keys: Keys) -> None:
    """But not who has only lost the answer to its first attempt."""

    async def body(scene: Scene) -> None:
        older, newer = listed(own, 5), listed(own, 6)
        assert await scene.lists.put(scene.ca, newer, "b", None, 0)
        assert not await scene.lists.put(scene.ca, older, "a", None, 0)
        assert await scene.lists.put(scene.ca, newer, "b", None, 0)
        pointer, _ = await scene.newest()
        assert pointer is not None
        assert await scene.fetch(pointer) == 6

    play(own, members, keys, body)


def test_pieces_that_are_missing_or_too_large(own: Authority, members: Members, keys: Keys) -> None:
    """Only what is missing may still come."""

    async def body(scene: Scene) -> None:
        one = listed(own, 5)
        for value, incomplete in (None, True), (bytes(CHUNK + 1), False):
            if value is not None:
                await write(scene.engine, scene.keys.piece(scene.ca, pointer_to(one), 0), value)
            with pytest.raises(BadList, match="piece 1 of 1") as caught:
                await scene.fetch(pointer_to(one))
            assert caught.value.incomplete == incomplete

    play(own, members, keys, body)
