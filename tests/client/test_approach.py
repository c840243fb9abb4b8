"""From the server's name to WELCOME: an address is good when it has led there, and not before."""

import asyncio
import contextlib
import errno
import math
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shadow import events
from shadow.client import approach
from shadow.client.approach import Approach, Call, Door
from shadow.client.attempts import Boot
from shadow.errors import IdentityError, PeerError, Refused, ShadowError, Unreachable
from shadow.net.address import Endpoint, Target
from shadow.pki.certificates import Purpose
from shadow.transport.context import Ktls, Settings
from shadow.wire.conversation import CONTROL, DATA
from shadow.wire.frames import Hello
from tests.support import (
    CHECKOUT,
    Authority,
    Service,
    Tunnel,
    echo,
    exchange,
    serving,
    wait_for,
)
from tests.support.log import Said
from tests.support.peer import server_context

SERVER = Endpoint("server.example", 4242)
OTHER = Endpoint("other.example", 4242)
ONE, TWO, THREE, FOUR = (Target(socket.AF_INET, (f"192.0.2.{number}", 4242)) for number in range(1, 5))


def as_they_come(_list: list[Any]) -> None:
    """Chance that changes nothing."""


def unnamed(target: Target) -> Target:
    """The address alone."""
    return replace(target, name="")


class World:
    """A name server, and what answers at the addresses it gives.

    Attributes:
        servers: see ``Approach``.
        others: what it knows of servers other than the first; without an entry, such a name does not exist.
        wanted: who had to be at each address where there was a handshake.
        sessions: whether the addresses that lead to a server are preferred from then on.
        shuffle: see ``Approach``.
    """

    shuffle: Callable[[list[Any]], None] = staticmethod(as_they_come)
    code = "limit"  # of refusals

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **at: str) -> None:
        self.now = 1000.0
        self.at = {
            {"one": ONE, "two": TWO, "three": THREE, "four": FOUR}[name]: who for name, who in at.items()
        }
        self.found = list(self.at)
        self.tried: list[tuple[Target, float]] = []
        self.welcomed: list[Target] = []
        self.took: list[float] = []
        self.attempts: list[tuple[str, int]] = []
        self.asked = 0
        self.lookups: list[float] = []  # how long each would have waited
        self.reaches: list[float] = []
        self.servers: dict[Endpoint, str] = {SERVER: ""}
        self.others: dict[Endpoint, list[Target]] = {}
        self.wanted: list[tuple[str, ...]] = []
        self.sessions = False  # each control channel that is welcomed becomes a session
        for name in ("resolve", "dial", "greet"):
            monkeypatch.setattr(approach, name, getattr(self, f"_{name}"))
        monkeypatch.setattr("shadow.transport.handshake.watch_for_death", lambda _sock, _interval: None)
        monkeypatch.setattr("shadow.transport.handshake.handshake", self._handshake)
        monkeypatch.setattr("asyncio.timeout", self._timeout)
        self._within = 0.0

    async def _resolve(self, server: Endpoint, within: float, *, told: bool) -> list[Target]:
        assert not told
        if server != SERVER:
            if server not in self.others:
                raise Unreachable(f"cannot resolve {server.host}: there is none")
            return list(self.others[server])
        self.asked += 1
        self.lookups.append(within)
        if not self.found:
            raise Unreachable("cannot resolve server.example: no answer")
        return list(self.found)

    async def _dial(self, targets: list[Target], within: float, failed: Callable[..., None]) -> Any:
        self.reaches.append(within)
        for target in targets:
            who = self.at[unnamed(target)]
            if who not in {"nobody", "we have no descriptors"}:
                sock: Any = SimpleNamespace(target=target, close=lambda: None)
                return sock, target
            failed(target, OSError(errno.ECONNREFUSED if who == "nobody" else errno.EMFILE, who))
        raise Unreachable("cannot connect")

    @contextlib.asynccontextmanager
    async def _timeout(self, within: float) -> Any:
        self._within = within
        yield

    async def _handshake(self, sock: Any, settings: Settings) -> Any:
        self.tried.append((sock.target, self._within))
        self.wanted.append(settings.server_names)
        who = self.at[unnamed(sock.target)]
        if who == "silent":
            self.now += self._within
            raise TimeoutError
        self.now += 0.5
        if who == "hangs up":
            raise ConnectionResetError(errno.ECONNRESET, "reset")
        if who == "stranger":
            raise IdentityError("the server's certificate is for others")
        return sock

    async def _greet(self, link: Any, hello: Hello, within: float) -> tuple[Any, Any]:
        assert within == self._within
        self.attempts.append((hello.boot, hello.attempt))
        who = self.at[unnamed(link.target)]
        if who == "mute":
            raise PeerError("no WELCOME")
        if who == "full":
            raise Refused(self.code, "full")
        return link, None

    def run(self, *calls: Target | None, reach: float = math.inf) -> list[ShadowError | None]:
        """Make these calls one after the other; what they raised."""

        async def run() -> list[ShadowError | None]:
            way = Approach(self.servers, 12.0, shuffle=self.shuffle)
            way._loop = SimpleNamespace(time=lambda: self.now)  # type: ignore[assignment]
            self.way = way
            context: Any = None
            settings = Settings(context, Purpose.ROBOT, Ktls.OFF, ("a.example", "b.example"))
            hello = Hello(1, CONTROL, "011")
            call = Call(settings, hello, 9.0, reach, Boot("b007"))
            raised: list[ShadowError | None] = []
            for known in calls:
                try:
                    arrival = await way.call(call, known)
                    self.welcomed.append(arrival.target)
                    self.took.append(arrival.took)
                    raised.append(None)
                    if self.sessions and known is None:
                        way.prefer(arrival.target)
                except ShadowError as error:
                    raised.append(error)
                self.between()
            return raised

        return asyncio.run(run())

    def between(self) -> None:
        """Between two calls."""

    def do_between(self, *steps: Callable[[], object]) -> None:
        """One of these after each call, as long as there are any."""
        rest = iter(steps)

        def between() -> None:
            next(rest, lambda: None)()

        self.between = between  # type: ignore[method-assign]


