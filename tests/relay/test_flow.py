"""One direction and both: states, budget, and the words errors are told in."""

import errno
import select
import socket

import pytest

from shadow.errors import reason, reason_of
from shadow.net.tcp import is_delivered, is_writable, shutdown_write
from shadow.relay.ends import Plain, Side
from shadow.relay.flow import Flow, Pump, StreamCut
from shadow.relay.progress import private_entry
from tests.support import tcp_pair, wait_for


class Scripted(Flow):
    """A flow whose source and sink do as told."""

    def __init__(self, supply: list[int | OSError], room: int = 10**9) -> None:
        super().__init__(Side.NEAR, Side.LINK, private_entry().up)
        self.supply = supply
        self.store = 0
        self.room = room
        self.finished = 0
        self.can_finish = True
        self.closed = False

    def fill(self) -> int:
        if not self.supply:
            self.readable = False
            return 0
        step = self.supply.pop(0)
        if isinstance(step, OSError):
            raise step
        if step == 0:
            self.end()
        self.store += step
        return step

    def drain(self) -> None:
        taken = min(self.store, self.room)
        self.store -= taken
        self.room -= taken
        if self.store:
            self.writable = False

    def finish(self) -> bool:
        if self.room < 0:
            raise OSError(errno.EPIPE, "Broken pipe")
        self.finished += 1
        return self.can_finish

    @property
    def holds(self) -> bool:
        return self.store > 0

    @property
    def has_room(self) -> bool:
        return self.store == 0

    def close(self) -> None:
        self.closed = True


def test_it_moves_until_the_source_is_dry() -> None:
    flow = Scripted([10, 20])
    assert flow.turn(1000000) is False
    assert (flow.moved, flow.holds, flow.done) == (30, False, False)


def test_the_end_is_passed_on_only_after_everything_else() -> None:
    flow = Scripted([10, 0], room=5)
    flow.turn(1000000)
    assert (flow.ended, flow.finished, flow.done) == (False, 0, False)
    flow.room, flow.writable = 5, True
    flow.turn(1000000)
    assert (flow.ended, flow.finished, flow.done) == (True, 1, True)
    assert flow.turn(1000000) is False


def test_an_end_that_cannot_be_told_yet_waits_for_room() -> None:
    flow = Scripted([0])
    flow.can_finish = False
    flow.turn(1000000)
    assert not flow.done
    assert not flow.writable
    flow.can_finish = flow.writable = True
    flow.turn(1000000)
    assert flow.done


def test_a_budget_ends_the_turn_and_tiny_pieces_are_charged_too() -> None:
    flow = Scripted([1] * 1000)
    assert flow.turn(40960) is True
    assert flow.moved == 10


def test_errors_name_their_side() -> None:
    with pytest.raises(StreamCut) as caught:
        Scripted([ConnectionResetError(errno.ECONNRESET, "x")]).turn(1000000)
    assert caught.value.side is Side.NEAR
    assert str(caught.value) == "near: Connection reset by peer"
    with pytest.raises(StreamCut) as caught:
        Scripted([0], room=-1).turn(1000000)
    assert caught.value.side is Side.LINK


def test_reason_of() -> None:
    assert reason_of(OSError(errno.ECONNABORTED, "our own words")) == "our own words"
    assert reason_of(OSError(errno.EPIPE, "asyncio's")) == reason(OSError(errno.EPIPE, ""))


class _Link:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True
        self.sock.close()


def pump() -> tuple[Pump, _Link, socket.socket]:
    plain, near = socket.socketpair()
    far, _other = socket.socketpair()
    _other.close()
    link = _Link(far)
    return Pump(Plain(plain), link, Scripted([]), Scripted([]), private_entry()), link, near  # type: ignore[arg-type]


def test_readiness_goes_to_the_right_flows() -> None:
    made, _link, near = pump()
    for flow in (made.up, made.down):
        flow.readable = flow.writable = False
    made.ready(Side.NEAR, select.EPOLLIN)
    assert (made.up.readable, made.up.writable, made.down.readable, made.down.writable) == (1, 0, 0, 0)
    made.ready(Side.LINK, select.EPOLLOUT)
    assert (made.up.writable, made.down.readable, made.down.writable) == (1, 0, 0)
    made.ready(Side.LINK, select.EPOLLRDHUP)
    assert (made.down.readable, made.down.writable) == (1, 0)
    made.ready(Side.NEAR, select.EPOLLHUP)
    assert made.down.writable
    made.close()
    near.close()


def test_what_is_known_already_asks_for_no_turn() -> None:
    """A unix socket tells each time that its peer has read; most often there was room before."""
    made, _link, near = pump()
    made.up.readable = made.down.writable = False
    both = select.EPOLLIN | select.EPOLLOUT
    assert made.ready(Side.NEAR, both)
    assert not made.ready(Side.NEAR, both)
    made.down.writable = False
    assert made.ready(Side.NEAR, both)
    made.close()
    near.close()


def test_delivered_is_what_the_peer_has_acknowledged() -> None:
    theirs, ours = tcp_pair()
    assert is_delivered(ours)
    ours.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
    sent = ours.send(bytes(300_000))
    assert not is_delivered(ours), "the peer's window is smaller"
    while sent > 0:
        sent -= len(theirs.recv(65536))
    wait_for(lambda: is_delivered(ours), "the last acknowledgement")
    ours.close()
    theirs.close()
    with socket.socket(socket.AF_UNIX) as unix:
        assert is_delivered(unix)


def test_closing_frees_the_stores_and_aborts_only_after_a_cut() -> None:
    made, link, near = pump()
    made.close()
    assert isinstance(made.up, Scripted)
    assert made.up.closed
    assert not link.aborted
    near.close()
    made, link, near = pump()
    made.cut = StreamCut(Side.LINK, OSError(errno.EPIPE, ""))
    assert made.over
    made.close()
    assert link.aborted
    near.close()


def test_is_writable_and_shutdown() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert is_writable(ours)
        ours.setblocking(False)
        while True:
            try:
                ours.send(bytes(65536))
            except BlockingIOError:
                break
        assert not is_writable(ours)
        shutdown_write(ours)
    shutdown_write(ours)  # closed: harmless
