"""Dialling another server of the fleet, over real TLS: who has to be there, and which addresses are tried."""

import asyncio
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shadow.errors import IdentityError, PeerError, Refused, Unreachable
from shadow.fleet import peer_way
from shadow.fleet.peer_trust import PeerTrust
from shadow.fleet.peer_way import Manner, Way
from shadow.net.address import Endpoint, Target
from shadow.net.resolving import resolve
from shadow.pki.certificates import Files, Purpose
from shadow.transport.context import Ktls, Settings
from shadow.wire.conversation import PEER, State
from shadow.wire.frames import Hello, Refusal
from tests.support import DEADLINE, Authority
from tests.support.answering import Answering, peer_trust
from tests.support.fleet import until

HELLO = Hello(1, PEER, "a", fleet="robots")
SHORT = 0.2  # seconds for what is to fail
NOT_IN_TIME = r"no (WELCOME|handshake) within 0\.\d s|no answer"


def run(body: Coroutine[Any, Any, None]) -> None:
    async def within() -> None:
        async with asyncio.timeout(DEADLINE):
            await body

    asyncio.run(within())


def manner(authority: Authority, timeout: float = DEADLINE) -> Manner:
    return Manner(HELLO, peer_trust(authority, "a"), 30.0, timeout)


@asynccontextmanager
async def way_to(
    authority: Authority, settings: Settings | None = None, timeout: float = DEADLINE
) -> AsyncIterator[tuple[Answering, Way]]:
    async with Answering(settings or peer_trust(authority, "b").settings) as b:
        yield b, Way("b", b.endpoint, manner(authority, timeout))


def test_a_channel_that_stands_by(authority: Authority) -> None:
    async def body() -> None:
        async with way_to(authority) as (b, way):
            channel = await way.open()
            assert b.hellos == [HELLO]
            assert channel.conversation.state is State.STANDBY
            option = channel.link.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            assert option == 15, "the kernel sees when the server is gone"
            channel.close()
            await until(lambda: b.lost == [None], "the end")

    run(body())


def test_another_server_at_its_address(authority: Authority) -> None:
    async def body() -> None:
        async with way_to(authority, peer_trust(authority, "c").settings) as (c, way):
            with pytest.raises(IdentityError, match="the peer is server c, not b"):
                await way.open()
            await until(lambda: c.failures, "its handshake to fail")
            assert c.hellos == []

    run(body())


@pytest.mark.parametrize("purpose", [Purpose.ROBOT, Purpose.SERVER])
def test_somebody_else_at_its_address(authority: Authority, purpose: Purpose) -> None:
    """Neither a robot nor whoever has the certificate that robots are shown poses as a peer."""

    async def body() -> None:
        stranger = Settings(authority.context(purpose), Purpose.PEER, Ktls.AUTO)
        async with way_to(authority, stranger) as (b, way):
            with pytest.raises(
                PeerError, match=r"is not a peer's|unsuitable certificate purpose|unsupported"
            ):
                await way.open()
            await until(lambda: b.failures, "its handshake to fail")
            assert b.hellos == []

    run(body())


def test_one_whose_certificate_was_revoked(authority: Authority) -> None:
    async def body() -> None:
        async with way_to(authority) as (b, _way):
            files = Files(authority.ca, *authority.peer("a"))
            trust = PeerTrust(files, "a", Ktls.AUTO, lambda _link: "certificate 0c was revoked")
            with pytest.raises(IdentityError, match="certificate 0c was revoked"):
                await Way("b", b.endpoint, Manner(HELLO, trust, 30.0, DEADLINE)).open()
            await until(lambda: b.failures, "its end")
            assert b.hellos == []

    run(body())


def test_a_refusal(authority: Authority) -> None:
    async def body() -> None:
        async with way_to(authority) as (b, way):
            b.answer = Refusal("fleet", "we are of fleet cars", 7.0)
            with pytest.raises(Refused, match=r"refused \(fleet\): we are of fleet cars") as caught:
                await way.open()
            assert caught.value.retry_after == 7.0

    run(body())


def test_the_next_channel_shows_what_was_read_last(own: Authority) -> None:
    async def body() -> None:
        async with Answering(peer_trust(own, "b").settings) as b:
            used = manner(own)
            way = Way("b", b.endpoint, used)
            (await way.open()).close()
            own.issue("peer-a", "peer:a", Purpose.PEER)
            used.trust.load()
            (await way.open()).close()
            await until(lambda: len(b.lost) == 2, "both ends")
            before, after = b.certificates
            assert before != after

    run(body())


def test_nobody_there(authority: Authority) -> None:
    async def body() -> None:
        async with way_to(authority) as (b, way):
            pass
        with pytest.raises(Unreachable, match=f"cannot connect to {b.endpoint}: Connection refused"):
            await way.open()

    run(body())


