"""The relay on real TLS connections: byte-exactness, half-close, aborts, fairness, and no leaks.

On a kernel with TLS the same tests run through splice as well; elsewhere the machine tests do that.
"""

import asyncio
import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from OpenSSL import SSL

from shadow.errors import LocalError
from shadow.net.lines import Line
from shadow.pki.certificates import Purpose
from shadow.relay import pool
from shadow.relay.ends import Side
from shadow.relay.flow import Pump, StreamCut
from shadow.relay.pool import Relay
from shadow.transport import context, ktls
from shadow.transport.context import Ktls
from shadow.transport.link import Link, UserspaceLink
from tests.support import (
    DEADLINE,
    Authority,
    begin,
    exchange_link,
    linked,
    open_descriptors,
    random_bytes,
    read_all,
    read_link,
    read_some,
    settings,
    shake_hands,
    tcp_pair,
    wait_for,
    write_all,
)

MODES = [Ktls.OFF] if ktls.missing() else [Ktls.OFF, Ktls.REQUIRE]
RESET = struct.pack("ii", 1, 0)


@pytest.fixture(params=MODES)
def stream(request: pytest.FixtureRequest, authority: Authority) -> Iterator["Stream"]:
    with Stream(authority, request.param) as made:
        yield made


class Stream:
    """A stream through a relay: ``near`` is the plain end, ``far`` the TLS peer's."""

    def __init__(self, authority: Authority, mode: Ktls, *, tcp: bool = False) -> None:
        self.relay = Relay(threads=1)
        self.ended: list[Pump] = []
        self.near, plain = tcp_pair() if tcp else socket.socketpair()
        self.near.settimeout(DEADLINE)
        plain.setblocking(False)
        ours, self.far = asyncio.run(linked(authority, mode))
        self.pump = begin(self.relay, plain, ours, self.ended.append)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.relay.stop()
        self.near.close()
        self.far.sock.close()

    def wait_for_end(self) -> Pump:
        wait_for(lambda: self.ended, "the stream's end")
        assert self.relay.streams == 0
        assert self.pump.near.sock.fileno() == -1
        assert self.pump.link.sock.fileno() == -1
        return self.ended[0]


def in_background(target: object, *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments)  # type: ignore[arg-type]
    thread.start()
    return thread


