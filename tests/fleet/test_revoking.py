"""Lists of revoked certificates reach all servers of a fleet, whichever of them has read them."""

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from shadow import events
from shadow.errors import Unavailable
from shadow.fleet import exchange, memory
from shadow.fleet import revoking as module
from shadow.fleet.etcd import Engine
from shadow.fleet.keys import Keys
from shadow.fleet.lists import Lists
from shadow.pki.certificates import load_certificates
from shadow.pki.crl import RevocationList
from shadow.pki.files import NewFile, write_files
from shadow.server import questions
from shadow.server.questions import Others, Question, Take
from tests.support import DEADLINE, Authority, Daemon, echo, make_list, serving, wait_for
from tests.support.call import INTERFACE, Call
from tests.support.engine import Members, end
from tests.support.fleet import until
from tests.support.lists import Neighbours, Place, id_of_ca, listed, pointer_to, write
from tests.support.log import Said
from tests.support.peer import REFUSED
from tests.support.sites import NAME, Fleet

Body = Callable[[Place, Place], Awaitable[None]]


class Scene:
    """Servers a and b, which look when they are told, and the engine where they meet."""

    def __init__(self, own: Authority, members: Members, keys: Keys) -> None:
        self.own, self.members, self.keys = own, members, keys
        self.pointer = keys.pointer(id_of_ca(own))

    def play(self, body: Body, state: Path | None = None) -> None:
        async def run() -> None:
            self.engine = Engine(self.members.endpoints, self.members.identity())
            try:
                await body(*(Place(self.own, self.engine, self.keys, name, state) for name in "ab"))
            finally:
                await end(self.engine)

        asyncio.run(run())

    async def claim(self, made: RevocationList, **instead: object) -> None:
        """Somebody writes a list, and what he likes into the key that points to it."""
        pointer = pointer_to(made, **instead)
        await write(self.engine, self.keys.piece(id_of_ca(self.own), pointer, 0), made.der)
        await write(self.engine, self.pointer, pointer.encode())

    async def newest(self) -> int:
        """Which list the engine points to."""
        pointer = await Lists(self.engine, self.keys).pointer(id_of_ca(self.own))
        assert pointer is not None
        return int(pointer.value.split(b'"number":')[1].split(b",")[0])


@pytest.fixture
def scene(own: Authority, members: Members, keys: Keys) -> Scene:
    return Scene(own, members, keys)


def texts(said: Said, kind: type[events.Event]) -> list[str]:
    return [text for one, text in said if one is kind]


NOT_USED = "a revocation list at the fleet's engine is not used: "


def test_a_newer_list_is_used_wherever_it_was_read(scene: Scene, said: Said) -> None:
    """In both directions, whoever comes first; and who has it is asked no more."""

    async def body(a: Place, b: Place) -> None:
        a.configure(make_list(scene.own, 1, number=3))
        b.configure(make_list(scene.own, number=2))
        for place in (b, a, b, a, b):
            await place.look()
        assert (a.number, b.number, a.cut_off, b.cut_off) == (3, 3, 0, 1)
        b.configure(make_list(scene.own, 1, 2, number=4))
        for place in (b, a, b):
            await place.look()
        assert (a.number, a.cut_off, b.cut_off) == (4, 1, 1)

    scene.play(body)
    us = "the fleet's engine has revocation list"
    assert texts(said, events.ListPassedOn) == [
        f"{us} 2 of 'CN=Test CA' from us now",
        f"{us} 3 of 'CN=Test CA' from us now, instead of list 2",
        f"{us} 4 of 'CN=Test CA' from us now, instead of list 3",
    ]
    way = "by way of the fleet's engine"
    assert texts(said, events.ListLearnt) == [
        f"revocation list 3 of 'CN=Test CA' came from server a, {way}: 1 certificate revoked",
        f"revocation list 4 of 'CN=Test CA' came from server b, {way}: 2 certificates revoked",
    ]
    assert texts(said, events.ListRefused) == []


