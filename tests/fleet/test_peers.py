"""Channels to the other servers, over real TLS: they stand by, are lent, come back, and end."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shadow import events
from shadow.errors import Unreachable
from shadow.fleet import peers as module
from shadow.fleet.peer_trust import PeerTrust
from shadow.fleet.peer_way import Way
from shadow.fleet.peers import Peers
from shadow.pki.certificates import Files
from shadow.transport.channel import Channel
from shadow.transport.context import Ktls
from shadow.transport.link import Link
from shadow.wire.conversation import PEER, State
from shadow.wire.frames import Frame, Hello, Here, Refusal, Visit, Welcome, Who
from shadow.wire.timing import Backoff
from tests.support import DEADLINE, Authority
from tests.support.answering import Answering, peer_trust
from tests.support.fleet import until
from tests.support.log import Said

HELLO = Hello(1, PEER, "a", fleet="robots")
FULL = Refusal("limit", "full")
LONG = 1000.0  # seconds


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it takes until the next attempt."""
    found = [LONG]
    monkeypatch.setattr(Backoff, "wait", lambda _backoff, _at_least=0.0: found[0])
    return found


def run(body: Callable[[Peers, Answering], Coroutine[Any, Any, None]], authority: Authority) -> None:
    """With the peers of server a, and server b."""

    async def within() -> None:
        async with asyncio.timeout(DEADLINE), meeting(authority) as (peers, b):
            await body(peers, b)

    asyncio.run(within())


class Borrowing(Peers):
    """It ends what a test has not."""

    async def take(self, server: str) -> Channel:
        channel = await super().take(server)
        self.__dict__.setdefault("lent", []).append(channel)
        return channel

    async def close(self) -> None:
        await super().close()
        for channel in self.__dict__.pop("lent", []):
            channel.close()


@asynccontextmanager
async def meeting(
    authority: Authority, trust: PeerTrust | None = None
) -> AsyncIterator[tuple[Peers, Answering]]:
    async with Answering(peer_trust(authority, "b").settings) as b:
        peers = Borrowing(HELLO, trust or peer_trust(authority, "a"), 30.0, DEADLINE)
        try:
            yield peers, b
        finally:
            await peers.close()
            assert keepers() == 0


def keepers() -> int:
    """How many tasks keep channels standing by."""
    coroutines = [task.get_coro() for task in asyncio.all_tasks()]
    return sum(getattr(each, "__qualname__", "") == "_Peer._keep" for each in coroutines)


async def standing_by(peers: Peers, b: Answering) -> None:
    """Wait until all that should are there, on both sides."""
    await until(lambda: "2 standing by" in "".join(peers.describe()), "channels that stand by")
    await until(lambda: len(b.channels) >= 2, "the other ends")


async def turns() -> None:
    """Let everybody do what there is to do now."""
    for _ in range(20):
        await asyncio.sleep(0)


async def ask(channel: Channel) -> Frame:
    """Ask whether a robot is there."""
    answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
    channel.hear(answer.set_result, lambda error: answer.set_exception(error or Unreachable("it ended")))
    channel.send(Who("011"))
    return await answer


def test_two_stand_by_at_each_and_cost_one_task(authority: Authority) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        async with Answering(peer_trust(authority, "c").settings) as c:
            peers.meet("c", c.endpoint)
            peers.meet("b", b.endpoint)
            for each in (b, c):
                await standing_by(peers, each)
                assert each.hellos == [HELLO] * 2
            assert peers.names == ["b", "c"]
            await turns()
            assert keepers() == 2
            assert (b.accepted, c.accepted) == (2, 2), "and no more"

    run(body, authority)


def test_one_that_stands_by_is_lent_at_once_and_replaced(authority: Authority) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("b", b.endpoint)
        await standing_by(peers, b)
        await b.be_deaf()  # nobody can dial now
        first, second = await peers.take("b"), await peers.take("b")
        assert await ask(first) == await ask(second) == Here()
        b.hear()
        await until(lambda: len(b.channels) == 4, "two others")

    run(body, authority)


def test_what_comes_before_its_taker_listens_is_not_lost(authority: Authority) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("b", b.endpoint)
        await standing_by(peers, b)
        channel = await peers.take("b")
        b.say(Refusal("stopping"))
        await turns()
        heard: list[Frame] = []
        channel.hear(heard.append, lambda _error: None)
        await until(lambda: heard, "the refusal")
        assert heard == [Refusal("stopping")]

    run(body, authority)


