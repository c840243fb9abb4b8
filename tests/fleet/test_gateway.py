"""Requests and streams: failures of every kind, on the way and in the answers."""

import asyncio
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from shadow.errors import EngineRefused, Unavailable
from shadow.fleet import gateway
from shadow.fleet.credentials import Identity, load_identity
from shadow.fleet.etcd import Engine, Swap, after
from shadow.fleet.keys import Keys
from shadow.net.address import Endpoint, Target
from shadow.pki.certificates import Files
from tests.support import CHECKOUT, DEADLINE, Authority, Tunnel, now
from tests.support.engine import HOST, Members, b64, end
from tests.support.fake_engine import Answer, FakeMember, raw, with_status

STALE = "stale.1"
GOOD = b'{"header": {"cluster_id": "1", "raft_term": "1", "revision": "1"}}'


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    """A member that users may be made for."""
    with Members(tmp_path_factory.mktemp("one"), 1) as made:
        yield made


@asynccontextmanager
async def faked(
    members: Members, answer: Answer, *more: Endpoint
) -> AsyncIterator[tuple[Engine, FakeMember]]:
    """A client of a member that answers like this, and of others."""
    async with FakeMember(members, answer) as fake, asyncio.timeout(DEADLINE):
        engine = Engine([fake.endpoint, *more], members.identity())
        engine._gateway._at = 0
        yield engine, fake
        await engine.close()


@pytest.mark.parametrize(
    "answer",
    [
        raw(b""),
        raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}"),
        raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"),
        with_status(302, b""),
        with_status(500, b""),
        with_status(503, b'{"code": 14, "message": "etcdserver: no leader"}'),
        with_status(200, b""),
        with_status(200, b"nonsense"),
        with_status(200, b"[]"),
        with_status(200, b"{}"),
        with_status(200, b'{"header": 7}'),
        with_status(200, b'{"header": {"cluster_id": "x", "revision": "1"}}'),
        with_status(200, b'{"header": {"cluster_id": "-1", "revision": "1"}}'),
        with_status(200, b'{"header": {"cluster_id": "1", "revision": "99999999999999999999999"}}'),
        with_status(200, GOOD[:-1] + b', "kvs": 7}'),
        with_status(200, GOOD[:-1] + b', "kvs": [7]}'),
        with_status(200, GOOD[:-1] + b', "kvs": [{"key": "YQ=="}]}'),
        with_status(200, GOOD[:-1] + b', "kvs": [{"key": "Y", "mod_revision": "1"}]}'),
        with_status(200, GOOD[:-1] + b', "kvs": [{"key": 7, "mod_revision": "1"}]}'),
        with_status(200, GOOD[:-1] + b', "kvs": [{"key": "YQ==", "mod_revision": []}]}'),
    ],
)
def test_an_answer_that_makes_no_sense_is_asked_for_elsewhere(
    members: Members, keys: Keys, answer: Answer
) -> None:
    async def body() -> None:
        async with faked(members, answer, *members.endpoints) as (engine, fake):
            assert await engine.get(keys.robot("a")) is None
            assert await engine.get(keys.robot("a")) is None
            assert len(fake.asked) == 1, "who failed is not asked again at once"
        async with faked(members, answer) as (engine, fake):
            with pytest.raises(Unavailable, match=str(fake.endpoint)) as caught:
                await engine.get(keys.robot("a"))
            assert len(str(caught.value)) < 400
            assert str(caught.value).isprintable()

    asyncio.run(body())


@pytest.mark.parametrize(
    "said",
    [
        b"{}",
        GOOD,
        GOOD[:-1] + b', "responses": []}',
        GOOD[:-1] + b', "responses": [{}]}',
        GOOD[:-1] + b', "responses": [{"response_txn": {}}]}',
        GOOD[:-1] + b', "responses": [{"response_txn": {"responses": [{"response_range": {"kvs": [{}]}}]}}]}',
    ],
)
def test_an_answer_to_swaps_that_makes_no_sense(members: Members, keys: Keys, said: bytes) -> None:
    async def body() -> None:
        async with faked(members, with_status(200, said)) as (engine, _fake):
            with pytest.raises(Unavailable, match="makes no sense"):
                await engine.swap([Swap(keys.robot("a"), 0, b"1")])
            with pytest.raises(Unavailable):
                await engine.grant(10)

    asyncio.run(body())