def test_a_server_without_a_list_uses_that_of_the_others(scene: Scene) -> None:
    async def body(a: Place, b: Place) -> None:
        a.configure(make_list(scene.own, 1))
        await a.look()
        await b.look()
        assert b.trust.who_is_revoked == "1 certificate revoked by list 1 of the fleet"
        b.trust.load()
        assert b.number == 1, "a reload, which finds no file, forgets nothing"

    scene.play(body)


def test_an_older_list_at_the_engine_is_refused_and_replaced(scene: Scene, said: Said) -> None:
    """It is genuine, and names fewer."""

    async def body(a: Place, b: Place) -> None:
        a.configure(make_list(scene.own, 1, 2, number=5))
        for place in (a, b, a):
            await place.look()
        await scene.claim(listed(scene.own, 4, 1))
        for place in (b, a):
            await place.look()
        assert (a.number, b.number) == (5, 5)
        assert await scene.newest() == 5

    scene.play(body)
    assert texts(said, events.ListRefused) == [
        f"{NOT_USED}list 4, which is older than the one that was there before"
    ]


@pytest.mark.parametrize(
    ("instead", "why"),
    [
        ({"number": 9}, "list 9 from server evil: it is list 4"),
        ({"since": 5}, None),
        ({"sha256": "0" * 64}, "list 4 from server evil: it is not what its checksum says"),
        ({"chunks": 0}, "list 4 from server evil: it is not what its checksum says"),
        ({"chunks": 2}, "list 4 from server evil: piece 2 of 2 is missing"),
    ],
)
def test_what_is_not_what_it_is_said_to_be(
    scene: Scene, said: Said, instead: dict[str, object], why: str | None
) -> None:
    """It is not used, and does not keep others from passing theirs on."""

    async def body(a: Place, b: Place) -> None:
        b.configure(make_list(scene.own, number=3))
        await scene.claim(listed(scene.own, 4, 1), **instead)
        for place in (b, b, a):
            await place.look()
        assert (a.number, b.number) == (3, 3)
        assert await scene.newest() == 3

    if why is None:
        instead, why = {"since": 2**40}, "list 4 from server evil: it is list 4"
    scene.play(body)
    assert texts(said, events.ListRefused) == [NOT_USED + why]


def test_a_forged_list(scene: Scene, said: Said, tmp_path: Path) -> None:
    """By another CA of the same name. Who has no list removes what points to it, and looks at it once."""
    forged = listed(Authority(tmp_path / "forger"), 7, 1)

    async def body(a: Place, b: Place) -> None:
        await scene.claim(forged)
        await a.look()
        assert await scene.engine.get(scene.pointer) is None
        await scene.claim(forged)
        for _ in range(3):
            await a.look()
        assert not a.trust.lists
        b.configure(make_list(scene.own, number=3))
        await b.look()
        await a.look()
        assert (a.number, b.number) == (3, 3)

    scene.play(body)
    line = (
        f"{NOT_USED}list 7 from server evil: it was not signed by a CA that we trust; "
        "take the list of the same CA"
    )
    assert texts(said, events.ListRefused) == [line, line], "once at each server"


def test_who_finds_something_bad_does_not_fight_for_it(scene: Scene) -> None:
    """Another version of us may find it good, and write it again."""

    bad = listed(scene.own, 7)

    async def body(a: Place, _b: Place) -> None:
        a.configure(make_list(scene.own, number=3))
        for expected in (3, 7, 7):
            await scene.claim(bad, sha256="0" * 64)
            await a.look()
            assert await scene.newest() == expected

    scene.play(body)


