"""The robot's data channels, against a server that is simulated, in a time that is too."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shadow import events
from shadow.client import standbys
from shadow.client.services import OnOutcome
from shadow.client.standbys import Standbys
from shadow.errors import PeerError, Refused, Unreachable
from shadow.server.switchboard import Switchboard
from shadow.wire.frames import Refusal, Start
from tests.support.log import Said
from tests.support.virtual_time import run

INTERVAL = 30.0  # of the keepalive
PATIENCE = 10.0  # that the server has with a handshake

Served = Callable[["Link", Start, OnOutcome], None]


class Link:
    """A data channel; ``server`` is told how it ends."""

    on_frame: Callable[[Any], None]
    on_lost: Callable[[Any], None]

    def __init__(self, server: "Server") -> None:
        self.server = server

    def hear(self, on_frame: Callable[[Any], None], on_lost: Callable[[Any], None]) -> None:
        self.on_frame, self.on_lost = on_frame, on_lost

    def close(self) -> None:
        self.server.hung_up(self)

    def retire(self, within: float) -> None:
        assert within > 0
        self.server.retired.append(self)
        self.server.hung_up(self)


class Server:
    """Pairs visitors with channels as the real one does, and knows how long a handshake takes."""

    def __init__(self, wanted: int = 2) -> None:
        self.loop = asyncio.get_running_loop()
        self.board: Switchboard[int, Any] = Switchboard()
        self.opened: list[float] = []
        self.retired: list[Link] = []
        self.served: list[tuple[int, float]] = []  # visitors, and when
        self.failed = 0
        self.connects = True
        self.cpu = asyncio.Lock()
        self.work, self.latency = 0.0, 0.05  # seconds of our CPU, and of the line, for a handshake
        self.robot = Standbys("011", wanted, self._open, self._started)

    async def _open(self) -> Any:
        self.opened.append(self.loop.time())
        try:
            async with asyncio.timeout(PATIENCE):
                await self._shake_hands()
        except TimeoutError:
            self.failed += 1
            raise PeerError("no handshake within 10 s") from None
        link: Any = Link(self)
        self.loop.call_soon(self.welcome, link)  # once it has its owner
        return link

    async def _shake_hands(self) -> None:
        await asyncio.sleep(self.latency)
        done = 0.0
        while done < self.work:  # all that are under way take turns
            async with self.cpu:
                await asyncio.sleep(0.02)
            done += 0.02

    def welcome(self, link: Any) -> None:
        visitor, dials = self.board.channel_came(link)
        self.dial(dials)
        if visitor is not None:
            self.start(visitor, link)

    def visit(self, visitor: int) -> None:
        link, dials = self.board.visitor_came(visitor)
        self.dial(dials)
        if link is not None:
            self.start(visitor, link)

    def dial(self, count: int) -> None:
        if count:
            self.robot.dial(count)

    def start(self, visitor: int, link: Any) -> None:
        self.loop.call_soon(link.on_frame, Start("", str(visitor)))

    def _started(self, _link: Any, start: Start, outcome: OnOutcome) -> None:
        if self.connects:
            self.served.append((int(start.stream), self.loop.time()))
        self.loop.call_soon(outcome, self.connects)

    def hung_up(self, link: Any) -> None:
        self.board.channel_left(link)

    @property
    def standing_by(self) -> int:
        return len(self.board.standbys)

    async def settle(self, seconds: float = 1.0) -> None:
        await asyncio.sleep(seconds)


def play(body: Callable[[Server], Awaitable[None]], wanted: int = 2) -> None:
    async def live() -> None:
        server = Server(wanted)
        try:
            await body(server)
        finally:
            server.robot.close()
            await asyncio.sleep(0)

    run(live())


# A handful at once.


async def seventy_at_once(server: Server) -> float:
    """Seconds until the last of them was served."""
    server.robot.begin(INTERVAL)
    await server.settle(PATIENCE)
    began = server.loop.time()
    for visitor in range(70):
        server.visit(visitor)
    while len(server.served) < 70:
        await asyncio.sleep(0.1)
        assert server.loop.time() - began < 300, f"{len(server.served)} served, {server.failed} given up"
    assert sorted(visitor for visitor, _when in server.served) == list(range(70))
    return server.loop.time() - began


def test_a_slow_machine_is_slow_and_not_dead() -> None:
    """Seventy handshakes take it fourteen seconds: begun at once, they would all end too late."""

    async def body(server: Server) -> None:
        server.work = 0.2
        assert await seventy_at_once(server) < 1.5 * 70 * 0.2
        assert server.failed == 0
        first = min(when for _visitor, when in server.served[2:])
        last = max(when for _visitor, when in server.served)
        assert first < last - 7, "the first ones need not wait for the last ones"

    play(body)


def test_a_long_line_costs_nothing_but_its_length() -> None:
    """By satellite, a handshake takes two and a half seconds, and as many as you like take no longer."""

    async def body(server: Server) -> None:
        server.latency = 2.4
        assert await seventy_at_once(server) < PATIENCE
        assert server.failed == 0

    play(body)


def test_a_fast_machine() -> None:
    async def body(server: Server) -> None:
        server.work, server.latency = 0.0, 0.02
        assert await seventy_at_once(server) < 1

    play(body)


def test_as_many_as_the_server_wants_and_no_more_than_that() -> None:
    async def body(server: Server) -> None:
        server.robot.begin(INTERVAL)
        await server.settle()
        server.robot.dial(2**53)  # a server that has gone mad
        await server.settle()
        assert server.standing_by <= standbys.CHANNELS_MAX
        assert len(server.opened) < 80
        await server.settle(10)
        server.robot.dial(2**53)
        await server.settle(60)
        assert len(server.opened) <= 2 + 64 + 4 * 72

    play(body)


# No more than wanted, for long.


def test_what_was_dialled_for_visitors_who_have_left_is_given_up() -> None:
    async def body(server: Server) -> None:
        server.robot.begin(INTERVAL)
        await server.settle()
        for visitor in range(40):
            server.visit(visitor)
        server.board.visitors.clear()  # and they leave
        await server.settle(2.0)
        assert server.standing_by > 30
        oldest = list(server.board.standbys)[:2]
        await server.settle(INTERVAL)
        # Those that the server would take next are not the ones that go: START is not to cross the farewell.
        assert list(server.board.standbys) == oldest
        opened = len(server.opened)
        await server.settle(10 * INTERVAL)
        assert (server.standing_by, len(server.opened)) == (2, opened)

    play(body)


def test_what_is_in_use_stays() -> None:
    """Forty visitors each ten seconds: that many channels are needed, and kept."""

    async def body(server: Server) -> None:
        server.robot.begin(INTERVAL)
        for _round in range(12):
            for visitor in range(40):
                server.visit(visitor)
            for _ in range(40):
                server.robot.dial(1)  # so that there is a surplus of channels
            await server.settle(10.0)
        assert server.standing_by >= 40
        assert not server.retired or len(server.retired) < 40
        await server.settle(INTERVAL)
        assert server.standing_by == 2

    play(body)


def test_none_is_wanted() -> None:
    async def body(server: Server) -> None:
        server.robot.begin(INTERVAL)
        server.visit(1)
        await server.settle()
        assert [visitor for visitor, _when in server.served] == [1]
        server.robot.dial(5)
        await server.settle()
        assert server.standing_by == 5
        await server.settle(INTERVAL)
        assert server.standing_by == 0

    play(body, wanted=0)


# What brings nothing.


def test_many_visitors_are_served_as_fast_as_they_come() -> None:
    async def body(server: Server) -> None:
        server.robot.begin(INTERVAL)
        await server.settle()
        for visitor in range(1000):
            server.visit(visitor)
            await asyncio.sleep(0.01)
        await server.settle()
        assert len(server.served) == 1000

    play(body)


def test_a_server_whose_visitors_cannot_be_connected_has_us_dial_slowly() -> None:
    async def body(server: Server) -> None:
        server.connects = False
        server.welcome = lambda link: server.start(1, link)  # type: ignore[method-assign]
        server.robot.begin(INTERVAL)
        await server.settle(60)
        assert len(server.opened) < 40
        # And a visitor who can be connected finds everything as it was.
        server.connects = True
        await server.settle(60)
        server.welcome = lambda link: Server.welcome(server, link)  # type: ignore[method-assign]
        await server.settle(1)
        assert server.standing_by == 2

    play(body)


@pytest.mark.parametrize("how", ["hangs up", "refuses"])
def test_a_server_that_gives_channels_up_at_once(how: str) -> None:
    def welcome(link: Any) -> None:
        if how == "hangs up":
            asyncio.get_running_loop().call_soon(link.on_lost, None)
        else:
            asyncio.get_running_loop().call_soon(link.on_frame, Refusal("limit", "no room", 0.0))

    async def body(server: Server) -> None:
        server.welcome = welcome  # type: ignore[method-assign]
        server.robot.begin(INTERVAL)
        await server.settle(60)
        assert 4 < len(server.opened) < 40

    play(body)


def test_a_server_that_wants_no_standbys_for_a_while_is_left_alone() -> None:
    async def body(server: Server) -> None:
        server.welcome = lambda link: link.on_frame(Refusal("limit", "", 100.0))  # type: ignore[method-assign]
        server.robot.begin(INTERVAL)
        await server.settle(99)
        assert len(server.opened) == 2
        await server.settle(60)
        assert len(server.opened) == 4

    play(body)


def test_one_too_many_is_given_up_without_a_word() -> None:
    async def body(server: Server) -> None:
        server.robot.begin(INTERVAL)
        server.robot.dial(5)
        await server.settle()
        assert server.standing_by == 7
        for link in list(server.board.standbys)[:5]:
            server.board.channel_left(link)
            link.on_frame(Refusal("surplus"))
        assert server.standing_by == 2
        server.visit(1)
        await server.settle(0.2)
        assert server.standing_by == 2, "the next one is opened at once"

    play(body)


def test_dialling_for_nothing_goes_at_a_walking_pace() -> None:
    """START that fails, and DIAL for more, as fast as we come."""

    def welcome(server: Server) -> Callable[[Any], None]:
        def start(link: Any) -> None:
            server.robot.dial(64)
            server.start(1, link)

        return start

    async def body(server: Server) -> None:
        server.connects = False
        server.welcome = welcome(server)  # type: ignore[method-assign, assignment]
        server.robot.begin(INTERVAL)
        server.robot.dial(64)
        await server.settle(60)
        assert len(server.opened) <= 2 + 64 + 4 * 61

    play(body)


def test_failures_are_said_and_counted(said: Said) -> None:
    async def body(server: Server) -> None:
        async def refuse() -> Any:
            server.opened.append(server.loop.time())
            raise Refused("limit", "full")

        server.robot._open_one = refuse
        server.robot.begin(INTERVAL)
        for _ in range(600):
            server.robot.dial(1)  # it would like us to
            await server.settle(0.1)
        assert len(server.opened) <= 66 + 4 * 61
        assert 10 <= len(said) <= 21
        assert said[0][1].startswith("cannot open a data channel: refused (limit): full; next try in ")
        assert "more before it were not logged)" in said[-1][1]

    play(body)


def test_a_bug_of_ours_is_not_repeated_as_fast_as_we_can(caplog: pytest.LogCaptureFixture) -> None:
    async def body(server: Server) -> None:
        async def fail() -> Any:
            server.opened.append(server.loop.time())
            raise RuntimeError("a bug")

        open_one, server.robot._open_one = server.robot._open_one, fail
        server.robot.begin(INTERVAL)
        for _ in range(600):
            server.robot.dial(1)  # that does not shorten the wait
            await server.settle(0.1)
        assert 4 < len(server.opened) < 40
        found = [record for record in caplog.records if record.exc_info]
        assert 2 < len(found) < len(server.opened)
        assert found[0].getMessage().endswith("a data channel cannot be opened (please report)")
        server.robot._open_one = open_one
        await server.settle(40)
        assert server.standing_by >= 2

    play(body)


def test_where_the_server_sends_us_is_said_once_and_not_knocked_at_on_demand(said: Said) -> None:
    """It may be anybody's door: DIAL does not shorten the waits, as it does at the server's own."""

    async def body(server: Server) -> None:
        async def nobody() -> Any:
            server.opened.append(server.loop.time())
            raise Unreachable("Connection refused")

        server.robot._elsewhere = "192.0.2.7:2222"
        open_one, server.robot._open_one = server.robot._open_one, nobody
        server.robot.begin(INTERVAL)
        for _ in range(600):
            server.robot.dial(1)
            await server.settle()
        ((event, text),) = said
        assert event is events.AddressFailed
        assert text == (
            "cannot open data channels at 192.0.2.7:2222, which the server advertises: Connection refused; "
            "no visitor reaches this robot until that works"
        )
        # At first a few at once, then two every quarter of a minute or so.
        assert 20 < len(server.opened) < 200
        # When it works again, that is noticed within half a minute, without any visitor.
        server.robot._open_one = open_one
        await server.settle(40)
        assert server.standing_by >= 2
        server.robot._open_one = nobody
        server.robot.dial(20)
        await server.settle(60)
        assert len(said) == 2, "it failed anew"

    play(body)


@pytest.mark.parametrize("elsewhere", ["", "192.0.2.7:2222"])
def test_our_own_server_may_hurry_us(elsewhere: str) -> None:
    """A refusal comes from somebody who has proved to be our server, wherever that is."""

    async def body(server: Server) -> None:
        async def refuse() -> Any:
            raise Refused("limit", "full", 100.0)

        server.robot._elsewhere = elsewhere
        open_one, server.robot._open_one = server.robot._open_one, refuse
        server.robot.begin(INTERVAL)
        await server.settle()
        server.robot._open_one = open_one
        server.visit(1)
        await server.settle()
        assert [visitor for visitor, _when in server.served] == [1]

    play(body)


def test_after_failures_a_visitor_has_a_channel_dialled_for_at_once() -> None:
    async def body(server: Server) -> None:
        server.latency = 100.0
        server.robot.begin(INTERVAL)
        await server.settle(200)
        assert server.failed > 2
        server.latency = 0.05
        server.visit(1)
        await server.settle(0.2)  # and not behind those that hang
        assert [visitor for visitor, _when in server.served] == [1]

    play(body)


def test_a_visitor_whose_dial_failed_is_not_forgotten() -> None:
    async def body(server: Server) -> None:
        server.robot.begin(INTERVAL)
        server.latency = 100.0
        server.visit(1)
        await server.settle(1.0)
        server.latency = 0.05
        await server.settle(PATIENCE)
        assert [visitor for visitor, _when in server.served] == [1]

    play(body, wanted=0)


def test_visitors_come_first_when_a_whole_fleet_is_at_the_door() -> None:
    async def body(server: Server) -> None:
        server.visit(1)  # right behind WELCOME
        await server.settle()
        assert [visitor for visitor, _when in server.served] == [1]
        server.robot.begin(INTERVAL, 20.0)
        await server.settle(19.0)
        assert len(server.opened) == 1
        server.visit(2)
        await server.settle(0.5)
        assert [visitor for visitor, _when in server.served] == [1, 2]
        await server.settle()
        assert server.standing_by == 2

    play(body)


def test_they_show_themselves() -> None:
    async def body(server: Server) -> None:
        server.latency = 5.0
        server.robot.begin(INTERVAL)
        server.robot.dial(1)
        assert repr(server.robot) == "<Standbys 0 of 2 wanted, 3 opening, 1 asked for, 0 being connected>"
        await server.settle(6)
        assert repr(server.robot) == "<Standbys 3 of 2 wanted, 0 opening, 0 asked for, 0 being connected>"
        server.robot._on_start = lambda *_anything: None
        server.visit(1)
        await server.settle(0.1)
        assert repr(server.robot) == "<Standbys 2 of 2 wanted, 0 opening, 0 asked for, 1 being connected>"
        server.robot.close()
        assert repr(server.robot).endswith(" 1 being connected, closed>")

    play(body)


# The end.


def test_nothing_is_opened_after_the_end() -> None:
    async def body(server: Server) -> None:
        server.robot.begin(INTERVAL, 5.0)
        await server.settle(4.9)
        assert server.opened == []
        await server.settle(0.5)
        assert server.standing_by == 2
        kept = server.robot.take()
        assert deque(kept) == server.board.standbys
        opened = len(server.opened)
        server.robot.dial(3)
        await server.settle(100)
        assert len(server.opened) == opened
        late: Any = Link(server)
        server.board.standbys.append(late)
        server.robot.add(late)  # welcomed in the moment of the end
        assert late not in server.board.standbys

    play(body)


def test_what_is_opened_while_the_session_ends_is_given_up() -> None:
    async def body(server: Server) -> None:
        server.latency = 5.0
        server.robot.begin(INTERVAL)
        await server.settle()
        server.robot.close()
        await server.settle(10)
        assert server.standing_by == 0

    play(body)