def send_all(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def test_both_directions_at_once_are_byte_exact(stream: Stream) -> None:
    up, down = random_bytes(20_000_000, 1), random_bytes(20_000_000, 2)
    received: list[bytes] = []
    threads = [
        in_background(lambda: received.append(exchange_link(stream.far, down))),
        in_background(send_all, stream.near, up),
    ]
    assert read_all(stream.near) == down
    for thread in threads:
        thread.join(DEADLINE)
    assert received == [up]
    pump = stream.wait_for_end()
    assert pump.cut is None
    assert (pump.up.moved, pump.down.moved) == (len(up), len(down))


def test_a_question_that_ends_with_eof_still_gets_its_answer(stream: Stream) -> None:
    stream.near.sendall(b"question")
    stream.near.shutdown(socket.SHUT_WR)
    assert read_link(stream.far) == b"question"
    assert not stream.ended
    write_all(stream.far, b"answer")
    stream.far.send_close_notify()
    assert read_all(stream.near) == b"answer"
    assert stream.wait_for_end().cut is None


def test_the_other_half_closes_first(stream: Stream) -> None:
    write_all(stream.far, b"greeting")
    stream.far.send_close_notify()
    assert read_all(stream.near) == b"greeting"
    assert not stream.ended
    stream.near.sendall(b"thanks")
    stream.near.shutdown(socket.SHUT_WR)
    assert read_link(stream.far) == b"thanks"
    assert stream.wait_for_end().cut is None


def test_many_small_writes_keep_their_order(stream: Stream) -> None:
    pieces = [random_bytes(size % 97 + 1, size) for size in range(3000)]

    def write() -> None:
        for piece in pieces:
            stream.near.sendall(piece)
        stream.near.shutdown(socket.SHUT_WR)

    thread = in_background(write)
    assert read_link(stream.far) == b"".join(pieces)
    thread.join(DEADLINE)


def test_what_a_slow_reader_does_not_take_waits_and_arrives(stream: Stream) -> None:
    data = random_bytes(5_000_000, 3)

    def write() -> None:
        write_all(stream.far, data)
        stream.far.send_close_notify()

    thread = in_background(write)
    # Until nothing moves any more: every buffer on the way is full, and ours are bounded.
    moved = -1
    while moved != stream.pump.down.moved or moved == 0:
        moved = stream.pump.down.moved
        time.sleep(0.2)
    assert moved < len(data)
    assert read_all(stream.near) == data
    thread.join(DEADLINE)


def test_what_a_peer_has_not_read_is_not_left_to_the_kernel(stream: Stream) -> None:
    """Closed with bytes under way, a socket is reset by the kernel if its peer does not read for minutes."""
    sock = stream.pump.link.sock
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)  # takes what the peer's window does not
    data = random_bytes(300_000, 3)
    stream.near.sendall(data)
    stream.near.shutdown(socket.SHUT_WR)
    stream.far.send_close_notify()
    wait_for(lambda: stream.pump.up.done and stream.pump.down.done, "both ends to be passed on")
    for _ in range(3):
        stream.relay.ping()
        wait_for(lambda: stream.relay.turning, "the thread to come around")
    assert not stream.ended
    assert sock.fileno() != -1
    assert read_link(stream.far) == data
    stream.far.sock.close()
    assert stream.wait_for_end().cut is None


def test_a_peer_that_goes_away_with_bytes_under_way_is_noticed(stream: Stream) -> None:
    stream.pump.link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
    stream.near.sendall(random_bytes(300_000, 3))
    stream.near.shutdown(socket.SHUT_WR)
    stream.far.send_close_notify()
    wait_for(lambda: stream.pump.up.done and stream.pump.down.done, "both ends to be passed on")
    stream.far.sock.close()  # with bytes unread: a reset
    cut = stream.wait_for_end().cut
    assert cut is not None
    assert cut.error.errno == errno.ECONNRESET