def test_a_list_whose_pieces_are_lost_comes_again_from_who_has_it(scene: Scene) -> None:
    async def body(a: Place, b: Place) -> None:
        a.configure(make_list(scene.own, 1, number=3))
        await a.look()
        ours = a.trust.lists[0]
        await write(scene.engine, scene.keys.piece(id_of_ca(scene.own), pointer_to(ours), 0), None)
        for place in (b, b, a, b):
            await place.look()
        assert b.number == 3

    scene.play(body)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"hello", "a value that is no JSON object"),
        (b'{"v":1,"number":1}', "a value with a field that is missing or wrong"),
        (b'{"v":1' + b" " * 4096 + b"}", "a value that is too large"),
        (b'{"v":2,"number":1}', "a value of another version of Shadow"),
    ],
)
def test_something_else_in_its_place(scene: Scene, said: Said, value: bytes, why: str) -> None:
    """One line; it is replaced, unless a later version of Shadow has written it."""

    async def body(a: Place, b: Place) -> None:
        await write(scene.engine, scene.pointer, value)
        for place in (a, a):
            await place.look()
        assert a.number is None
        b.configure(make_list(scene.own, number=3))
        for place in (b, a):
            await place.look()
        assert a.number == (None if b'"v":2' in value else 3)

    scene.play(body)
    assert texts(said, events.ListRefused) == [NOT_USED + why] * 2


def test_the_list_of_a_ca_that_is_not_trusted(scene: Scene, said: Said, tmp_path: Path) -> None:
    """Nobody looks at it, and nobody removes it."""
    other = Authority(tmp_path / "other", "Other CA")

    async def body(a: Place, _b: Place) -> None:
        key = scene.keys.pointer(id_of_ca(other))
        await write(scene.engine, key, pointer_to(listed(other, 2)).encode())
        before = await scene.engine.get(key)
        await a.look()
        assert await scene.engine.get(key) == before
        assert a.number is None

    scene.play(body)
    assert said == []


