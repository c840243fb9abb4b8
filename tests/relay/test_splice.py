"""Moving bytes by splice. Here over plain TCP, which splices like kernel TLS but for its records;
what only the real thing can show is in the machine tests.
"""

import contextlib
import errno
import fcntl
import os
import socket
from typing import Any

import pytest

from shadow.errors import LocalError
from shadow.relay import splice
from shadow.relay.flow import Pump
from shadow.relay.pool import Relay
from shadow.relay.progress import private_entry
from shadow.relay.splice import PAGE, RECORD_SLOTS, DownFlow, UpFlow, make_pipe, make_pump
from shadow.transport import ktls
from tests.support import DEADLINE, begin, random_bytes, tcp_pair


class PlainLink:
    """A link's socket without the link."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def abort(self) -> None:
        self.sock.close()


class Ends:
    """``near`` ─ plain │ link ─ ``far``."""

    def __init__(self) -> None:
        self.near, self.plain = socket.socketpair()
        sock, self.far = tcp_pair()
        for end in (self.near, self.plain, self.far, sock):
            end.setblocking(False)
        self.link: Any = PlainLink(sock)

    def close(self) -> None:
        for end in (self.near, self.plain, self.far, self.link.sock):
            end.close()


@pytest.fixture
def ends() -> Any:
    made = Ends()
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
def test_byte_exact(ends: Ends, up: bool) -> None:  # noqa: FBT001
    pump = make_pump(ends.plain, ends.link, private_entry())
    data = random_bytes(5_000_000, 1)
    assert move(ends, pump, data, up=up) == data
    assert (pump.up if up else pump.down).moved == len(data)
    pump.up.close()
    pump.down.close()


def test_pipes_too_small_for_a_record_still_lose_nothing(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past fs.pipe-user-pages-soft the kernel gives pipes of two pages."""
    monkeypatch.setattr(splice, "_DOWN_PIPE", 2 * PAGE)
    monkeypatch.setattr(splice, "_BUSY_PIPE", 2 * PAGE)
    pump = make_pump(ends.plain, ends.link, private_entry())
    down = pump.down
    assert isinstance(down, DownFlow)
    assert down._pipe.slots == 2
    assert down._request() == PAGE
    data = random_bytes(500_000, 2)
    assert move(ends, pump, data, up=False) == data
    pump.up.close()
    pump.down.close()


def test_a_pipe_that_may_not_grow_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fcntl.fcntl

    def refuse(descriptor: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return int(original(descriptor, command, argument))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    pipe = make_pipe(2**20)
    assert pipe.slots * PAGE == original(pipe.writer, fcntl.F_GETPIPE_SZ)
    allowed = splice._allowance._pages
    pipe.grow()
    assert pipe.slots * PAGE == original(pipe.writer, fcntl.F_GETPIPE_SZ)
    assert splice._allowance._pages == allowed
    monkeypatch.setattr(fcntl, "fcntl", original)
    pipe.grow()
    assert pipe.slots * PAGE == original(pipe.writer, fcntl.F_GETPIPE_SZ), "asked once, not for each chunk"
    pipe.close()


@pytest.mark.parametrize("up", [True, False])
def test_pipes_grow_when_they_are_found_full(ends: Ends, up: bool) -> None:  # noqa: FBT001
    pump = make_pump(ends.plain, ends.link, private_entry())
    flow = pump.up if up else pump.down
    assert isinstance(flow, UpFlow | DownFlow)
    small = flow._pipe.slots
    assert move(ends, pump, b"an idle shell", up=up) == b"an idle shell"
    assert flow._pipe.slots == small
    data = random_bytes(5_000_000, 1)
    assert move(ends, pump, data, up=up) == data
    assert flow._pipe.slots * PAGE == splice._BUSY_PIPE
    assert fcntl.fcntl(flow._pipe.writer, fcntl.F_GETPIPE_SZ) == splice._BUSY_PIPE
    pump.close_stores()


def test_pipes_grow_as_far_as_all_of_them_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is for new streams, whose pipes would have two slots only."""
    pipes = [make_pipe() for _ in range(3)]
    more = splice._BUSY_PIPE // PAGE - pipes[0].slots
    monkeypatch.setattr(splice, "_allowance", splice._Allowance(2 * more))
    for pipe in pipes:
        pipe.grow()
    assert [pipe.slots > 16 for pipe in pipes] == [True, True, False]
    pipes[0].close()
    pipes[2].grow()
    assert pipes[2].slots > 16
    for pipe in pipes[1:]:
        pipe.close()
    assert splice._allowance._pages == 2 * more


def test_a_pipe_that_another_process_made_larger_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splice, "_allowance", splice._Allowance(1000))
    pipe = make_pipe(splice._BUSY_PIPE)
    first, busy = splice._DOWN_PIPE // PAGE, splice._BUSY_PIPE // PAGE
    assert splice._allowance._pages == 1000 - (busy - first)
    pipe.close()
    assert splice._allowance._pages == 1000


def test_all_records_but_the_last_are_announced_to_have_more_behind_them(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For larger TCP segments; what is announced must come, or the kernel would hold the bytes back."""
    flow = UpFlow(ends.plain, ends.link, make_pipe(), private_entry().up)
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
    flow = DownFlow(ends.plain, ends.link, make_pipe(4 * RECORD_SLOTS * PAGE), private_entry().down)
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
        make_pump(ends.plain, ends.link, private_entry())
    monkeypatch.undo()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made[0][0])
    ends.near.send(b"x")
    assert ends.plain.recv(1) == b"x"


def test_a_fin_is_a_truncation(ends: Ends) -> None:
    pump = make_pump(ends.plain, ends.link, private_entry())
    assert move(ends, pump, b"half", up=False) == b"half"
    ends.far.shutdown(socket.SHUT_WR)
    while pump.cut is None:
        pump.down.readable = True
        pump.turn()
    assert "no close_notify" in str(pump.cut)
    pump.close()


def scripted(
    ends: Ends, monkeypatch: pytest.MonkeyPatch, answers: list[int | OSError], record: tuple[int, bytes]
) -> DownFlow:
    """A flow whose kernel answers as told, for what plain TCP cannot say."""

    def answer(*_arguments: object, **_options: object) -> int:
        step = answers.pop(0)
        if isinstance(step, OSError):
            raise step
        return step

    monkeypatch.setattr(os, "splice", answer)
    monkeypatch.setattr(ktls, "read_control_record", lambda _sock, _flags=0: record)
    return DownFlow(ends.plain, ends.link, make_pipe(), private_entry().down)


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
    flow = UpFlow(ends.plain, ends.link, make_pipe(), private_entry().up)
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
        ends.plain.close()
        ends.near, ends.plain = tcp_pair()
        ends.plain.setblocking(False)
    relay = Relay(threads=1)
    begin(relay, ends.plain, ends.link, lambda _pump: None)
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