@pytest.mark.parametrize("who", ["silent", "hangs up", "stranger", "mute"])
def test_what_does_not_lead_to_the_server_gives_way(
    monkeypatch: pytest.MonkeyPatch, said: Said, who: str
) -> None:
    world = World(monkeypatch, one=who, two="server")
    assert world.run(None, None) == [None, None]
    assert world.welcomed == [TWO, TWO]
    assert world.took == [0.5, 0.5], "the server is not slow because another address was"
    # The other one has its turn, and the last one has all the time. Next time the good one is the first.
    assert world.tried == [(ONE, 6.0), (TWO, 12.0), (TWO, 6.0)]
    assert [event for event, _text in said] == [events.AddressFailed]
    assert said[0][1].startswith("192.0.2.1:4242 does not lead to server.example:4242: ")


def test_each_hello_is_another_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is at the first address may be a server that is slow, not deaf."""
    world = World(monkeypatch, one="mute", two="server")
    assert world.run(None, None) == [None, None]
    assert world.attempts == [("b007", 1), ("b007", 2), ("b007", 3)]


def test_a_failure_is_forgotten_some_day(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, one="mute", two="server")
    world.between = lambda: setattr(world, "now", world.now + 601)  # type: ignore[method-assign]
    world.run(None)
    world.at[ONE] = "server"
    world.run(None, None)
    assert world.welcomed == [TWO, ONE, ONE]


def test_whatever_fails_goes_to_the_end_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, one="mute", two="silent", three="nobody", four="stranger")
    one, two = world.run(None, None)
    assert [target for target, _within in world.tried] == [ONE, TWO, FOUR] * 2
    assert [within for _target, within in world.tried][:3] == [3.0, 4.0, 12.0]
    # Of many reasons the first that somebody gave, and not that of whom we could not even reach.
    assert str(one) == str(two) == "no WELCOME"


def test_nobody_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, one="nobody", two="nobody")
    (error,) = world.run(None)
    assert isinstance(error, Unreachable)
    world.found = []
    (error,) = world.run(None)
    assert "cannot resolve" in str(error)


def test_who_is_in_a_hurry_tries_no_longer_to_reach_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, one="hangs up", two="well")
    world.run(None, reach=7.5)
    world.run(None)
    assert world.reaches == [7.5, 7.5, 12.0, 12.0]


def test_no_address_is_to_blame_for_our_own_need(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, one="we have no descriptors", two="we have no descriptors")

    def mend() -> None:
        world.at = {ONE: "server", TWO: "server"}

    world.between = mend  # type: ignore[method-assign]
    assert [type(error) for error in world.run(None, None)] == [Unreachable, type(None)]
    assert world.welcomed == [ONE]


def test_a_no_is_an_answer(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    """The next address is not asked at once: it may be the same server, which wants to be left alone."""
    world = World(monkeypatch, one="full", two="server")
    assert [type(error) for error in world.run(None, None)] == [Refused, type(None)]
    assert [target for target, _within in world.tried] == [ONE, TWO]
    assert said == []


def test_too_many_addresses_are_tried_in_several_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.found = [Target(socket.AF_INET, (f"192.0.2.{number}", 4242)) for number in range(1, 21)]
    world.at = dict.fromkeys(world.found, "mute")
    world.run(None, None, None)
    assert [target for target, _within in world.tried[:20]] == world.found
    assert min(within for _target, within in world.tried) == 3.0


def test_data_channels_go_where_the_session_is_while_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, one="server", two="server", three="server")
    assert world.run(TWO, TWO) == [None, None]
    assert (world.welcomed, world.asked) == ([TWO, TWO], 0)
    # The address has gone; the server has others, by now.
    world.at[TWO] = "nobody"
    world.found = [THREE]
    assert [type(error) for error in world.run(TWO, TWO)] == [Unreachable, type(None)]
    assert world.welcomed[2:] == [THREE]


def test_without_a_name_server_the_address_in_use_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, one="mute")
    world.found = []
    world.between = lambda: world.at.update({ONE: "server"})  # type: ignore[method-assign]
    assert [type(error) for error in world.run(ONE, ONE)] == [PeerError, type(None)]


def test_a_dead_name_server_does_not_hold_up_data_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or after a single failure the visitors would be turned away, each after the wait for a lookup."""
    world = World(monkeypatch, one="server", two="server")
    calls = 0

    def between() -> None:
        nonlocal calls
        calls += 1
        world.found = []
        world.at[ONE] = "silent" if calls == 1 else "server"
        world.at[TWO] = "nobody" if calls == 2 else "server"

    world.between = between  # type: ignore[method-assign]
    raised = world.run(None, ONE, ONE, None)
    assert [type(error) for error in raised] == [type(None), PeerError, type(None), Unreachable]
    assert world.lookups == [12.0, 1.2, 12.0], "only who has no address has all the time"
    assert world.welcomed == [ONE, ONE]