def test_two_read_new_lists_at_the_same_time(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has the newer one wins, also if the other is the last to write."""

    async def body(a: Place, b: Place) -> None:
        a.configure(make_list(scene.own, 1, number=4))
        b.configure(make_list(scene.own, 1, 2, number=5))
        swap, overtaken = scene.engine.swap, list[str]()

        async def slow(swaps):  # type: ignore[no-untyped-def]
            if swaps[0].key == scene.pointer and not overtaken:
                overtaken.append("a")
                await b.look()
            return await swap(swaps)

        monkeypatch.setattr(scene.engine, "swap", slow)
        await a.look()
        assert await scene.newest() == 5
        assert a.revoking._view.lists.is_set(), "it looks again"
        await a.look()
        assert (a.number, b.number) == (5, 5)

    scene.play(body)


def test_a_reload_while_a_list_is_fetched(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newer one stays in use, and the other is not even announced."""

    async def body(a: Place, b: Place) -> None:
        a.configure(make_list(scene.own, 1, number=4))
        await a.look()
        newer = make_list(scene.own, 1, 2, number=5)
        get = scene.engine.get

        async def slow(key: bytes):  # type: ignore[no-untyped-def]
            if key.endswith(b"/0") and newer.exists():
                b.configure(newer)
            return await get(key)

        monkeypatch.setattr(scene.engine, "get", slow)
        await b.look()
        assert (b.number, b.cut_off) == (5, 0)

    scene.play(body)


def test_while_the_engine_is_away_it_tries_again_soon(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(a: Place, _b: Place) -> None:
        rested = await a.look()

        async def away(_key: bytes) -> None:
            raise Unavailable("away")

        monkeypatch.setattr(scene.engine, "get", away)
        assert await a.look() < rested

    scene.play(body)


@pytest.mark.parametrize("told", [True, False])
def test_when_it_looks(scene: Scene, monkeypatch: pytest.MonkeyPatch, told: bool) -> None:  # noqa: FBT001
    """At once when it is told that there is something to see, and else now and then: events may be lost."""
    monkeypatch.setattr(module, "_PAUSE", 1000.0 if told else 0.01)

    async def body(a: Place, b: Place) -> None:
        task = asyncio.create_task(a.revoking.run())
        try:
            for number in 1, 2:
                b.configure(make_list(scene.own, 1, number=number))
                await b.look()
                if told:
                    a.revoking.look()
                await until(lambda number=number: a.number == number, "the list")  # type: ignore[misc]
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    scene.play(body)


@pytest.mark.parametrize("why", ["the view says so", "it does not answer", "another server says so", ""])
def test_when_the_others_are_asked(
    scene: Scene, said: Said, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """While the engine is away, or when one of them has come by itself; and else not."""

    async def body(a: Place, b: Place) -> None:
        a.configure(make_list(scene.own, 1, number=4))
        b.others = neighbours = Neighbours(a=a.trust)

        async def away(_key: bytes) -> None:
            raise Unavailable("away")

        b.revoking._view.up = why != "the view says so"
        b.revoking._view.lists_elsewhere = why == "another server says so"
        if why == "it does not answer":
            monkeypatch.setattr(scene.engine, "get", away)
        await b.look()
        assert (b.trust.revoked, b.cut_off, bool(neighbours.asked)) == (
            (1, 1, True) if why else (0, 0, False)
        )
        assert not b.revoking._view.lists_elsewhere, "once"

    scene.play(body)
    assert texts(said, events.ListLearnt) == (
        ["revocation list 4 of 'CN=Test CA' came from server a, asked for it: 1 certificate revoked"]
        if why
        else []
    )


class Drips(Others):
    """A server that has a newer list, it says, and never comes to its end.

    Attributes:
        given: how many parts.
    """

    def __init__(self) -> None:
        self.given = 0

    @property
    def names(self) -> list[str]:
        return ["evil"]

    async def ask(self, server: str, question: Question, uid: int, take: Take) -> None:
        del server, uid
        if question.what == questions.NEWEST_LIST:
            await take([{"number": "9", "since": 1}])
            return
        while True:
            self.given += 1
            await take([{"piece": ""}])
            await asyncio.sleep(0.001)


def test_a_server_that_never_ends_does_not_delay_what_comes_by_way_of_the_engine(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stolen one could keep its own revocation from counting. And it is not listened to for ever."""

    async def body(a: Place, b: Place) -> None:
        b.others = drips = Drips()
        b.revoking._view.lists_elsewhere = True
        task = asyncio.create_task(b.revoking.run())
        try:
            await until(lambda: drips.given, "its first part")
            a.configure(make_list(scene.own, 1, number=4))
            await a.look()
            b.revoking.look()
            await until(lambda: b.number == 4, "the list")
            assert b.revoking._asking
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await until(lambda: not b.revoking._asking, "the end")
        monkeypatch.setattr(exchange, "_LIST_WITHIN", 0.01)
        async with asyncio.timeout(DEADLINE):
            b.revoking._view.lists_elsewhere = True
            await b.look()
        assert b.number == 4

    scene.play(body)


def test_what_cannot_be_kept_is_used_all_the_same(scene: Scene, said: Said, tmp_path: Path) -> None:
    """And said once."""
    state = tmp_path / "state"
    state.write_text("a file")

    async def body(a: Place, b: Place) -> None:
        a.configure(make_list(scene.own, 1, number=4))
        for place in (a, b, a, b):
            await place.look()
        assert b.number == 4
        await until(lambda: len(texts(said, events.ListNotKept)) == 2, "both")
        for place in (a, b):
            await place.look()

    scene.play(body, state)
    assert len(texts(said, events.ListNotKept)) == 2
    assert (
        f"in use, but only until a restart: cannot write {state}: Not a directory"
        in texts(said, events.ListNotKept)[0]
    )


def test_a_disk_that_hangs_keeps_no_list_from_being_used(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it has in the end is the newest."""
    disk, writing = threading.Event(), list[int]()

    def slow(files: Sequence[NewFile], *, force: bool) -> None:
        writing.append(1)
        assert disk.wait(DEADLINE)
        write_files(files, force=force)

    async def body(a: Place, b: Place) -> None:
        try:
            for number in 4, 5:
                a.configure(make_list(scene.own, 1, number=number))
                for place in (a, b):
                    await place.look()
                assert b.number == number
            await until(lambda: len(writing) == 2, "that both begin to write")
        finally:
            disk.set()
        for place in (a, b):
            await until(lambda place=place: not place.revoking._keeping, "the disk")  # type: ignore[misc]
            assert place.revoking._view.lists.is_set(), "it looks again"
            await place.look()
            await until(lambda place=place: not place.revoking._keeping, "the disk")  # type: ignore[misc]

    monkeypatch.setattr(memory, "write_files", slow)
    scene.play(body, tmp_path / "state")
    authority = load_certificates(scene.own.ca, "CA")
    assert [one.number for one in memory.recall(tmp_path / "state", authority)] == [5]


# Real servers


def serial(own: Authority, name: str = NAME) -> int:
    return load_certificates(own.robot(name)[0], "robot")[0].serial_number


@pytest.fixture
def fleet(own: Authority, members: Members, tmp_path: Path, keys: Keys) -> Iterator[Fleet]:
    """One with a CA of its own, which may revoke; its servers do not run yet."""
    made = Fleet(own, members, tmp_path, keys.prefix.decode().split("/")[2])
    with ExitStack() as stack:
        for site in made.sites:
            stack.enter_context(site.tunnel)
        yield made


def in_order(daemon: Daemon, *patterns: str) -> None:
    """The log has all of them, one after the other."""
    for pattern in patterns:
        daemon.wait_for_log(pattern)
    daemon.wait_for_log("(?s)" + ".*".join(patterns))


def test_a_reload_at_one_server_cuts_off_a_robot_at_another(fleet: Fleet, own: Authority) -> None:
    """The other one has no list of its own, and not even the setting; and a restart does not forget it."""
    one, two = fleet.sites
    one.start(f"--crl={make_list(own)}")
    state = f"--state={fleet.folder}/state"
    two.start(state)
    two.daemon.wait_for_log("revocation list 1 of .* came from server s1")
    with serving(echo) as service:
        client = two.tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        fleet.wait_for_home(("s2", 1))
        wait_for(one.tunnel.socket_path(NAME).exists, "the robot's socket at the first server")
        with one.tunnel.visit() as visitor:  # a stream over both servers
            visitor.sendall(b"x")
            assert visitor.recv(1) == b"x"
            make_list(own, serial(own), number=2)
            one.daemon.process.send_signal(signal.SIGHUP)
            assert visitor.recv(1) == b""
        in_order(
            two.daemon,
            "revocation list 2 of 'CN=Test CA' came from server s1, "
            "by way of the fleet's engine: 1 certificate revoked\n",
            f"robot {NAME} disconnected: certificate {serial(own):040x} was revoked",
            "cut off robots with revoked certificates: 2 sessions and streams ended",
            f"robot '{NAME}' from .* refused \\(revoked\\)",
        )
        in_order(
            one.daemon,
            "reloaded: .*; 1 certificate revoked by list 2 in ",
            "the fleet's engine has revocation list 2 of 'CN=Test CA' from us now, instead of list 1\n",
        )
        client.stop()
    assert "came from server" not in one.daemon.log
    two.daemon.stop()
    two.start_with_api(state, "--engine=https://127.0.0.1:1")
    two.daemon.wait_for_log("accepting robots .*; 1 certificate revoked by list 2 of the fleet\n")
    with two.robot(), Call(two.tunnel.ldir / INTERFACE) as call:
        assert (two.answer[0], two.answer[1]["code"]) == (REFUSED, "revoked")
        assert call.get("GetStatus")["lists"] == "2"


def test_a_server_that_is_revoked_loses_its_channels_at_both_ends(fleet: Fleet, own: Authority) -> None:
    one, two = fleet.sites
    one.start(f"--crl={make_list(own)}")
    two.start()
    with serving(echo) as service:
        two.tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        fleet.wait_for_home(("s2", 1))
        wait_for(one.tunnel.socket_path(NAME).exists, "the robot's socket at the first server")
        with one.tunnel.visit() as visitor:
            visitor.sendall(b"x")
            assert visitor.recv(1) == b"x"
            crt, _key = own.peer("s2")
            make_list(own, load_certificates(crt, "peer")[0].serial_number, number=2)
            one.daemon.process.send_signal(signal.SIGHUP)
            assert visitor.recv(1) == b""
    one.daemon.wait_for_log(r"cut off \(the robot's server's certificate was revoked\)")
    one.daemon.wait_for_log("server s2 .* is out of reach: .*revoked")
    two.daemon.wait_for_log("server s1 .* is out of reach: .*revoked")
