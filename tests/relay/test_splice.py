"""Moving bytes by splice. Here over plain TCP, which splices like kernel TLS but for its records;
what only the real thing can show is in the machine tests.
"""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator

import pytest

from shadow.errors import LocalError
from shadow.relay import pipes, splice
from shadow.relay.ends import End, Plain, Side
from shadow.relay.flow import Pump
from shadow.relay.pipes import PAGE, RECORD_SLOTS, make_pipe
from shadow.relay.pool import Relay
from shadow.relay.progress import private_entry
from shadow.relay.splice import FromLink, LinkToPlain, PipeFlow, PlainToLink, make_pump
from shadow.transport import ktls
from shadow.transport.link import KernelLink
from tests.support import DEADLINE, begin, random_bytes, tcp_pair


class Ends:
    """``near`` ─ one end │ the other ─ ``far``."""

    def __init__(self, *, two_links: bool = False) -> None:
        self.near, inner = tcp_pair() if two_links else socket.socketpair()
        sock, self.far = tcp_pair()
        for end in (self.near, inner, self.far, sock):
            end.setblocking(False)
        self.inner: End = KernelLink(inner, "a suite", []) if two_links else Plain(inner)
        self.link = KernelLink(sock, "a suite", [])

    def pump(self) -> Pump:
        return make_pump(self.inner, self.link, private_entry())

    def up(self) -> PlainToLink:
        """A flow from one end to the other."""
        sides = Side.NEAR, Side.LINK
        return PlainToLink(sides, self.inner.sock, self.link.sock, make_pipe(), private_entry().up)

    def down(self, size: int | None = None) -> LinkToPlain:
        """The way back."""
        sides = Side.LINK, Side.NEAR
        return LinkToPlain(sides, self.link.sock, self.inner.sock, make_pipe(size), private_entry().down)

    def close(self) -> None:
        for end in (self.near, self.inner.sock, self.far, self.link.sock):
            end.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


@pytest.fixture(params=[False, True], ids=["plain", "two links"])
def any_ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    made = Ends(two_links=request.param)
    yield made
    made.close()


def move(ends: Ends, pump: Pump, data: bytes, *, up: bool) -> bytes:
    source, target = (ends.near, ends.far) if up else (ends.far, ends.near)
    received, position = bytearray(), 0
    while len(received) < len(data):
        with contextlib.suppress(BlockingIOError):
            position += source.send(data[position : position + 300_000])
        for flow in (pump.up, pump.down):
            flow.readable = flow.writable = True
        pump.turn()
        assert pump.cut is None
        with contextlib.suppress(BlockingIOError):
            received += target.recv(200_000)
    return bytes(received)


@pytest.mark.parametrize("up", [True, False])
def test_byte_exact(any_ends: Ends, up: bool) -> None:  # noqa: FBT001
    pump = any_ends.pump()
    data = random_bytes(5_000_000, 1)
    assert move(any_ends, pump, data, up=up) == data
    assert (pump.up if up else pump.down).moved == len(data)
    pump.up.close()
    pump.down.close()


