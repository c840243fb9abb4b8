"""One robot's streams on the server: counted, told about, and cut off when that is wanted."""

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shadow import events
from shadow.relay.durable import DurableStreams
from shadow.relay.ends import Plain
from shadow.relay.flow import Pump
from shadow.relay.pool import Relay
from shadow.server.streams import Streams
from shadow.server.visitor import Visitor, make_visitor
from shadow.systemd.fdstore import Store
from shadow.transport.link import Link
from tests.relay.test_durable import Ends, certificate_of
from tests.support import DEADLINE, Authority, linked, read_some, tcp_pair
from tests.support import store as support


async def begin(streams: Streams, authority: Authority, number: str) -> tuple[socket.socket, Link]:
    """A stream; the visitor's end and the robot's."""
    ours, theirs = await linked(authority)
    visitor, inside = socket.socketpair()
    inside.setblocking(False)
    streams.begin(make_visitor(inside, "", number, asyncio.get_running_loop().time()), ours)
    return visitor, theirs


async def wait_until_left(streams: Streams, count: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while len(streams) != count:
            await asyncio.sleep(0.01)


def test_each_has_the_line_of_its_link(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """So has one that goes on after a restart: what the session hears, it knows."""

    class Resumed:
        def __init__(self, plain: socket.socket, sock: socket.socket) -> None:
            self.near = Plain(plain)
            self.links = [SimpleNamespace(sock=sock, line=None)]

    async def scenario() -> None:
        relay = Relay()
        streams = Streams("011", DurableStreams(relay, Store()), lambda: None)
        try:
            visitor, theirs = await begin(streams, authority, "1")
            (pump,) = streams
            line = streams.lines.of(pump.link.sock)
            assert pump.link.line is line is not None
            near, far = tcp_pair()
            resumed: Any = Resumed(visitor, near)
            made = make_visitor(visitor, "", "2", asyncio.get_running_loop().time())
            with monkeypatch.context() as patched:
                patched.setattr(relay, "adopt", lambda _pump, _on_end: None)
                assert streams.resume(resumed, made.record).stream == "2"
            assert resumed.links[0].line is line
            streams._roster._known.pop(resumed)
            near.close()
            far.close()
        finally:
            streams.cut(lambda _pump, _visitor: True, "the end")
            await wait_until_left(streams, 0)
            relay.stop()
        visitor.close()
        theirs.abort()

    asyncio.run(scenario())


def test_each_is_in_the_store_before_its_first_byte_is_moved(authority: Authority) -> None:
    added: list[int] = []

    async def scenario() -> None:
        class Watched(support.Store):
            def add(self, name: str, descriptor: int) -> None:
                added.append(relay.streams)
                super().add(name, descriptor)

        ends, store, relay = Ends(certificate_of(authority)), Watched(), Relay(threads=1)
        durable = DurableStreams(relay, store)  # type: ignore[arg-type]
        ends.near.sendall(b"early")
        streams = Streams("011", durable, lambda: None)
        streams.begin(make_visitor(ends.inner.sock, "", "1", asyncio.get_running_loop().time()), ends.link)
        assert await asyncio.to_thread(ends.far.recv, 10) == b"early"
        assert set(store.kept) == {"ledger", "s0"}
        relay.stop()
        ends.close()
        store.close()

    asyncio.run(scenario())
    assert added == [0, 0], "the progress table and the stream, which nobody had yet"


def test_only_what_is_wanted_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(events, "log", lambda _event, _level, text, **_facts: lines.append(text))
    authority, ends = Authority(tmp_path), []

    def third(_pump: Pump, visitor: Visitor) -> bool:
        return visitor.stream == "3"

    async def scenario() -> None:
        relay = Relay()
        streams = Streams("011", DurableStreams(relay, Store()), lambda: ends.append(1))
        try:
            pairs = [await begin(streams, authority, number) for number in ("1", "2", "3")]
            assert len(streams) == 3
            assert [visitor.stream for _pump, visitor in streams.items()] == ["1", "2", "3"]
            assert streams.cut(third, "because") == 1
            await wait_until_left(streams, 2)
            assert streams.cut(third, "because") == 0
            assert pairs[2][0].recv(1) == b""
            with pytest.raises(ConnectionError):
                await asyncio.to_thread(read_some, pairs[2][1])
            pairs[0][0].sendall(b"still here")
            assert await asyncio.to_thread(read_some, pairs[0][1]) == b"still here"
        finally:
            streams.cut(lambda _pump, _visitor: True, "the end")
            await wait_until_left(streams, 0)
            relay.stop()
        for visitor, link in pairs:
            visitor.close()
            link.abort()

    asyncio.run(scenario())
    assert len(ends) == 3
    assert lines[3].startswith("robot 011: stream 3 cut off (because): 0 bytes to the robot")
