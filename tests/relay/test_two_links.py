"""Streams between two links, as on the robot's server when the visitor is at another: real TLS on both.

On a kernel with TLS each of the two is the kernel's or OpenSSL's in turn; elsewhere the machine tests do so.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from shadow.net.lines import Line
from shadow.relay.ends import Side
from shadow.relay.flow import CALL_COST, TURN_BUDGET, Pump
from shadow.relay.pool import Relay
from shadow.transport.context import Ktls
from shadow.transport.link import Link
from tests.support import (
    DEADLINE,
    Authority,
    begin,
    exchange_link,
    linked,
    random_bytes,
    read_link,
    read_some,
    wait_for,
    write_all,
)

from .test_pool import MODES

PAIRS = [(near, link) for near in MODES for link in MODES]


class Stream:
    """``visitor`` ═ one link │ the other ═ ``robot``: the outer ends, both of TLS."""

    def __init__(self, authority: Authority, modes: tuple[Ktls, Ktls]) -> None:
        self.relay = Relay(threads=1)
        self.ended: list[Pump] = []
        near, self.visitor = asyncio.run(linked(authority, modes[0]))
        link, self.robot = asyncio.run(linked(authority, modes[1]))
        self.pump = begin(self.relay, near, link, self.ended.append)

    def outer(self, side: Side) -> tuple[Link, Link]:
        """The end that this side's link leads to, and the other one."""
        return (self.visitor, self.robot) if side is Side.NEAR else (self.robot, self.visitor)

    def wait_for_end(self) -> Pump:
        wait_for(lambda: self.ended, "the stream's end")
        assert self.relay.streams == 0
        assert {end.sock.fileno() for end in self.pump.ends.values()} == {-1}
        return self.ended[0]

    def close(self) -> None:
        self.relay.stop()
        self.visitor.sock.close()
        self.robot.sock.close()


@pytest.fixture(params=PAIRS, ids="-".join)
def stream(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Stream]:
    made = Stream(authority, request.param)
    yield made
    made.close()


def in_background(task: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=task)
    thread.start()
    return thread


def test_both_directions_at_once_are_byte_exact(stream: Stream) -> None:
    """And so are the counts."""
    up, down = random_bytes(12_000_000, 1), random_bytes(9_000_000, 2)
    received: list[bytes] = []
    thread = in_background(lambda: received.append(exchange_link(stream.robot, down)))
    assert exchange_link(stream.visitor, up) == down
    thread.join(DEADLINE)
    assert received == [up]
    pump = stream.wait_for_end()
    assert pump.cut is None
    assert (pump.up.moved, pump.down.moved) == (len(up), len(down))


@pytest.mark.parametrize("side", Side)
def test_either_half_may_end_first(stream: Stream, side: Side) -> None:
    """close_notify is passed on as one, and the other direction goes on."""
    first, second = stream.outer(side)
    write_all(first, b"question")
    first.send_close_notify()
    assert read_link(second) == b"question"
    assert not stream.ended
    write_all(second, b"answer")
    assert read_some(first) == b"answer"
    second.send_close_notify()
    assert read_link(first) == b""
    assert stream.wait_for_end().cut is None


def test_ends_of_both_at_once(stream: Stream) -> None:
    for link in (stream.visitor, stream.robot):
        link.send_close_notify()
    for link in (stream.visitor, stream.robot):
        assert read_link(link) == b""
    assert stream.wait_for_end().cut is None


@pytest.mark.parametrize("how", ["reset", "truncated"])
@pytest.mark.parametrize("side", Side)
def test_a_cut_is_passed_on_as_one(stream: Stream, side: Side, how: str) -> None:
    """Never as an orderly end: the other side would take half of the bytes for all."""
    first, second = stream.outer(side)
    write_all(first, b"half of")
    assert read_some(second) == b"half of"
    if how == "reset":
        first.abort()
    else:
        first.sock.shutdown(socket.SHUT_WR)  # FIN without close_notify
    with pytest.raises(ConnectionResetError):
        read_link(second)
    cut = stream.wait_for_end().cut
    assert cut is not None
    assert cut.side is side
    assert how == "reset" or "no close_notify" in str(cut)


@pytest.mark.parametrize("side", Side)
def test_a_slow_reader_stops_the_writer_and_misses_nothing(stream: Stream, side: Side) -> None:
    """Every buffer on the way is bounded, and a reset is noticed though nobody reads."""
    first, second = stream.outer(side)
    flow = stream.pump.up if side is Side.NEAR else stream.pump.down
    data, sent = random_bytes(30_000_000, 3), 0

    def pour() -> bool:
        nonlocal sent
        if first.flushed:
            first.write(data[sent : sent + 65536])
            sent += 65536
        first.flush()
        return flow.holds and not flow.writable and not first.flushed

    wait_for(lambda: any(pour() for _ in range(100)), "a relay that takes no more")
    assert sent < len(data)
    received = bytearray()

    def read() -> None:
        while len(received) < sent:
            received.extend(read_some(second))

    thread = in_background(read)
    write_all(first, b"")
    thread.join(DEADLINE)
    assert received == data[:sent]
    second.abort()
    assert stream.wait_for_end().cut is not None


