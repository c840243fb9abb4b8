"""Whether a peer is gone: what the kernel is told, and what is made of its answers.

The kernel's side of it, lines that lose packets and dead ones, is in tests/machine.
"""

import math
import select
import socket
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow.channel import KEEPALIVE_MAX, KEEPALIVE_MIN
from shadow.liveness import Watch, keep_probing, watch_for_death
from shadow.protocol import MISSED_MAX
from tests.support import tcp_pair

PROBING = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)


def options(sock: socket.socket, *names: int) -> list[int]:
    return [sock.getsockopt(socket.IPPROTO_TCP, name) for name in names]


@given(st.floats(KEEPALIVE_MIN, KEEPALIVE_MAX))
def test_no_outage_shorter_than_the_limit_ends_an_idle_stream_and_all_longer_ones_do(interval: float) -> None:
    with socket.socket() as sock:
        keep_probing(sock, interval)
        idle, between, count = options(sock, *PROBING)
    limit = MISSED_MAX * interval
    # The line may go away when the peer was just heard, or just before the first probe is sent.
    latest, earliest = idle + between * count, between * count
    assert earliest - limit >= between * 0.999, "a probe after the end of the longest outage"
    assert latest <= (1.25 * limit if interval >= 4 else limit + 3)


def test_many_probes_for_one_may_be_lost() -> None:
    with socket.socket() as sock:
        keep_probing(sock, 30)
        assert options(sock, *PROBING) == [15, 1, 91]
        keep_probing(sock, 5)
        assert options(sock, *PROBING) == [2, 1, 16]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_frames_have_a_limit_of_their_own() -> None:
    with socket.socket() as sock:
        watch_for_death(sock, 10.4)
        assert options(sock, socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE) == [30000, 5]
        watch_for_death(sock, 0.1)
        assert options(sock, socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE) == [3000, 1]


@dataclass
class Line:
    """A connection with keepalive 30 of which TCP_INFO tells whatever the test wants."""

    state: int = 1
    probes: int = 0
    unacked: int = 0
    segments: int = 7
    unsent: int = 0
    timeout: int = 0
    probed: int = 0
    since: int = 0

    def getsockopt(self, _level: int, name: int, size: int = 0) -> bytes | int:
        if name == socket.TCP_INFO:
            info = bytearray(size)
            info[0], info[3] = self.state, self.probes
            for offset, value in (
                (24, self.unacked),
                (52, 10**6),
                (56, self.since),
                (140, self.segments),
                (144, self.unsent),
            ):
                struct.pack_into("=I", info, offset, value)
            return bytes(info)
        return [15, 1, 91, self.timeout][[*PROBING, socket.TCP_USER_TIMEOUT].index(name)]

    def setsockopt(self, _level: int, name: int, value: int) -> None:
        if name == socket.TCP_KEEPIDLE:
            assert value == 15
            self.probed += 1
        else:
            assert name == socket.TCP_USER_TIMEOUT
            self.timeout = value


def death(line: Line, *, probes_us: bool = True, reading: bool = True, until: float = 1000.0) -> float:
    """When the peer counts as dead, if nothing changes any more."""
    watch = Watch(line, 0.0, probes_us=probes_us)  # type: ignore[arg-type]
    now = 0.0
    while now < until:
        if watch.is_dead(now, reading=reading):
            return now
        now += watch.step
    return math.inf


def test_unanswered_probes_are_not_counted_again_before_one_is_answered() -> None:
    """The peer's own probe says that it is there, and does not answer ours."""
    line = Line()
    watch = Watch(line, 0.0, probes_us=True)  # type: ignore[arg-type]
    for second in range(90):
        watch.is_dead(float(second), reading=True)
    line.probes, line.segments, line.since = 100, line.segments + 1, 95_000
    probed = line.probed
    watch.is_dead(90.0, reading=True)
    assert line.timeout == 1000 * watch.patience + 95_000, "it was heard just now"
    assert line.probed == probed + 1
    line.probes, line.segments = 0, line.segments + 1
    watch.is_dead(91.0, reading=True)
    assert line.timeout == 0