def test_one_that_is_given_back_stands_by_again(authority: Authority) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("b", b.endpoint)
        await standing_by(peers, b)
        await b.be_deaf()
        lent = [await peers.take("b"), await peers.take("b")]
        for channel in lent:
            await ask(channel)
            peers.give_back("b", channel)
        again = [await peers.take("b"), await peers.take("b")]
        assert set(again) == set(lent)
        assert await ask(again[0]) == Here()

    run(body, authority)


def test_one_too_many_and_one_without_an_answer_end(authority: Authority) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("b", b.endpoint)
        await standing_by(peers, b)
        surplus, unanswered = await peers.take("b"), await peers.take("b")
        await until(lambda: len(b.channels) == 4, "two others")
        await standing_by(peers, b)
        peers.give_back("b", surplus)
        assert not surplus.live
        await peers.take("b")  # there is room for one
        unanswered.hear(lambda _frame: None, lambda _error: None)
        b.answers = None
        unanswered.send(Visit("011", "", "1", "5e55", 0, 0, "", 0))
        peers.give_back("b", unanswered)
        assert not unanswered.live
        await until(lambda: b.lost == [None, None], "their orderly ends")

    run(body, authority)


def test_those_that_are_lost_are_replaced(authority: Authority) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("b", b.endpoint)
        await standing_by(peers, b)
        b.hang_up()
        await until(lambda: len(b.channels) == 2, "two others")

    run(body, authority)


def test_those_that_are_refused_later_end_and_are_replaced(authority: Authority) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("b", b.endpoint)
        await standing_by(peers, b)
        b.say(Refusal("stopping"))
        await until(lambda: b.lost == [None, None], "their orderly ends")
        await until(lambda: len(b.channels) == 2, "two others")

    run(body, authority)


def test_one_that_has_just_ended_is_not_lent(authority: Authority) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("b", b.endpoint)
        await standing_by(peers, b)
        b.hang_up()  # nobody here has looked yet
        assert await ask(await peers.take("b")) == Here()

    run(body, authority)


def revoking(authority: Authority, why: list[str]) -> PeerTrust:
    """Everybody is revoked when it is said why."""

    def revocation(_link: Link) -> str | None:
        return why[0] if why else None

    return PeerTrust(Files(authority.ca, *authority.peer("a")), "a", Ktls.AUTO, revocation)


def test_those_of_a_server_that_is_revoked_end_at_once(authority: Authority) -> None:
    """Nobody need want one; those that are good stay."""

    async def body() -> None:
        why: list[str] = []
        trust = revoking(authority, why)
        async with asyncio.timeout(DEADLINE), meeting(authority, trust) as (peers, b):
            peers.meet("b", b.endpoint)
            await standing_by(peers, b)
            peers.cut_off_revoked()
            await standing_by(peers, b)
            assert b.accepted == 2
            why.append("certificate 0c was revoked")
            peers.cut_off_revoked()
            assert "0 standing by" in "".join(peers.describe())
            await until(lambda: not b.channels, "the end of all")

    asyncio.run(body())


def test_one_of_a_server_that_was_revoked_meanwhile_is_not_lent(authority: Authority) -> None:
    async def body() -> None:
        why: list[str] = []
        trust = revoking(authority, why)
        async with asyncio.timeout(DEADLINE), meeting(authority, trust) as (peers, b):
            peers.meet("b", b.endpoint)
            await standing_by(peers, b)
            why.append("certificate 0c was revoked")
            with pytest.raises(Unreachable, match=r"server b .* is out of reach: certificate 0c was revoked"):
                await peers.take("b")
            await until(lambda: not b.channels, "the end of all")

    asyncio.run(body())


@pytest.mark.usefixtures("waits")
def test_a_server_that_hangs_up_on_all_is_not_dialled_in_a_loop(authority: Authority) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("b", b.endpoint)
        await standing_by(peers, b)
        b.hang_up()
        await until(lambda: "0 standing by" in "".join(peers.describe()), "the loss")
        await turns()
        assert b.accepted == 2
        assert await ask(await peers.take("b")) == Here(), "who needs one does not wait for that"

    run(body, authority)