CREATED = b'{"result": {"created": true}}\n'


@pytest.mark.parametrize(
    "lines",
    [
        b"",
        b"nonsense\n",
        b"[]\n",
        b'{"error": {"grpc_code": 14, "message": "etcdserver: no leader"}}\n',
        b'{"result": {"canceled": true}}\n',
        b'{"result": {"events": 7}}\n',
        b'{"result": {"events": [7]}}\n',
        b'{"result": {"events": [{"kv": {"key": "YQ==", "mod_revision": "x"}}]}}\n',
        b'{"result": {"events": [{"type": "OTHER", "kv": {"key": "YQ==", "mod_revision": "1"}}]}}\n',
        b'{"result": {"events": [{"kv": {"key": "YQ==", "mod_revision": "1"}}',
    ],
)
def test_a_stream_that_makes_no_sense_or_ends(members: Members, keys: Keys, lines: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"

    async def body() -> None:
        async with (
            faked(members, raw(head + CREATED + lines)) as (engine, fake),
            aclosing(engine.watch(keys.prefix, after(keys.prefix), 1)) as batches,
        ):
            await anext(batches)
            with pytest.raises(Unavailable, match=str(fake.endpoint)):
                await anext(batches)

    asyncio.run(body())


def test_nothing_may_be_larger_than_this(
    members: Members, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "ANSWER_MAX", 2**20)
    endless = raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b" " * 2**21)

    async def body() -> None:
        async with faked(members, endless) as (engine, _fake):
            with pytest.raises(Unavailable, match="too large"):
                await engine.get(keys.robot("a"))
            async with aclosing(engine.watch(keys.prefix, after(keys.prefix), 1)) as batches:
                with pytest.raises(Unavailable, match="too large"):
                    await anext(batches)

    asyncio.run(body())


def test_silence_ends_a_stream_and_a_request(
    members: Members, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gateway.SILENCE == 9
    assert gateway._STREAM.pauses == 9
    monkeypatch.setattr(gateway, "_STREAM", gateway._STREAM._replace(pauses=0.2))
    monkeypatch.setattr(gateway, "_REQUEST", gateway._REQUEST._replace(begins=0.2))

    async def answer(path: str, _body: bytes, writer: asyncio.StreamWriter) -> None:
        if path == "/v3/watch":
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + CREATED)
        await asyncio.sleep(DEADLINE)

    async def body() -> None:
        async with faked(members, answer) as (engine, _fake):
            async with aclosing(engine.watch(keys.prefix, after(keys.prefix), 1)) as batches:
                with pytest.raises(Unavailable, match="no answer in time"):
                    async for _ in batches:
                        pass
            with pytest.raises(Unavailable, match="no answer in time"):
                await engine.get(keys.robot("a"))
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0, "else the caller's own limits no longer hold"

    asyncio.run(body())


def refusal(members: Members, identity: Identity, *endpoints: Endpoint) -> str:
    """What the engine says to somebody whom it does not want."""

    async def body() -> str:
        engine = Engine(endpoints or members.endpoints, identity)
        try:
            with pytest.raises(EngineRefused) as caught:
                await engine.get(b"/shadow/x/live/a")
            with pytest.raises(EngineRefused):
                await anext(engine.watch(b"/shadow/x/", b"/shadow/x0", 1))
        finally:
            await end(engine)
        assert caught.value.exit_status == 78
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return asyncio.run(body())


def test_a_certificate_that_the_engine_does_not_accept(members: Members, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "Other CA")
    theirs = load_identity(Files(other.ca, *other.robot("a")), None, [], now())
    theirs.context.load_verify_locations(members.authority.ca)
    said = refusal(members, theirs)  # etcd's words changed with Go's
    assert re.search(r"it does not accept our certificate \((bad certificate|unknown ca)\)", said)