@pytest.mark.parametrize("state", [6, 7])  # TIME_WAIT, CLOSE
def test_nobody_has_to_say_anything_when_all_has_been_said(state: int) -> None:
    """And the visitor may still take its time to read it."""
    assert death(Line(state=state)) == math.inf


def test_an_idle_connection_is_probed_more_often_than_the_kernel_would() -> None:
    """It counts whole seconds, and of two probes both may be lost."""
    line = Line()
    assert 90 < death(line) <= 1.25 * 90
    assert 40 < line.probed < 60
    line.segments += 1
    watch = Watch(line, 0.0, probes_us=True)  # type: ignore[arg-type]
    watch.is_dead(0.0, reading=True)
    assert line.timeout == 0


@pytest.mark.parametrize(
    ("line", "probes_us", "reading"),
    [
        (Line(), True, False),
        (Line(), False, False),
        (Line(unacked=3), True, True),
        (Line(unacked=3), False, False),
        (Line(unsent=10), True, True),  # it may say something at any time, and is expected to
        (Line(unsent=10, probes=1), True, False),
        (Line(unsent=10, probes=1), False, True),
    ],
)
def test_one_that_owes_us_something_is_dead_after_the_limit(
    line: Line,
    probes_us: bool,  # noqa: FBT001
    reading: bool,  # noqa: FBT001
) -> None:
    assert 90 < death(line, probes_us=probes_us, reading=reading) <= 1.25 * 90


@pytest.mark.parametrize(("probes_us", "reading"), [(True, False), (False, True), (False, False)])
def test_a_peer_that_takes_its_time_is_not_dead(probes_us: bool, reading: bool) -> None:  # noqa: FBT001
    assert death(Line(unsent=10), probes_us=probes_us, reading=reading) == math.inf


def test_whatever_comes_is_life() -> None:
    line = Line(unacked=1)
    watch = Watch(line, 0.0, probes_us=True)  # type: ignore[arg-type]
    for second in range(0, 1050, 3):
        line.segments += second % 90 == 0
        assert not watch.is_dead(float(second), reading=True)
    assert line.timeout == 0, "of data under way the kernel knows no good end"


def test_the_clock_begins_when_an_answer_is_due() -> None:
    """The persist timer asks once in two minutes: a silence before that counts for nothing."""
    line = Line(unsent=10)
    watch = Watch(line, 0.0, probes_us=True)  # type: ignore[arg-type]
    for second in range(0, 120, 3):
        assert not watch.is_dead(float(second), reading=False)
    line.probes = 1
    assert not watch.is_dead(120.0, reading=False)
    assert not watch.is_dead(210.0, reading=False)
    assert watch.is_dead(240.0, reading=False)


def test_what_the_daemon_before_has_left_is_taken_back() -> None:
    line = Line(timeout=93000)
    Watch(line, 0.0, probes_us=True).is_dead(0.0, reading=True)  # type: ignore[arg-type]
    assert line.timeout == 0


def test_a_real_connection_with_a_closed_window() -> None:
    """As the kernel tells it: something in the queue, nothing under way, and every question answered."""
    theirs, ours = tcp_pair()
    with ours, theirs:
        ours.setblocking(False)
        full = 0
        while full < 3:  # until nothing moves any more
            try:
                ours.send(bytes(65536))
                full = 0
            except BlockingIOError:
                full += 1
                select.select([], [ours], [], 0.2)
        for now in (0.0, 1e6):
            watch = Watch(ours, 0.0, probes_us=False)
            assert not watch.is_dead(now, reading=True)
        watch = Watch(ours, 0.0, probes_us=True)
        watch.is_dead(0.0, reading=True)
        assert watch.is_dead(1e6, reading=True)  # it should have said something meanwhile
