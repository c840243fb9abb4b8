"""Whether a peer is gone: what the kernel is told, and what is made of its answers.

The kernel's side of it, lines that lose packets and dead ones, is in tests/machine.
"""

import itertools
import math
import select
import socket
import struct
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow.net import lines
from shadow.net.liveness import Watch, keep_probing, watch_for_death
from shadow.net.tcp import KEEPALIVE_MAX
from shadow.transport.channel import KEEPALIVE_MIN
from shadow.wire.timing import MISSED_MAX
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
    resent: int = 0
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
            info[0], info[2], info[3] = self.state, self.resent, self.probes
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


class Outage:
    """Data is under way both ways when the line goes away; keepalive 30, so the limit is 90."""

    def __init__(self, away: float, *, first: float = 0.2, lost: int = 0) -> None:
        """Nothing arrives until ``away``, nor do the first ``lost`` of what TCP sends after it.

        Args:
            away: seconds.
            first: seconds to the first retransmission; each time twice as many to the next.
            lost: how many.
        """
        distances = [min(first * 2**number, 120.0) for number in range(15)]
        self._tries = list(itertools.accumulate(distances))
        self._arrives = [when for when in self._tries if when > away][lost:]

    def survived(self, line: lines.Line | None, heard: list[float]) -> tuple[bool, float]:
        """Whether the stream was heard again, or else cut off, and when; others hear something meanwhile."""
        conn = Line(unacked=1)
        watch = Watch(conn, 0.0, probes_us=True)  # type: ignore[arg-type]
        now, words = 0.0, list(heard)
        while True:
            if self._arrives and now >= self._arrives[0]:
                return True, now
            conn.resent = sum(when <= now for when in self._tries)
            while words and words[0] <= now and line is not None:
                line.heard(words.pop(0), 30.0)
            if watch.is_dead(now, reading=True, line=line):
                return False, now
            now += watch.step


def session(away: float, phase: float, takes: float = 0.0) -> list[float]:
    """When a session is heard that says a word each 30 s, and is back ``takes`` seconds after an outage."""
    return [max(phase, away) + takes + 30.0 * number for number in range(20)]


@given(
    away=st.floats(0.5, 89.9),
    first=st.floats(0.2, 3.0),
    lost=st.integers(0, 2),
    phase=st.floats(0.0, 30.0),
    takes=st.floats(0.0, 14.0),
)
def test_no_outage_shorter_than_the_limit_ends_a_stream_that_waits_both_ways(
    away: float, first: float, lost: int, phase: float, takes: float
) -> None:
    """Though TCP notices late, and what it sends then is lost twice more: the robot's session is back."""
    line = lines.Line()
    line.heard(phase - 30.0, 30.0)
    survived, _when = Outage(away, first=first, lost=lost).survived(line, session(away, phase, takes))
    assert survived


@pytest.mark.parametrize("away", [57.0, 70.0, 89.0])
def test_without_a_word_from_the_robot_the_limit_holds(away: float) -> None:
    """Nobody knows its line, or its session is back from another address, or is not back."""
    for line in (None, lines.Line()):
        survived, when = Outage(away, first=0.22).survived(line, [])
        assert not survived
        assert 90 < when <= 1.25 * 90


@given(st.floats(0.0, 30.0), st.floats(0.2, 3.0))
def test_a_line_that_is_dead_ends_all_within_the_limit_and_a_quarter(ago: float, first: float) -> None:
    line = lines.Line()
    line.heard(-ago, 30.0)
    survived, when = Outage(1e6, first=first).survived(line, [])
    assert not survived
    assert 90 < when <= 1.25 * 90


@pytest.mark.parametrize("away", [10.0, 50.0, 60.0, 89.0])
def test_a_peer_that_has_gone_is_dead_when_three_tries_over_a_good_line_were_in_vain(away: float) -> None:
    line = lines.Line()
    survived, when = Outage(away, lost=15).survived(line, session(away, 3.0))
    assert not survived
    assert 90 < when <= 2 * max(away, 37.5) + 300


def test_tries_while_the_line_was_away_again_count_for_nothing() -> None:
    """TCP tries after 0.2, 0.6, …, 51, 102, 204.6 and 324.6 seconds: only then it is there."""
    line = lines.Line()
    line.heard(0.0, 30.0)
    away = [(0.0, 55.0), (65.0, 120.0), (190.0, 250.0)]
    there = [float(second) for second in range(400) if not any(a <= second < b for a, b in away)]
    survived, when = Outage(250.0).survived(line, there)
    assert (survived, when > 324) == (True, True)


def test_a_line_that_comes_and_goes_keeps_no_dead_stream_for_ever() -> None:
    """When it is back, what was tried before counts for nothing; a NAT may have forgotten the stream."""
    line, conn = lines.Line(), Line(unacked=0)
    watch = Watch(conn, 0.0, probes_us=True)  # type: ignore[arg-type]
    for second in range(5000):
        if second % 60 == 0:
            line.heard(float(second), 30.0)
        conn.probes, conn.since = min(second // 2, 255), 1000 * second
        if watch.is_dead(float(second), reading=True, line=line):
            break
        assert conn.timeout <= 1000 * (2 * watch.patience + 900)
    assert second == pytest.approx(watch.patience + 900, abs=2)


def test_an_idle_stream_that_was_not_heard_just_before_an_outage_outlives_it() -> None:
    """Its last probes were lost, so its silence is longer than the line's; the kernel has to wait, too."""
    line, conn = lines.Line(), Line(unacked=0)
    watch = Watch(conn, 0.0, probes_us=True)  # type: ignore[arg-type]
    for second in range(130):
        now = float(second)
        if second < 25 or second >= 112:
            line.heard(now, 30.0)
        conn.probes, conn.since = second // 2, 1000 * second
        dead = watch.is_dead(now, reading=True, line=line)
        if dead:
            break
        assert not conn.timeout or conn.timeout > conn.since
    # When the line is back, three more are tried; a peer that does not answer them has gone.
    assert 112 + 6 <= second <= 112 + 6 + 17


def test_a_question_for_room_that_is_lost_ends_nothing_while_the_line_is_there() -> None:
    """Two that wait for room from each other ask once in two minutes, longer than the limit."""
    line, conn = lines.Line(), Line(unsent=10, probes=1)
    watch = Watch(conn, 0.0, probes_us=True)  # type: ignore[arg-type]
    for second in range(3000):
        line.heard(float(second), 30.0)
        conn.probes = 1 + second // 120
        if watch.is_dead(float(second), reading=False, line=line):
            break
    assert 360 <= second <= 380


def test_what_a_stream_hears_its_line_has_heard() -> None:
    line, conn = lines.Line(), Line()
    watch = Watch(conn, 0.0, probes_us=True)  # type: ignore[arg-type]
    watch.is_dead(0.0, reading=True, line=line)
    assert line.times[1] == -math.inf, "it may have come at any time"
    conn.segments += 1
    watch.is_dead(1.0, reading=True, line=line)
    assert line.times[1] == 1.0


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