def test_an_engine_of_another_ca(members: Members, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", "Other CA")
    mistaken = load_identity(Files(other.ca, *other.robot("a")), None, [], now())
    assert "its certificate is not good: unable to get local issuer" in refusal(members, mistaken)


@pytest.fixture
def elsewhere(members: Members, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    """A name that leads to a member, and is not in its certificate."""

    async def resolve(endpoint: Endpoint, _within: float) -> list[Target]:
        return [Target(socket.AF_INET, (HOST, endpoint.port))]

    monkeypatch.setattr(gateway, "resolve", resolve)
    return Endpoint("elsewhere.example", members.members[0].client)


def test_an_engine_of_another_name(members: Members, elsewhere: Endpoint) -> None:
    said = refusal(members, members.identity(), elsewhere)
    assert "its certificate is not good: Hostname mismatch" in said


def test_one_member_that_refuses_is_not_the_engine(members: Members, keys: Keys, elsewhere: Endpoint) -> None:
    """Its certificate has expired, say: the others go on."""

    async def body() -> None:
        engine = Engine([elsewhere, *members.endpoints], members.identity())
        engine._gateway._at = 0
        assert await engine.get(keys.robot("a")) is None
        await end(engine)
        engine = Engine([elsewhere, Endpoint(HOST, 1)], members.identity())
        with pytest.raises(Unavailable, match=r"Hostname mismatch.*Connection refused|refused.*mismatch"):
            await engine.get(keys.robot("a"))
        await end(engine)

    asyncio.run(body())


def test_a_name_is_looked_up_as_everywhere_else(members: Members, keys: Keys) -> None:
    async def body() -> None:
        port = members.members[0].client
        engine = Engine([Endpoint("localhost", port)], members.identity())
        assert await engine.get(keys.robot("a")) is None
        await end(engine)
        engine = Engine([Endpoint("no.such.invalid", port)], members.identity())
        with pytest.raises(Unavailable, match=r"cannot resolve no\.such\.invalid"):
            await engine.get(keys.robot("a"))
        await end(engine)

    asyncio.run(body())


def test_new_certificates_are_used_at_once(members: Members, keys: Keys, tmp_path: Path) -> None:
    async def body() -> None:
        engine = Engine(members.endpoints, members.identity())
        async with aclosing(engine.watch(keys.prefix, after(keys.prefix), 1)) as batches:
            await anext(batches)
            other = Authority(tmp_path / "other", "Other CA")
            engine.use(load_identity(Files(other.ca, *other.robot("a")), None, [], now()))
            with pytest.raises(Unavailable):
                await anext(batches)
        with pytest.raises(EngineRefused):
            await engine.get(keys.robot("a"))
        engine.use(members.identity("renewed"))
        assert await engine.get(keys.robot("a")) is None
        await end(engine)

    asyncio.run(body())


def make_users(one: Members, keys: Keys) -> None:
    """Two users, one of whom may use a fleet's keys; then only users are let in."""
    for path, said in (
        ("auth/user/add", {"name": "root", "password": "root"}),
        ("auth/user/grant", {"user": "root", "role": "root"}),
        ("auth/role/add", {"name": "fleet"}),
        ("auth/role/grant", {"name": "fleet", "perm": _all_of(keys)}),
        ("auth/user/add", {"name": "shadow", "password": "pass:word"}),
        ("auth/user/grant", {"user": "shadow", "role": "fleet"}),
        ("auth/user/add", {"name": "other", "password": "other"}),
        ("auth/enable", {}),
    ):
        one.ask(one.members[0], path, said)


def _all_of(keys: Keys) -> dict[str, Any]:
    return {"permType": "READWRITE", "key": b64(keys.prefix), "range_end": b64(after(keys.prefix))}


@pytest.mark.long
def test_an_engine_with_users(one: Members, keys: Keys, tmp_path: Path) -> None:
    path = tmp_path / "login"

    def login(text: str, stem: str = "nameless", common_name: str = "") -> Identity:
        path.write_text(text)
        return load_identity(one.files(stem, common_name), path, [], now())

    async def body() -> None:
        engine = Engine(one.endpoints, login("shadow:pass:word"))
        assert await engine.get(keys.robot("a")) is None, "there are no users yet"
        make_users(one, keys)
        try:
            (put,) = await engine.swap([Swap(keys.robot("a"), 0, b"1")])
            lease = await engine.grant(10)
            assert put.ok
            engine._gateway._token = STALE  # as after five minutes, or a restart of the member
            assert await engine.get(keys.robot("a")) is not None
            await engine.keep_alive(lease)
            engine._gateway._token = STALE
            watch = engine.watch(keys.prefix, after(keys.prefix), put.revision)
            with pytest.raises(Unavailable, match="invalid auth token"):
                await anext(watch)
            async with aclosing(engine.watch(keys.prefix, after(keys.prefix), put.revision)) as batches:
                await anext(batches)
                assert (await anext(batches)).changes[0].value == b"1"
            with pytest.raises(EngineRefused, match="does not permit us to use this fleet's keys"):
                await engine.get(b"/registry/secrets")
            with pytest.raises(EngineRefused, match="does not permit"):
                await anext(engine.watch(b"/registry/", b"/registry0", 1))
            await engine.revoke(lease)
        finally:
            await end(engine)

    async def answered(engine: Engine) -> None:
        """Checking a password takes long by design, on a busy machine too long."""
        answer = False
        while not answer:
            with suppress(Unavailable):
                await engine.get(keys.robot("a"))
                answer = True

    async def refused(identity: Identity, why: str) -> None:
        engine = Engine(one.endpoints, identity)
        with pytest.raises(EngineRefused, match=why):
            await answered(engine)
        await end(engine)

    async def strangers() -> None:
        await refused(login("shadow:wrong"), "wrong user or password")
        await refused(login("nobody:x"), "wrong user or password")
        await refused(login("other:other"), "does not permit")
        await refused(load_identity(one.files("nameless", ""), None, [], now()), "no login|does not permit")
        await refused(login("shadow:pass:word", "named", "server-a"), "certificate with a common name")

    asyncio.run(body())
    asyncio.run(strangers())


def test_users_that_are_made_while_we_run(members: Members, keys: Keys, tmp_path: Path) -> None:
    """Without a token, the engine takes the certificate of its own gateway for ours."""
    login = tmp_path / "login"
    login.write_text("shadow:pass:word")
    off = with_status(400, b'{"code": 9, "message": "etcdserver: authentication is not enabled"}')
    denied = with_status(403, b'{"code": 7, "message": "etcdserver: permission denied"}')
    answers = [off, denied, with_status(200, b'{"token": "good.1"}'), with_status(200, GOOD)]

    async def answer(path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        await answers.pop(0)(path, body, writer)

    async def body() -> None:
        async with faked(members, answer) as (engine, fake):
            engine.use(load_identity(members.files(), login, [], now()))
            assert await engine.get(keys.robot("a")) is None
            assert [path.rpartition("/")[2] for path in fake.asked] == ["authenticate", "range"] * 2
            assert engine._gateway._token == "good.1"  # noqa: S105

    asyncio.run(body())


def test_a_server_without_a_fleet_needs_no_aiohttp(authority: Authority, tmp_path: Path) -> None:
    """Neither is it imported, nor does a server fail where it is not installed."""
    report = tmp_path / "report"
    program = f"""
import atexit, sys
sys.modules["aiohttp"] = None
atexit.register(lambda: open({str(report)!r}, "w").write(" ".join(sys.modules)))
from shadow.cli.server import main
raise SystemExit(main())
"""
    with Tunnel(authority, tmp_path) as tunnel:
        crt, key = authority.server()
        process = subprocess.Popen(
            [
                sys.executable, "-c", program, f"--lport={tunnel.port}", f"--ldir={tunnel.ldir}",
                f"--ca={authority.ca}", f"--crt={crt}", f"--key={key}",
            ],
            cwd=CHECKOUT,
        )  # fmt: skip
        try:
            tunnel.start_client("--lport=22")
        finally:
            process.terminate()
            process.wait(DEADLINE)
    imported = report.read_text().split()
    assert "shadow.server.server" in imported
    assert [name for name in imported if name.startswith("shadow.fleet.")] == []