def test_without_a_name_server_the_other_addresses_remain_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, one="server", two="server")

    def between() -> None:
        world.found = []
        world.at[ONE] = "nobody"

    world.between = between  # type: ignore[method-assign]
    assert [type(error) for error in world.run(None, ONE, ONE)] == [type(None), Unreachable, type(None)]
    assert world.welcomed == [ONE, TWO]


def test_a_refused_data_channel_does_not_discredit_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, one="full", two="server")
    world.run(ONE, ONE)
    assert [target for target, _within in world.tried] == [ONE, ONE]


# Several servers.


def test_what_has_led_to_a_session_comes_first_until_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A robot that comes back, or renews its certificate, does not change its server for no reason."""
    world = World(monkeypatch, one="nobody", two="server", three="server")
    world.sessions = True

    def between() -> None:
        world.now += 700.0  # nobody remembers who failed
        world.at[ONE] = "server"
        if len(world.welcomed) == 2:
            world.at[TWO] = "mute"

    world.between = between  # type: ignore[method-assign]
    world.run(None, None, None, None)
    assert world.welcomed == [TWO, TWO, ONE, ONE]


def test_all_servers_are_tried_and_each_must_prove_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, one="stranger", two="hangs up", three="server")
    world.found = [ONE]
    world.servers = {SERVER: "a.example", OTHER: "b.example"}
    world.others[OTHER] = [TWO, THREE]
    assert world.run(None) == [None]
    assert world.wanted == [("a.example",), ("b.example",), ("b.example",)]
    assert world.welcomed == [replace(THREE, name="b.example")]


def test_one_address_of_two_servers(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    """It may have the certificate of either; if all have the same name, it is one address."""
    world = World(monkeypatch, one="stranger")
    world.servers = {SERVER: "a.example", OTHER: "b.example"}
    world.others[OTHER] = [ONE]
    world.run(None)
    assert world.wanted == [("a.example",), ("b.example",)]
    assert said[0][1].startswith(
        "192.0.2.1:4242 does not lead to server.example:4242 or other.example:4242: the server's certificate"
    )
    world.servers = {SERVER: "", OTHER: ""}
    world.wanted.clear()
    world.run(None)
    assert world.wanted == [("a.example", "b.example")], "as in the settings"


def test_a_server_that_sends_us_away_is_avoided_at_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, one="server", two="server", three="server", four="server")
    world.servers = {SERVER: "a", OTHER: "b"}
    world.found, world.others = [ONE, TWO], {OTHER: [THREE, FOUR]}
    world.between = lambda: world.way.avoid(world.welcomed[-1])  # type: ignore[method-assign]
    assert world.run(None, None, None, None) == [None] * 4
    # It is the last resort all the same: the address that was left last comes last.
    assert list(map(unnamed, world.welcomed)) == [ONE, THREE, TWO, FOUR]
    world.welcomed.clear()
    world.at[THREE] = world.at[FOUR] = "nobody"
    assert world.run(None, None) == [None, None]
    assert list(map(unnamed, world.welcomed)) == [ONE, TWO]


def test_of_one_name_only_the_address_is_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other addresses may be other servers."""
    world = World(monkeypatch, one="server", two="server", three="server")
    world.between = lambda: world.way.avoid(world.welcomed[-1])  # type: ignore[method-assign]
    assert world.run(None, None, None, None) == [None] * 4
    assert world.welcomed == [ONE, TWO, THREE, ONE]