def test_streams_that_linger_are_looked_after_now_and_then(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not whenever another stream has something to do: there may be hundreds of them."""
    with Stream(authority, Ktls.OFF) as stream:
        stream.pump.link.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
        stream.near.sendall(random_bytes(300_000, 3))
        stream.near.shutdown(socket.SHUT_WR)
        stream.far.send_close_notify()
        wait_for(lambda: stream.pump.up.done and stream.pump.down.done, "both ends to be passed on")
        looks: list[Pump] = []
        monkeypatch.setattr(Pump, "look_after", lambda pump: looks.append(pump))  # noqa: PLW0108 - bound
        began, rounds = time.monotonic(), 0
        while len(looks) < 3:
            stream.relay.ping()
            wait_for(lambda: stream.relay.turning, "the thread to come around")
            rounds += 1
            assert len(looks) <= 1 + (time.monotonic() - began) / pool._LINGER
        assert rounds > 3


@pytest.mark.parametrize("tcp", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_urgent_data_is_data(authority: Authority, mode: Ktls, tcp: bool) -> None:  # noqa: FBT001
    with Stream(authority, mode, tcp=tcp) as stream:
        expected = b""
        for number in range(3):
            for data, flags in ((b"before", 0), (b"%d" % number, socket.MSG_OOB), (b"behind", 0)):
                stream.near.send(data, flags)
                expected += data
            received = b""
            while len(received) < len(expected):
                received += read_some(stream.far)
            assert received == expected
            expected = b""


def test_a_truncated_link_is_an_abort_and_not_an_end_of_file(authority: Authority) -> None:
    with Stream(authority, Ktls.OFF, tcp=True) as stream:
        write_all(stream.far, b"half of")
        assert stream.near.recv(100) == b"half of"
        stream.far.sock.shutdown(socket.SHUT_WR)  # FIN without close_notify
        with pytest.raises(ConnectionResetError):
            stream.near.recv(100)
        cut = stream.wait_for_end().cut
        assert isinstance(cut, StreamCut)
        assert cut.side is Side.LINK
        assert "no close_notify" in str(cut)


def test_a_reset_of_the_link_reaches_the_plain_side_as_a_reset(authority: Authority) -> None:
    with Stream(authority, Ktls.OFF, tcp=True) as stream:
        write_all(stream.far, b"x")
        assert stream.near.recv(1) == b"x"
        stream.far.abort()
        with pytest.raises(ConnectionResetError):
            stream.near.recv(100)
        cut = stream.wait_for_end().cut
        assert cut is not None
        assert cut.side is Side.LINK


def test_a_reset_of_the_plain_side_reaches_the_link_as_an_abort(authority: Authority) -> None:
    with Stream(authority, Ktls.OFF, tcp=True) as stream:
        stream.near.sendall(b"x")
        assert read_some(stream.far) == b"x"
        stream.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        stream.near.close()
        with pytest.raises(OSError, match=r"reset|cut off"):
            read_link(stream.far)
        cut = stream.wait_for_end().cut
        assert cut is not None
        assert cut.side is Side.NEAR


def test_a_reset_after_half_close_is_noticed_although_nobody_reads_or_writes(authority: Authority) -> None:
    with Stream(authority, Ktls.OFF, tcp=True) as stream:
        stream.near.shutdown(socket.SHUT_WR)
        assert read_link(stream.far) == b""
        stream.near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        stream.near.close()
        assert stream.wait_for_end().cut is not None


def test_a_visitor_that_leaves_unread_bytes_behind_aborts_the_link(stream: Stream) -> None:
    write_all(stream.far, b"unread")
    wait_for(lambda: stream.pump.down.moved == 6, "the bytes to arrive")
    stream.near.close()
    with pytest.raises(OSError, match=r"reset|cut off"):
        read_link(stream.far)
    assert stream.wait_for_end().cut is not None


def test_a_visitor_that_writes_and_closes_has_its_bytes_delivered(stream: Stream) -> None:
    data = random_bytes(3_000_000, 4)

    def write() -> None:
        stream.near.sendall(data)
        stream.near.close()

    thread = in_background(write)
    assert read_link(stream.far) == data
    thread.join(DEADLINE)
    stream.far.send_close_notify()
    stream.wait_for_end()


def test_an_aborted_unix_visitor_gets_an_end_and_cannot_write(stream: Stream) -> None:
    stream.far.abort()
    stream.wait_for_end()
    # Unix sockets have no reset: this is all that can be told (docs/PROTOCOL.md).
    assert stream.near.recv(10) == b""
    with pytest.raises(BrokenPipeError):
        stream.near.sendall(b"x")


def test_a_visitor_with_unread_bytes_of_its_own_gets_a_reset(authority: Authority) -> None:
    with Stream(authority, Ktls.OFF) as stream:
        up = stream.pump.up
        stream.near.setblocking(False)

        def pour() -> bool:
            """More and more, until nobody takes it: the relay's store is full, for nobody reads the link."""
            with contextlib.suppress(BlockingIOError):
                while True:
                    stream.near.send(bytes(65536))
            return up.holds and not up.writable

        wait_for(pour, "a relay that takes no more")
        pour()
        stream.far.abort()
        stream.wait_for_end()
        stream.near.settimeout(DEADLINE)
        with pytest.raises(ConnectionResetError):
            stream.near.recv(10)


def test_a_busy_stream_does_not_starve_another(authority: Authority) -> None:
    """One thread, one stream that never runs dry: a question on another one must be answered."""
    with Stream(authority, Ktls.OFF) as busy:
        stop = threading.Event()

        def pour() -> None:
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    busy.near.send(bytes(1_000_000))

        def swallow() -> None:
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    read_some(busy.far, 1_000_000)

        near, plain = socket.socketpair()
        near.settimeout(DEADLINE)
        plain.setblocking(False)
        ours, far = asyncio.run(linked(authority, Ktls.OFF))
        begin(busy.relay, plain, ours, busy.ended.append)
        threads = [in_background(pour), in_background(swallow)]
        for number in range(50):
            near.sendall(b"%d" % number)
            assert read_some(far) == b"%d" % number
        assert busy.pump.up.moved > 0
        stop.set()
        busy.near.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(DEADLINE)
        near.close()
        far.sock.close()


@pytest.mark.parametrize("where", ["fill", "ready"])
def test_one_streams_bug_ends_that_stream_only(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with Stream(authority, Ktls.OFF) as stream:
        near, plain = socket.socketpair()
        near.settimeout(DEADLINE)
        plain.setblocking(False)
        ours, far = asyncio.run(linked(authority, Ktls.OFF))
        second = begin(stream.relay, plain, ours, stream.ended.append)
        near.sendall(b"x")
        assert read_some(far) == b"x"

        def broken() -> int:
            raise ZeroDivisionError

        victim = second.up if where == "fill" else second
        monkeypatch.setattr(type(victim), where, lambda self, *_: broken() if self is victim else 0)
        near.sendall(b"y")
        wait_for(lambda: second in stream.ended, "the broken stream's end")
        assert second.cut is not None
        assert "internal error: ZeroDivisionError" in str(second.cut)
        monkeypatch.undo()
        stream.near.sendall(b"still here")
        assert read_some(stream.far) == b"still here"
        near.close()
        far.sock.close()


def test_cut_from_outside(stream: Stream) -> None:
    stream.relay.cut(stream.pump, "because")
    cut = stream.wait_for_end().cut
    assert "because" in str(cut)
    stream.relay.cut(stream.pump, "again")  # harmless


def test_stopping_ends_every_stream_and_thread(authority: Authority) -> None:
    stream = Stream(authority, Ktls.OFF)
    stream.relay.stop()
    assert stream.ended
    assert stream.near.recv(1) == b""
    stream.__exit__()


def test_threads_that_cannot_be_started_are_an_error_and_leave_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with TasksMax= of a unit, or ulimit -u."""
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def refuse(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    before = open_descriptors(os.getpid())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(LocalError, match=r"cannot start 3 threads: .*TasksMax="):
        Relay(threads=3)
    assert not started[0].is_alive()
    assert open_descriptors(os.getpid()) == before


def test_a_stream_that_cannot_be_watched_ends_and_the_others_go_on(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when /proc/sys/fs/epoll/max_user_watches is reached."""
    with Stream(authority, Ktls.OFF) as stream:

        def refuse(_worker: object, _pump: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        near, plain = socket.socketpair()
        plain.setblocking(False)
        ours, far = asyncio.run(linked(authority, Ktls.OFF))
        monkeypatch.setattr("shadow.relay.pool._Worker._watch", refuse)
        second = begin(stream.relay, plain, ours, stream.ended.append)
        wait_for(lambda: second in stream.ended, "the stream's end")
        stream.near.sendall(b"still here")
        assert read_some(stream.far) == b"still here"
        near.close()
        far.sock.close()


def test_the_watchdogs_question_is_answered_only_by_threads_that_turn(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Stream(authority, Ktls.OFF) as stream:
        assert stream.relay.turning
        stream.relay.ping()
        wait_for(lambda: stream.relay.turning, "the thread to come around")
        gate = threading.Event()
        monkeypatch.setattr(type(stream.pump.up), "fill", lambda _self: gate.wait(DEADLINE) and 0)
        stream.near.sendall(b"x")
        time.sleep(0.05)
        stream.relay.ping()
        stuck = not stream.relay.turning
        assert stuck
        monkeypatch.undo()
        gate.set()
        wait_for(lambda: stream.relay.turning, "the thread to come around again")


def test_a_thousand_streams_leave_nothing_behind(authority: Authority) -> None:
    relay = Relay(threads=2)
    ended: list[Pump] = []

    async def many() -> list[tuple[Link, Link]]:
        return [await linked(authority, Ktls.OFF) for _ in range(25)]

    before = open_descriptors(os.getpid())
    for _ in range(4):
        streams = []
        for ours, far in asyncio.run(many()):
            near, plain = socket.socketpair()
            near.settimeout(DEADLINE)
            plain.setblocking(False)
            begin(relay, plain, ours, ended.append)
            streams.append((near, far))
        for near, far in streams:
            near.sendall(b"ping")
            near.shutdown(socket.SHUT_WR)
            assert read_link(far) == b"ping"
            far.send_close_notify()
            assert near.recv(1) == b""
            near.close()
            far.sock.close()
    wait_for(lambda: len(ended) == 100, "all streams to end")
    assert open_descriptors(os.getpid()) == before
    relay.stop()


def test_the_line_is_asked_for_the_links_sake_alone(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service's connection is another one, and nobody else knows of it."""
    asked: set[tuple[bool, Line | None]] = set()

    class Watch:
        step = 0.01

        def __init__(self, _sock: socket.socket, _now: float, *, probes_us: bool) -> None:
            self._is_links = probes_us

        def is_dead(self, _now: float, *, reading: bool, line: Line | None) -> bool:
            del reading
            asked.add((self._is_links, line))
            return False

    monkeypatch.setattr("shadow.relay.pool.Watch", Watch)
    with Stream(authority, Ktls.OFF, tcp=True) as made:
        made.pump.link.line = line = Line()
        wait_for(lambda: (True, line) in asked, "a look that asks the line")
        wait_for(lambda: (False, None) in asked, "a look at the service")
    assert asked <= {(True, line), (True, None), (False, None)}


def test_a_renegotiation_attempt_ends_the_stream(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = settings(authority, Purpose.SERVER, Ktls.OFF)
    monkeypatch.setattr(context, "_SSL_OP_NO_RENEGOTIATION", 0)  # the robot's side is willing
    robot = settings(authority, Purpose.ROBOT, Ktls.OFF)
    ours, far = asyncio.run(shake_hands(server, robot))
    relay, ended = Relay(threads=1), list[Pump]()
    near, plain = socket.socketpair()
    plain.setblocking(False)
    begin(relay, plain, ours, ended.append)
    assert isinstance(far, UserspaceLink)
    assert far.ssl.renegotiate()
    with contextlib.suppress(SSL.WantReadError):
        far.ssl.do_handshake()
    far.sock.send(far.pending_ciphertext())
    wait_for(lambda: ended, "the stream's end")
    assert "renegotiate" in str(ended[0].cut)
    relay.stop()
    near.close()
    far.sock.close()


def test_only_the_thread_that_has_a_stream_is_asked_to_cut_it(authority: Authority) -> None:
    ends = socket.socketpair(), socket.socketpair()
    for near, plain in ends:
        near.settimeout(DEADLINE)
        plain.setblocking(False)
    links = [asyncio.run(linked(authority, Ktls.OFF)) for _ in ends]
    relay, ended = Relay(threads=2), list[Pump]()
    pumps = [
        begin(relay, plain, ours, ended.append)
        for (_near, plain), (ours, _far) in zip(ends, links, strict=True)
    ]
    assert pumps[0].home is not pumps[1].home
    relay.cut(pumps[0], "because")
    wait_for(lambda: ended, "the end")
    assert ended == pumps[:1]
    relay.stop()
    relay.cut(pumps[1], "too late")  # whose thread's descriptors may be somebody else's by now
    assert ended == pumps
    for (near, _plain), (_ours, far) in zip(ends, links, strict=True):
        near.close()
        far.sock.close()
