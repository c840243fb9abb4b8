"""The robot's streams, as it counts and logs them; how they run is in tests/relay."""

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.client.streams import Streams
from shadow.errors import LocalError
from shadow.relay.durable import DurableStreams
from shadow.relay.pool import Relay
from shadow.transport.link import KernelLink
from shadow.wire.frames import Start
from tests.relay.test_durable import Ends, certificate_of
from tests.support import Authority, tcp_pair
from tests.support.log import Said
from tests.support.store import Store


class Pump:
    """What the relay has of a stream."""

    down = up = SimpleNamespace(moved=0)

    def __init__(self, link: KernelLink) -> None:
        self.link = link
        self.links = [link]


class Durable:
    """A relay that moves nothing, and a store that keeps nothing."""

    def __init__(self) -> None:
        self.pumps: list[Any] = []
        self.relay: Any = SimpleNamespace(
            make=lambda _plain, link: Pump(link), adopt=lambda pump, _on_end: self.pumps.append(pump)
        )

    def keep(self, pump: Pump, _facts: object) -> None:
        assert pump not in self.pumps

    def ended(self, pump: Pump) -> None:
        assert pump in self.pumps


def test_each_has_the_line_of_its_channel() -> None:
    """Whether it begins now or goes on after a restart."""

    async def body() -> None:
        durable: Any = Durable()
        streams = Streams("011", durable)
        (near, far), (plain, other) = tcp_pair(), tcp_pair()
        link = KernelLink(near, "a suite", [])
        resumed: Any = Pump(KernelLink(near, "a suite", []))
        streams.begin(plain, link, Start("", "1"))
        streams._take_in(lambda _link: None, resumed, {"id": "2", "service": "", "since": 0.0})
        assert len(streams) == 2
        _all, first, second = streams.describe()
        assert re.fullmatch(r"<Stream '1' to 'default' for 0\.\d s, <.*Pump.*>>", first)
        assert second.startswith("<Stream '2' to '' for ")
        line = streams.lines.of(near)
        assert link.line is resumed.links[0].line is line is not None
        for sock in (near, far, plain, other):
            sock.close()

    asyncio.run(body())


def test_it_is_in_the_store_before_its_first_byte_is_moved(authority: Authority) -> None:
    added: list[int] = []

    async def body() -> None:
        class Watched(Store):
            def add(self, name: str, descriptor: int) -> None:
                added.append(relay.streams)
                super().add(name, descriptor)

        ends, store, relay = Ends(certificate_of(authority)), Watched(), Relay(threads=1)
        durable = DurableStreams(relay, store)  # type: ignore[arg-type]
        ends.near.sendall(b"early")
        Streams("011", durable).begin(ends.inner.sock, ends.link, Start("", "1"))
        assert await asyncio.to_thread(ends.far.recv, 10) == b"early"
        assert set(store.kept) == {"ledger", "s0"}
        relay.stop()
        ends.close()
        store.close()

    asyncio.run(body())
    assert added == [0, 0], "the progress table and the stream, which nobody had yet"


def test_one_that_began_without_a_line_ends_without_one(monkeypatch: pytest.MonkeyPatch, said: Said) -> None:
    ended: list[Any] = []
    monkeypatch.setattr("shadow.client.streams.log_end", lambda pump, _ending, _words: ended.append(pump))

    async def body() -> None:
        durable: Any = Durable()
        streams = Streams("011", durable)
        near, far = tcp_pair()
        for number in range(1000):
            streams.begin(near, KernelLink(near, "a suite", []), Start("", str(number)))
        unlogged = 1000 - len(said)
        assert repr(streams) == f"<Streams of 011: 1000, {unlogged} of them not in the log>"
        for pump in durable.pumps:
            streams._roster._ended(pump)
        assert repr(streams) == "<Streams of 011: 0, 0 of them not in the log>"
        near.close()
        far.close()

    asyncio.run(body())
    assert 500 <= len(said) < 600
    assert len(ended) == len(said)


def test_one_for_which_there_is_no_descriptor_left() -> None:
    """The server hears of it, and the connection to the service is the caller's."""

    async def body() -> None:
        durable: Any = Durable()
        durable.relay.make = lambda *_anything: (_ for _ in ()).throw(LocalError("no descriptors left"))
        streams = Streams("011", durable)
        (near, far), (plain, other) = tcp_pair(), tcp_pair()
        with pytest.raises(LocalError):
            streams.begin(plain, KernelLink(near, "a suite", []), Start("", "1"))
        with pytest.raises(ConnectionResetError):
            far.recv(1)
        assert plain.fileno() != -1
        for sock in (far, plain, other):
            sock.close()

    asyncio.run(body())