def test_a_session_that_is_to_be_left_has_its_channels_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """If all servers have one name, any other one would only say that it does not know the session."""
    world = World(monkeypatch, one="server", two="full")
    world.code = "no-session"
    world.do_between(lambda: world.way.avoid(ONE))
    assert world.run(None, ONE) == [None, None]
    assert [target for target, _within in world.tried] == [ONE, ONE]


def test_nor_does_a_session_lose_them_that_could_not_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, one="server", two="full")
    world.code = "draining"

    def leave() -> None:
        world.way.avoid(ONE)
        world.at |= {ONE: "full", TWO: "nobody"}  # one wants no new session, the other is away for a moment

    world.do_between(leave, lambda: world.at.update({ONE: "server", TWO: "full"}))
    first, refused, channel = world.run(None, None, ONE)
    assert first is channel is None
    assert isinstance(refused, Refused)
    assert [target for target, _within in world.tried] == [ONE, ONE, ONE]


def test_one_that_is_to_be_left_may_fail_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, one="server", two="server")

    def leave() -> None:
        world.way.avoid(ONE)
        world.at[ONE] = "mute"

    world.do_between(leave)
    first, failed, other = world.run(None, ONE, ONE)
    assert first is other is None
    assert isinstance(failed, PeerError)
    assert world.welcomed == [ONE, TWO], "another address may lead to the same server"


def test_a_name_that_cannot_be_resolved_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, one="server")
    world.servers = {OTHER: "b.example", SERVER: "a.example"}
    assert world.run(None) == [None]
    world.found = []
    (error,) = world.run(None)
    assert isinstance(error, Unreachable)
    assert str(error) == (
        "cannot resolve other.example: there is none; cannot resolve server.example: no answer"
    )


def test_a_name_that_hangs_delays_the_others_only_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, one="server")
    world.servers = {OTHER: "b.example", SERVER: "a.example"}
    ended: list[bool] = []
    answer = world._resolve

    async def resolve(server: Endpoint, within: float, *, told: bool) -> list[Target]:
        if server == SERVER:
            return await answer(server, within, told=told)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(True)
        raise AssertionError

    monkeypatch.setattr(approach, "resolve", resolve)
    monkeypatch.setattr(approach, "_LATE", 0.01)
    assert world.run(None) == [None]
    assert ended == [True]