@pytest.mark.parametrize("modes", PAIRS, ids="-".join)
def test_tiny_records_are_charged(authority: Authority, modes: tuple[Ktls, Ktls]) -> None:
    """What a peer sends in records of one byte must not hold up the other streams of the thread."""
    (near, visitor), (link, robot) = (asyncio.run(linked(authority, mode)) for mode in modes)
    relay = Relay(threads=1)
    up = relay.make(near, link).up
    sent = b"".join(b"%d" % (number % 10) for number in range(1000))
    for number in sent:
        write_all(visitor, bytes([number]))
    turns = 0
    while up.moved < len(sent):
        before, up.readable = up.moved, True
        up.turn(TURN_BUDGET)
        assert up.moved - before < 2 * TURN_BUDGET / CALL_COST  # what is left of a turn buys a whole call
        turns += up.moved > before
    assert turns > len(sent) * CALL_COST / TURN_BUDGET / 2
    received = b""
    while len(received) < len(sent):
        received += read_some(robot)
    assert received == sent
    relay.stop()
    up.close()
    for end in (near, visitor, link, robot):
        end.sock.close()


def test_each_link_is_watched_and_its_line_asked(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both peers are ours, and probe."""
    asked: set[tuple[socket.socket, bool, Line | None]] = set()

    class Watch:
        step = 0.01

        def __init__(self, sock: socket.socket, _now: float, *, probes_us: bool) -> None:
            self._what = sock, probes_us

        def is_dead(self, _now: float, *, reading: bool, line: Line | None) -> bool:
            del reading
            asked.add((*self._what, line))
            return False

    monkeypatch.setattr("shadow.relay.pool.Watch", Watch)
    (near, visitor), (link, robot) = (asyncio.run(linked(authority, Ktls.OFF)) for _ in range(2))
    near.line, link.line = Line(), Line()
    relay = Relay(threads=1)
    pump = begin(relay, near, link, lambda _pump: None)
    assert pump.links == [near, link]
    wanted = {(near.sock, True, near.line), (link.sock, True, link.line)}
    wait_for(lambda: asked == wanted, "a look at both")
    relay.stop()
    visitor.sock.close()
    robot.sock.close()


@pytest.mark.parametrize("side", Side)
def test_a_peer_that_is_gone_is_found_on_either(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, side: Side
) -> None:
    class Watch:
        step = 0.01

        def __init__(self, sock: socket.socket, _now: float, *, probes_us: bool) -> None:
            assert probes_us
            self._sock = sock

        def is_dead(self, _now: float, *, reading: bool, line: Line | None) -> bool:
            return self._sock is gone and reading and line is None

        def silence(self, _now: float) -> float:
            return 7.0

    (near, visitor), (link, robot) = (asyncio.run(linked(authority, Ktls.OFF)) for _ in range(2))
    gone = near.sock if side is Side.NEAR else link.sock
    monkeypatch.setattr("shadow.relay.pool.Watch", Watch)
    relay, ended = Relay(threads=1), list[Pump]()
    begin(relay, near, link, ended.append)
    wait_for(lambda: ended, "the stream's end")
    assert str(ended[0].cut) == f"{side}: nothing heard for 7 s"
    for end in (visitor, robot):
        with pytest.raises(ConnectionResetError):
            read_link(end)
        end.sock.close()
    relay.stop()


def test_a_busy_stream_does_not_starve_another(stream: Stream, authority: Authority) -> None:
    """One thread, one stream that never runs dry: a question on another one must be answered."""

    def pour() -> None:
        with contextlib.suppress(OSError):
            while True:
                write_all(stream.visitor, bytes(65536))

    def swallow() -> None:
        with contextlib.suppress(OSError):
            while read_some(stream.robot):
                pass

    (near, visitor), (link, robot) = (asyncio.run(linked(authority, Ktls.OFF)) for _ in range(2))
    begin(stream.relay, near, link, lambda _pump: None)
    threads = [in_background(pour), in_background(swallow)]
    for number in range(30):
        write_all(visitor, b"%d" % number)
        assert read_some(robot) == b"%d" % number
    assert stream.pump.up.moved > 0
    stream.relay.cut(stream.pump, "enough")
    for thread in threads:
        thread.join(DEADLINE)
    visitor.sock.close()
    robot.sock.close()