def test_a_server_may_say_how_long_to_stay_away(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def wait(_backoff: Backoff, at_least: float = 0.0) -> float:
        asked.append(at_least)
        return LONG

    monkeypatch.setattr(Backoff, "wait", wait)

    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("b", b.endpoint)
        await standing_by(peers, b)
        b.say(Refusal("stopping", "", 7.0))
        await until(lambda: 7.0 in asked, "the wait")

    async def refused(peers: Peers, b: Answering) -> None:
        b.answer = Refusal("limit", "full", 9.0)
        peers.meet("b", b.endpoint)
        await until(lambda: 9.0 in asked, "the wait")

    run(body, authority)
    run(refused, authority)


def test_waits_are_short_again_after_a_good_time(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often its channels were lent and replaced in that time."""
    lived: list[float] = []
    monkeypatch.setattr(Backoff, "lived", lambda _backoff, seconds: lived.append(seconds))

    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("b", b.endpoint)
        await standing_by(peers, b)
        clock = asyncio.get_running_loop().time
        began = clock()
        await asyncio.sleep(0.1)  # some of that good time
        await peers.take("b")
        await standing_by(peers, b)
        peers.give_back("b", await peers.take("b"))
        took = clock() - began
        b.hang_up()
        await until(lambda: lived, "the loss")
        assert lived[0] >= took

    run(body, authority)


@pytest.mark.usefixtures("waits")
def test_a_server_that_goes_is_left_alone(authority: Authority) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("b", b.endpoint)
        await standing_by(peers, b)
        lent = await peers.take("b")
        await standing_by(peers, b)
        peers.meet("b", None)
        assert peers.names == []
        await until(lambda: not keepers(), "the end of its task")
        await until(lambda: b.lost == [None, None], "the end of those that stood by")
        assert await ask(lent) == Here(), "the one that is lent is its taker's"
        peers.give_back("b", lent)
        assert not lent.live
        with pytest.raises(Unreachable, match="server b is not one of the fleet"):
            await peers.take("b")
        assert b.accepted == 3

    run(body, authority)


def test_one_that_never_answered_is_forgotten_too(authority: Authority, waits: list[float]) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        waits[:] = [0.0]
        b.answer = FULL
        peers.meet("b", b.endpoint)
        await until(lambda: b.accepted > 3, "attempts")
        peers.meet("b", None)
        await until(lambda: not keepers(), "the end of its task")

    run(body, authority)


def test_whoever_waits_for_a_server_that_goes_is_turned_away(authority: Authority) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        await b.be_deaf()
        peers.meet("b", b.endpoint)
        taking = asyncio.create_task(peers.take("b"))
        await until(lambda: "1 waited for" in "".join(peers.describe()), "one who waits")
        peers.meet("b", None)
        with pytest.raises(Unreachable, match=r"server b \(127.* has gone"):
            await taking

    run(body, authority)


def test_a_server_that_moves_is_dialled_there(authority: Authority) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("b", b.endpoint)
        await standing_by(peers, b)
        lent = await peers.take("b")
        await standing_by(peers, b)
        async with Answering(peer_trust(authority, "b").settings) as there:
            peers.meet("b", there.endpoint)
            await standing_by(peers, there)
            assert await ask(lent) == Here()
            peers.give_back("b", lent)
            await until(lambda: b.lost == [None] * 3, "the end of the old ones")
            peers.meet("b", there.endpoint)
            await turns()
            assert there.accepted == 2, "what is known is no news"

    run(body, authority)


def test_we_do_not_dial_ourselves(authority: Authority) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("a", b.endpoint)
        assert peers.names == []
        assert keepers() == 0

    run(body, authority)


def test_an_outage_is_one_line_and_its_end_another(
    authority: Authority, said: Said, waits: list[float]
) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        waits[:] = [0.0]
        for times in (1, 2):
            b.answer = FULL
            b.hang_up()
            peers.meet("b", b.endpoint)
            before = b.accepted
            await until(lambda: b.accepted > before + 3, "some attempts")  # noqa: B023
            b.answer = Welcome(1)
            await standing_by(peers, b)
            assert [kind for kind, _text in said] == [events.PeerLost, events.PeerFound] * times
        where = f"server b ({b.endpoint}) is"
        assert said[0][1] == (
            f"{where} out of reach: refused (limit): full; its robots cannot be visited from here meanwhile"
        )
        assert re.fullmatch(rf"{re.escape(where)} within reach again, after \d+\.\d s", said[1][1])

    run(body, authority)


@pytest.mark.usefixtures("waits")
def test_whoever_gets_through_meanwhile_ends_the_wait(authority: Authority, said: Said) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        b.answer = FULL
        peers.meet("b", b.endpoint)
        await until(lambda: said, "the outage")
        assert re.search(r"out of reach for \d+ s: refused \(limit\): full", "".join(peers.describe()))
        with pytest.raises(Unreachable, match=r"server b .* is out of reach: refused \(limit\): full"):
            await peers.take("b")
        await turns()
        assert b.accepted == 2
        b.answer = Welcome(1)
        await peers.take("b")
        await standing_by(peers, b)
        assert [kind for kind, _text in said] == [events.PeerLost, events.PeerFound]

    run(body, authority)


def test_the_error_of_one_is_nobody_elses(authority: Authority, said: Said) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("b", b.endpoint)
        await standing_by(peers, b)
        lent = [await peers.take("b"), await peers.take("b")]
        await standing_by(peers, b)
        lent += [await peers.take("b"), await peers.take("b")]
        b.answer = FULL
        with pytest.raises(Unreachable, match="full"):
            await peers.take("b")
        assert await ask(lent[0]) == Here()

    run(body, authority)
    assert [text for kind, text in said if kind is not events.PeerLost] == []


def test_a_bug_in_dialling_is_reported_and_outlived(
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    waits: list[float],
) -> None:
    really = Way.open
    bugs = 3

    async def open_badly(way: Way) -> Channel:
        nonlocal bugs
        if bugs:
            bugs -= 1
            raise ValueError("a bug")
        return await really(way)

    async def body(peers: Peers, b: Answering) -> None:
        waits[:] = [0.0]
        monkeypatch.setattr(Way, "open", open_badly)
        peers.meet("b", b.endpoint)
        await standing_by(peers, b)

    with caplog.at_level(logging.INFO):
        run(body, authority)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "INFO"]
    assert caplog.records[0].exc_info


def test_no_more_than_64_are_lent(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module.LENT_MAX == 64
    monkeypatch.setattr(module, "LENT_MAX", 3)

    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("b", b.endpoint)
        await standing_by(peers, b)
        lent = [await peers.take("b") for _ in range(3)]
        await standing_by(peers, b)
        most = b.accepted
        waiting = [asyncio.create_task(peers.take("b")) for _ in range(4)]
        await until(lambda: "3 lent, 4 waited for" in "".join(peers.describe()), "those who wait")
        await turns()
        assert b.accepted == most
        waiting.pop(0).cancel()  # its visitor has left
        peers.give_back("b", lent[0])  # it stood by all the time
        link = lent[1].release()  # a stream's from now on
        peers.give_back("b", lent[1])
        lent[2].abort()
        peers.give_back("b", lent[2])
        for channel in await asyncio.gather(*waiting):
            assert await ask(channel) == Here()
        with pytest.raises(BlockingIOError):  # nobody has closed it
            link.read(1)
        link.sock.close()

    run(body, authority)


def test_nobody_waits_for_ever_for_one_that_others_have(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LENT_MAX", 1)

    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("b", b.endpoint)
        async with peers.lend("b", DEADLINE) as channel:
            assert await ask(channel) == Here()
            with pytest.raises(Unreachable, match="no channel to server b within"):
                async with peers.lend("b", 0.05):
                    raise AssertionError
        async with peers.lend("b", DEADLINE) as channel:  # it was given back
            assert await ask(channel) == Here()

    run(body, authority)


def test_whoever_fails_or_leaves_makes_room(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LENT_MAX", 1)

    async def body(peers: Peers, b: Answering) -> None:
        b.answer = FULL
        peers.meet("b", b.endpoint)
        for _ in range(3):
            with pytest.raises(Unreachable):
                await peers.take("b")
        b.answer = None
        before = len(b.hellos)
        leaving = asyncio.create_task(peers.take("b"))
        await until(lambda: len(b.hellos) > before, "its dial")
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        b.answer = Welcome(1)
        channel = await peers.take("b")
        assert channel.conversation.state is State.STANDBY

    run(body, authority)


def test_at_the_end_nothing_is_left(authority: Authority) -> None:
    async def body(peers: Peers, b: Answering) -> None:
        peers.meet("b", b.endpoint)
        await standing_by(peers, b)
        await peers.close()
        assert keepers() == 0
        await until(lambda: b.lost == [None, None], "their ends")
        assert list(peers.describe()) == ["peers: 0 other servers"]

    run(body, authority)