def test_all_takes_no_longer_than_it_may(authority: Authority) -> None:
    async def body() -> None:
        async with way_to(authority, timeout=SHORT) as (b, way):
            b.answer = None
            with pytest.raises(PeerError, match=NOT_IN_TIME):
                await way.open()
            await b.be_deaf()
            with pytest.raises(PeerError, match=NOT_IN_TIME):
                await way.open()

    run(body())


def found_at(monkeypatch: pytest.MonkeyPatch, *endpoints: Endpoint) -> list[Target]:
    """What every name is resolved to."""
    found = [Target(socket.AF_INET, (each.host, each.port)) for each in endpoints]

    async def look_up(*_: object, **__: object) -> list[Target]:
        return found

    monkeypatch.setattr(peer_way, "resolve", look_up)
    return found


def test_every_address_is_tried(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is at one, and another server at the next."""

    async def body() -> None:
        async with (
            way_to(authority) as (b, way),
            way_to(authority, peer_trust(authority, "c").settings) as (c, _),
        ):
            async with way_to(authority) as (gone, _way):
                pass
            found_at(monkeypatch, gone.endpoint, c.endpoint, b.endpoint)
            for _ in range(2):
                (await way.open()).close()
            assert (c.accepted, len(b.hellos)) == (2, 2)
            b.answer = Refusal("limit", "full")
            found_at(monkeypatch, b.endpoint, c.endpoint)
            with pytest.raises(Refused, match="full"):
                await way.open()
            assert c.accepted == 2, "a server that refuses us does so at all of its addresses"
            async with way_to(authority, peer_trust(authority, "d").settings) as (d, _way):
                for others in ([gone, c], [c, gone], [c, d]):  # not: nobody is at the other
                    found_at(monkeypatch, *[other.endpoint for other in others])
                    with pytest.raises(IdentityError, match="the peer is server c"):
                        await way.open()

    run(body())


def test_one_that_is_silent_does_not_take_all_the_time(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert peer_way._PARTS_MAX == 4
    monkeypatch.setattr(peer_way, "_PARTS_MAX", 100)

    async def body() -> None:
        async with way_to(authority) as (b, way), way_to(authority) as (silent, _way):
            await silent.be_deaf()
            found_at(monkeypatch, silent.endpoint, *[b.endpoint] * 99)  # however slow the machine is
            (await way.open()).close()

    run(body())


def test_if_names_cannot_be_resolved_any_more_the_addresses_are_known(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with Answering(peer_trust(authority, "b").settings) as b:
            answers: list[list[Target] | Exception] = [Unreachable("cannot resolve b.example: no")]

            async def look_up(*_: object, told: bool, **__: object) -> list[Target]:
                assert told, "only few names of others are looked up at once"
                answer = answers.pop()
                if isinstance(answer, Exception):
                    raise answer
                return answer

            monkeypatch.setattr(peer_way, "resolve", look_up)
            way = Way("b", Endpoint("b.example", 7), manner(authority))
            with pytest.raises(Unreachable, match=r"cannot resolve b\.example: no"):
                await way.open()
            found = Target(socket.AF_INET, (b.endpoint.host, b.endpoint.port))
            answers += [Unreachable("no"), [found]]
            for _ in range(2):
                (await way.open()).close()
            assert answers == []

    run(body())


def test_many_names_are_looked_up_in_turn(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or at the start of a server in a large fleet most of them would fail."""

    async def body() -> None:
        asked, answer = 0, asyncio.Event()

        async def look_up(endpoint: Endpoint, within: float, *, told: bool = False) -> list[Target]:
            nonlocal asked
            asked += 1
            await answer.wait()
            return await resolve(Endpoint("127.0.0.1", endpoint.port), within, told=told)

        monkeypatch.setattr(peer_way, "resolve", look_up)
        async with Answering(peer_trust(authority, "b").settings) as b:
            used = manner(authority)
            ways = [Way("b", Endpoint(f"b{number}.example", b.endpoint.port), used) for number in range(6)]
            opening = [asyncio.create_task(way.open()) for way in ways]
            await until(lambda: asked >= 4, "lookups")
            await asyncio.sleep(0)
            assert asked == 4
            short = Manner(HELLO, used.trust, 30.0, SHORT, used.lookups)
            with pytest.raises(Unreachable, match=r"cannot resolve b7\.example: no turn within 0\.2 s"):
                await Way("b", Endpoint("b7.example", 7), short).open()
            by_address = asyncio.create_task(Way("b", b.endpoint, used).open())
            await until(lambda: asked == 5, "one that needs no turn")
            opening.append(by_address)
            answer.set()
            for channel in await asyncio.gather(*opening):
                channel.close()

    run(body())
