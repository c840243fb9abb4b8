"""Addresses: parsing, the order of RFC 8305, and dialling with losers closed."""

import asyncio
import contextlib
import gc
import socket
import time
from collections.abc import Iterator

import pytest

from bench.processes import free_port
from shadow.errors import ConfigError, Unreachable
from shadow.net import address
from shadow.net.address import (
    Endpoint,
    Target,
    describe,
    dial,
    interleave,
    is_ip_address,
    parse_advertised,
    parse_endpoint,
    parse_host,
    source_of,
)
from tests.support import open_descriptors

SIX, FOUR = socket.AF_INET6, socket.AF_INET


def six(port: int, host: str = "::1") -> Target:
    return Target(SIX, (host, port, 0, 0))


def four(port: int, host: str = "127.0.0.1") -> Target:
    return Target(FOUR, (host, port))


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("localhost:22", Endpoint("localhost", 22)),
        ("127.0.0.1:80", Endpoint("127.0.0.1", 80)),
        ("[::1]:443", Endpoint("::1", 443)),
        ("[fe80::1%eth0]:22", Endpoint("fe80::1%eth0", 22)),
    ],
)
def test_endpoints(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text) == endpoint
    assert str(endpoint) == text


@pytest.mark.parametrize("text", ["", "localhost", ":22", "::1:22", "[::1]", "a:b", "a:0", "a b:1", "[]:1"])
def test_bad_endpoints(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_endpoint(text)


def test_what_is_advertised() -> None:
    for text in ("tunnel.example.com:2222", "a_b-c.example.:1", "192.0.2.7:65535", "[2001:db8::1]:443"):
        assert str(parse_advertised(text)) == text
    assert len(str(parse_advertised("x." * 126 + "x:65535"))) < 512, "it fits WELCOME"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("tunnel.example.com", "is not HOST:PORT"),
        ("2001:db8::1:443", "goes in brackets"),
        ("a:65536", "is not a number from 1 to 65535"),
        ("0.0.0.0:2222", "0.0.0.0 stands for all addresses"),
        ("[::]:2222", ":: stands for all addresses"),
        ("[fe80::1%eth0]:22", "an interface of this machine"),
        ("[fe80::1%a\0]:22", "an interface of this machine"),
        ("a\0b:1", "neither a name nor an address"),
        ("\x1b:1", "neither a name nor an address"),
        ("a,b:1", "neither a name nor an address"),
        ("[a:b]:1", "neither a name nor an address"),
        ("*.example:1", "neither a name nor an address"),
        ("x." * 126 + "xx:1", "neither a name nor an address"),
        ("xn--\xe4:1", "ASCII form"),
    ],
)
def test_what_nobody_else_can_dial(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse_advertised(text)
    assert str(caught.value).isprintable()


def test_hosts() -> None:
    assert parse_host("[::1]") == "::1"
    assert is_ip_address("fe80::1%eth0")
    assert not is_ip_address("localhost")


def test_describe() -> None:
    assert describe(("::ffff:192.0.2.1", 5, 0, 0)) == "192.0.2.1:5"
    assert describe(("::1", 5, 0, 0)) == "[::1]:5"
    assert describe("") == "a local socket"


def test_families_alternate_and_the_resolvers_first_is_first() -> None:
    found = [six(1), six(2), six(3), four(1), four(2)]
    assert interleave(found) == [six(1), four(1), six(2), four(2), six(3)]
    assert interleave([four(1), six(1)]) == [four(1), six(1)]


def dial_and_close(targets: list[Target], within: float = 20.0) -> Target:
    async def body() -> Target:
        sock, target = await dial(targets, within)
        assert sock.getpeername()[:2] == target.sockaddr[:2]
        sock.close()
        return target

    return asyncio.run(body())


def test_the_next_address_is_tried_when_one_refuses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert dial_and_close([six(free_port()), four(port)]) == four(port)


@contextlib.contextmanager
def silence() -> Iterator[Target]:
    """An address that does not answer.

    A listener whose backlog is full drops further SYNs: the nearest to a black hole on loopback.
    """
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        target = four(full.getsockname()[1])
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(target.sockaddr)
        yield target


def test_cancelled_at_whatever_moment_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that goes on all the same would keep the daemon from stopping."""
    monkeypatch.setattr(address, "ATTEMPT_DELAY", 0.0)

    async def cancelled_after(turns: int, targets: list[Target]) -> bool:
        task = asyncio.create_task(dial(targets, 5.0))
        for _ in range(turns):
            await asyncio.sleep(0)
        came_in_time = task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            (await task)[0].close()
            assert not came_in_time
        return came_in_time

    with socket.create_server(("127.0.0.1", 0)) as server, silence() as silent:
        targets = [silent, four(server.getsockname()[1])]
        turns = 0
        server.setblocking(False)
        while asyncio.run(cancelled_after(turns, targets)):
            with contextlib.suppress(BlockingIOError):
                server.accept()[0].close()
            turns += 1
    assert turns > 2


def test_an_address_that_does_not_answer_delays_by_a_quarter_second_only() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, silence() as silent:
        good = four(server.getsockname()[1])
        before = open_descriptors(__import__("os").getpid())
        assert dial_and_close([silent, good]) == good
        gc.collect()
        assert open_descriptors(__import__("os").getpid()) == before, "the loser must be closed"
        began = time.monotonic()
        with pytest.raises(Unreachable, match=r"cannot connect to 127\.0\.0\.1:\d+: Connection timed out"):
            dial_and_close([silent], within=0.3)
        assert time.monotonic() - began < 20


def test_when_all_refuse_the_reason_is_told() -> None:
    port = free_port()
    with pytest.raises(Unreachable, match="Connection refused") as caught:
        dial_and_close([six(port), four(port)])
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_whose_connection_it_is(host: str, source: str) -> None:
    assert source_of(host) == source