@pytest.mark.parametrize("names", [("a.example", "b.example"), ("", "")])
def test_data_channels_do_not_go_to_other_servers(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    """They do not know the session."""
    world = World(monkeypatch, one="server", two="server", three="server")
    world.found = [ONE, TWO]
    world.servers = dict(zip((SERVER, OTHER), names, strict=True))
    world.others[OTHER] = [THREE]
    here, there = (replace(target, name=names[0]) for target in (ONE, TWO))

    def between() -> None:
        world.at[ONE] = "nobody"
        if len(world.welcomed) == 2:
            world.at[TWO] = "nobody"

    world.between = between  # type: ignore[method-assign]
    raised = world.run(None, here, here, here, here)
    assert world.welcomed == [here, there]
    assert [type(error) for error in raised[1:]] == [Unreachable, type(None), Unreachable, Unreachable]


@pytest.mark.parametrize(("code", "elsewhere"), [("limit", True), ("socket", True), ("revoked", False)])
def test_another_server_may_have_room(
    monkeypatch: pytest.MonkeyPatch, said: Said, code: str, *, elsewhere: bool
) -> None:
    """Who waits for a minute because one of its servers is full has one server too few."""
    world = World(monkeypatch, one="full", two="server", three="server")
    world.code = code
    world.found = [ONE, TWO]
    world.servers = {SERVER: "a.example", OTHER: "b.example"}
    world.others[OTHER] = [THREE]
    (error,) = world.run(None)
    if not elsewhere:
        assert isinstance(error, Refused)
        assert [unnamed(target) for target, _within in world.tried] == [ONE]
        return
    assert error is None
    assert [unnamed(target) for target, _within in world.tried] == [ONE, THREE], "TWO is the full one's, too"
    assert f"refused ({code}): full; trying other addresses" in said[0][1]


@pytest.mark.parametrize("other", ["full", "mute", "nobody"])
def test_all_servers_are_full_or_away(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    """The answer is that of the first who gave one."""
    world = World(monkeypatch, one="full", two=other)
    world.found = [ONE]
    world.servers = {SERVER: "a.example", OTHER: "b.example"}
    world.others[OTHER] = [TWO]
    (error,) = world.run(None)
    assert isinstance(error, Refused)
    assert len(world.tried) == (1 if other == "nobody" else 2)


def test_nor_those_of_a_session_that_another_client_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has looked up nothing yet."""
    world = World(monkeypatch, one="nobody", two="server", three="server")
    world.found = [TWO]
    world.servers = {OTHER: "b.example", SERVER: "a.example"}
    world.others[OTHER] = [THREE]
    here = replace(ONE, name="a.example")
    assert [type(error) for error in world.run(here, here)] == [Unreachable, type(None)]
    assert world.welcomed == [replace(TWO, name="a.example")]


def fleet(monkeypatch: pytest.MonkeyPatch, hosts: list[list[Target]], robots: int = 3000) -> Counter[Target]:
    """How many of a fleet's robots try which address first."""
    chance = random.Random(1)  # noqa: S311 - repeatable on purpose
    servers = {Endpoint(f"{number}.example", 1): "" for number in range(len(hosts))}
    found = dict(zip(servers, hosts, strict=True))

    async def resolve(server: Endpoint, _within: float, *, told: bool) -> list[Target]:
        assert not told
        return list(found[server])

    async def first() -> Target:
        line = await Approach(servers, 1.0, shuffle=chance.shuffle)._addresses(None)
        assert set(line) == {target for host in hosts for target in host}
        families = [target.family for target in line]
        assert families[0] != families[1] or len(set(families)) == 1, "they alternate (RFC 8305)"
        return line[0]

    async def count() -> Counter[Target]:
        return Counter([await first() for _ in range(robots)])

    monkeypatch.setattr(approach, "resolve", resolve)
    return asyncio.run(count())


def test_a_fleet_has_no_favourite(monkeypatch: pytest.MonkeyPatch) -> None:
    six = [Target(socket.AF_INET6, (f"2001:db8::{number}", 1, 0, 0)) for number in range(3)]
    four = [Target(socket.AF_INET, (f"192.0.2.{number}", 1)) for number in range(3)]
    # One name with all addresses, as the C library sorts them; and a name for each server.
    for hosts in ([[*six, *four]], [list(pair) for pair in zip(six, four, strict=True)]):
        first = fleet(monkeypatch, hosts)
        assert set(first) == set(six), "the resolver prefers them"
        assert all(900 < count < 1100 for count in first.values())
    # Servers that have one family each are equal, too.
    first = fleet(monkeypatch, [six[:1], four[:1]])
    assert all(1400 < count < 1600 for count in first.values())


# With real servers and real clients.

RESOLVING = """
import socket, sys
from shadow.cli.client import main
real = socket.getaddrinfo
def answer(host, *arguments, **options):
    if host != "server.example":
        return real(host, *arguments, **options)
    return [(socket.AF_INET, 1, 6, "", ("127.0.0.2", 0)), (socket.AF_INET6, 1, 6, "", ("::1", 0, 0, 0))]
socket.getaddrinfo = answer
sys.exit(main())
"""


@contextlib.contextmanager
def client(tunnel: Tunnel, log: Path, *more: str) -> Iterator[None]:
    """A client whose server has two addresses: 127.0.0.2 first, then ::1."""
    arguments = tunnel.client_arguments(*more, "--server-name=localhost", rhost="server.example")[1:]
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", RESOLVING, *arguments], cwd=CHECKOUT, stderr=output)
    try:
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def says_nothing(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def hangs_up(connection: socket.socket) -> None:
    connection.recv(1)


def talks_tls(context: ssl.SSLContext) -> Callable[[socket.socket], None]:
    def handle(connection: socket.socket) -> None:
        with context.wrap_socket(connection.dup(), server_side=True) as sock:
            while sock.recv(65536):
                pass

    return handle


@pytest.mark.parametrize("who", ["says nothing", "hangs up", "stranger", "mute"])
def test_the_second_address_is_the_right_one(tunnel: Tunnel, tmp_path: Path, who: str) -> None:
    stranger = Authority(tmp_path / "stranger", "Another CA")
    handler: Callable[[socket.socket], None] = {
        "says nothing": says_nothing,
        "hangs up": hangs_up,
        "stranger": talks_tls(server_context(stranger, stranger.server())),
        "mute": talks_tls(server_context(tunnel.authority, tunnel.authority.server())),
    }[who]
    log = tmp_path / "log"
    with Service(handler, "127.0.0.2", tunnel.port), serving(echo) as service:
        tunnel.start_server("-6")
        with client(tunnel, log, f"--lport={service.port}", "--lhost=127.0.0.1", "--connect-timeout=3"):
            wait_for(lambda: "robot 011 connected to [::1]" in log.read_text(), "a session")
            with tunnel.visit() as visitor:
                assert exchange(visitor, b"by the other way") == b"by the other way"
        assert "WARNING: 127.0.0.2:" in log.read_text()


def test_the_address_that_the_session_has_takes_no_more_connections(tunnel: Tunnel, tmp_path: Path) -> None:
    """As if the server had moved, and the control channel alone had survived it."""
    first = threading.Semaphore(1)

    def forward_the_first(connection: socket.socket) -> None:
        if not first.acquire(blocking=False):
            return
        with socket.create_connection(("::1", tunnel.port)) as server:

            def back() -> None:
                with contextlib.suppress(OSError):
                    while data := server.recv(65536):
                        connection.sendall(data)

            threading.Thread(target=back, daemon=True).start()
            while data := connection.recv(65536):
                server.sendall(data)

    log = tmp_path / "log"
    with Service(forward_the_first, "127.0.0.2", tunnel.port), serving(echo) as service:
        tunnel.start_server("-6")
        with client(tunnel, log, f"--lport={service.port}", "--lhost=127.0.0.1", "--connect-timeout=9"):
            wait_for(lambda: "robot 011 connected to 127.0.0.2" in log.read_text(), "a session")
            with tunnel.visit() as visitor:
                assert exchange(visitor, b"by the other way") == b"by the other way"
            assert log.read_text().count("connected to") == 1


def test_the_next_channel_goes_where_the_last_one_got_through() -> None:
    asked: list[Target | None] = []

    class Way:
        async def call(self, _call: Call, known: Target | None = None) -> SimpleNamespace:
            asked.append(known)
            return SimpleNamespace(target=TWO, channel=None)

    async def body() -> None:
        settings: Any = None
        door = Door(Way(), Hello(1, DATA, "011"), settings, 30.0, ONE)  # type: ignore[arg-type]
        await door.open()
        await door.open()

    asyncio.run(body())
    assert asked == [ONE, TWO]