def test_pipes_too_small_for_a_record_still_lose_nothing(
    any_ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past fs.pipe-user-pages-soft the kernel gives pipes of two pages."""
    monkeypatch.setattr(FromLink, "pipe_size", 2 * PAGE)
    monkeypatch.setattr(pipes, "_BUSY_SIZE", 2 * PAGE)
    pump = any_ends.pump()
    down = pump.down
    assert isinstance(down, FromLink)
    assert down._pipe.slots == 2
    assert down._request() == PAGE
    data = random_bytes(500_000, 2)
    assert move(any_ends, pump, data, up=False) == data
    pump.up.close()
    pump.down.close()


@pytest.mark.parametrize("up", [True, False])
def test_pipes_grow_when_they_are_found_full(any_ends: Ends, up: bool) -> None:  # noqa: FBT001
    pump = any_ends.pump()
    flow = pump.up if up else pump.down
    assert isinstance(flow, PipeFlow)
    small = flow._pipe.slots
    assert move(any_ends, pump, b"an idle shell", up=up) == b"an idle shell"
    assert flow._pipe.slots == small
    data = random_bytes(5_000_000, 1)
    assert move(any_ends, pump, data, up=up) == data
    assert flow._pipe.slots * PAGE == pipes._BUSY_SIZE
    assert fcntl.fcntl(flow._pipe.writer, fcntl.F_GETPIPE_SZ) == pipes._BUSY_SIZE
    pump.close_stores()


def test_all_records_but_the_last_are_announced_to_have_more_behind_them(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For larger TCP segments; what is announced must come, or the kernel would hold the bytes back."""
    flow = ends.up()
    flow._pipe.held = 40_000
    calls: list[tuple[int, bool]] = []

    def splice_(_source: int, _sink: int, count: int, _from: None, _to: None, flags: int) -> int:
        calls.append((count, bool(flags & os.SPLICE_F_MORE)))
        if len(calls) == 2:
            raise BlockingIOError
        return 20_000 if len(calls) == 1 else count

    monkeypatch.setattr(os, "splice", splice_)
    flow.drain()
    assert (flow.holds, flow.writable) == (True, False)
    flow.drain()
    assert calls == [(32_768, True), (16_384, True), (16_384, True), (3_616, False)]
    assert not flow.holds
    flow.close()


def test_a_record_is_asked_for_only_if_it_surely_fits(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel drops what a full pipe does not take, so the count of slots is what byte-exactness is."""
    flow = ends.down(4 * RECORD_SLOTS * PAGE)
    slots = flow._pipe.slots
    asked: list[int] = []

    def record(_source: int, _target: int, count: int, _from: None, _to: None, flags: int) -> int:
        asked.append(count)
        assert flags & os.SPLICE_F_NONBLOCK
        return 100

    monkeypatch.setattr(os, "splice", record)
    total = flow.fill()
    assert asked == [ktls.RECORD_MAX] * (slots // RECORD_SLOTS)
    assert total == 100 * len(asked)
    assert not flow.has_room
    monkeypatch.undo()
    flow.close()


def test_running_out_of_descriptors_leaves_the_sockets_alone(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    original = os.pipe2

    def only_one(flags: int) -> tuple[int, int]:
        if made:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(original(flags))
        return made[0]

    monkeypatch.setattr(os, "pipe2", only_one)
    with pytest.raises(LocalError, match="no pipe for a stream: Too many open files"):
        ends.pump()
    monkeypatch.undo()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made[0][0])
    ends.near.send(b"x")
    assert ends.inner.sock.recv(1) == b"x"


@pytest.mark.parametrize("side", Side)
def test_a_fin_is_a_truncation(side: Side) -> None:
    """Of whichever link; the other one is not told of an end."""
    ends = Ends(two_links=True)
    pump = ends.pump()
    up = side is Side.NEAR
    assert move(ends, pump, b"half", up=up) == b"half"
    (ends.near if up else ends.far).shutdown(socket.SHUT_WR)
    while pump.cut is None:
        pump.up.readable = pump.down.readable = True
        pump.turn()
    assert pump.cut.side is side
    assert "no close_notify" in str(pump.cut)
    pump.close()
    ends.close()


def scripted(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, answers: list[int | OSError], record: tuple[int, bytes]
) -> LinkToPlain:
    """A flow whose kernel answers as told, for what plain TCP cannot say."""

    def answer(*_arguments: object, **_options: object) -> int:
        step = answers.pop(0)
        if isinstance(step, OSError):
            raise step
        return step

    monkeypatch.setattr(os, "splice", answer)
    monkeypatch.setattr(ktls, "read_control_record", lambda _sock, _flags=0: record)
    return ends.down()


def test_close_notify_ends_the_flow(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = scripted(ends, monkeypatch, [OSError(errno.EINVAL, "")], (21, b"\x01\x00"))
    assert flow.fill() == 0
    assert flow.ended
    flow.close()


def test_a_handshake_record_cuts_it(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = scripted(ends, monkeypatch, [OSError(errno.EINVAL, "")], (22, b"\x00\x00\x00\x00"))
    with pytest.raises(ConnectionAbortedError, match="type 22"):
        flow.fill()
    flow.close()


def test_a_record_that_does_not_decrypt_cuts_it(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = scripted(ends, monkeypatch, [OSError(errno.EBADMSG, "Bad message")], (0, b""))
    with pytest.raises(OSError, match="Bad message"):
        flow.fill()
    flow.close()


def test_a_record_of_length_zero_is_no_end(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = scripted(ends, monkeypatch, [0], (0, b""))
    assert flow.fill() == 0
    assert not flow.ended
    assert not flow.readable, "nothing behind it: wait for epoll"
    flow.readable = True
    ends.far.send(b"x")
    while True:
        try:
            ends.link.sock.recv(1, socket.MSG_PEEK)
            break
        except BlockingIOError:
            continue
    flow = scripted(ends, monkeypatch, [0], (0, b""))
    flow.fill()
    assert flow.readable, "something is behind it: go on"
    flow.close()


def test_the_end_is_told_by_close_notify_then_fin(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(ktls, "send_alert", lambda _sock, alert: order.append(repr(alert)))
    monkeypatch.setattr(splice, "shutdown_write", lambda _sock: order.append("FIN"))
    flow = ends.up()
    assert flow.finish()
    assert order == [r"b'\x01\x00'", "FIN"]

    def full(_sock: object, _alert: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "")

    monkeypatch.setattr(ktls, "send_alert", full)
    assert not flow.finish()
    monkeypatch.setattr(splice, "is_writable", lambda _sock: False)
    assert not flow.finish()
    flow.close()


@pytest.mark.parametrize("tcp", [True, False])
def test_urgent_data_is_data(tcp: bool) -> None:  # noqa: FBT001
    """splice(2) stops in front of it for good, and the kernel would take it out of the stream."""
    ends = Ends()
    if tcp:
        ends.near.close()
        ends.inner.sock.close()
        ends.near, inner = tcp_pair()
        inner.setblocking(False)
        ends.inner = Plain(inner)
    relay = Relay(threads=1)
    begin(relay, ends.inner.sock, ends.link, lambda _pump: None)
    ends.far.settimeout(DEADLINE)
    for number in range(3):
        expected = b""
        for data, flags in ((b"before", 0), (b"%d" % number, socket.MSG_OOB), (b"behind", 0)):
            ends.near.send(data, flags)
            expected += data
        received = b""
        while len(received) < len(expected):
            received += ends.far.recv(100)
        assert received == expected
    relay.stop()
    ends.close()
