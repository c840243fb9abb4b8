"""Userspace TLS in the relay: what backpressure keeps, and what was read together with the last frame."""

import contextlib
import errno
import socket

import pytest

from shadow.relay.ends import Plain, Side
from shadow.relay.flow import CALL_COST, TURN_BUDGET, StreamCut
from shadow.relay.userspace import Scratch, make_pump
from shadow.transport import ktls
from shadow.transport.link import KernelLink
from tests.support import (
    DEADLINE,
    Authority,
    random_bytes,
    read_some,
    tcp_pair,
    userspace_linked,
    wait_for,
    write_all,
)


def test_what_openssl_has_already_read_is_not_forgotten(authority: Authority) -> None:
    """The frame before the stream and the stream's first bytes arrive in one segment."""
    server, robot = userspace_linked(authority)
    robot.write(b"FRAMEbytes of the visitor")
    assert read_some(server, 5) == b"FRAME"
    near, plain = socket.socketpair()
    plain.setblocking(False)
    pump = make_pump(Plain(plain), server, Scratch())
    pump.turn()  # no event from epoll: the socket is empty
    assert near.recv(100) == b"bytes of the visitor"
    assert pump.down.moved == len(b"bytes of the visitor")
    pump.close()
    near.close()
    robot.sock.close()


def test_a_full_sink_stops_the_source(authority: Authority) -> None:
    server, robot = userspace_linked(authority)
    near, plain = socket.socketpair()
    plain.setblocking(False)
    near.setblocking(False)
    pump = make_pump(Plain(plain), server, Scratch())
    data = random_bytes(30_000_000, 1)
    sent, moved = 0, -1
    while moved != pump.up.moved:
        moved = pump.up.moved
        with contextlib.suppress(BlockingIOError):
            sent += near.send(data[sent : sent + 1_000_000])
        pump.up.readable = True
        pump.turn()
    assert pump.up.holds
    assert not pump.up.writable
    assert moved < len(data)
    received = b""
    while len(received) < pump.up.moved:
        received += read_some(robot)
        pump.up.writable, pump.up.readable = True, False
        pump.turn()
    assert received == data[: len(received)]
    pump.close()
    near.close()
    robot.sock.close()


def test_tiny_records_are_charged_and_bounded(authority: Authority) -> None:
    """What a peer sends in records of one byte must not hold up the other streams of the thread."""
    near, plain = socket.socketpair()
    ours, far = userspace_linked(authority)
    with near, plain:
        near.setblocking(False)
        plain.setblocking(False)
        pump = make_pump(Plain(plain), ours, Scratch())
        sent = b"".join(b"%d" % (number % 10) for number in range(2000))
        for number in sent:
            write_all(far, bytes([number]))
        wait_for(lambda: len(ours.sock.recv(10**6, socket.MSG_PEEK)) == 30 * len(sent), "all of them")
        received, turns = b"", 0
        while len(received) < len(sent):
            more = pump.down.turn(TURN_BUDGET)
            with contextlib.suppress(BlockingIOError):
                while part := near.recv(10**6):
                    assert len(part) <= TURN_BUDGET // CALL_COST
                    received += part
            turns += 1
            assert more or received == sent
        assert received == sent
        assert turns >= len(sent) * CALL_COST / TURN_BUDGET
        ours.sock.close()
        far.sock.close()


def test_a_streams_life_in_its_own_words(authority: Authority) -> None:
    """Moving, draining, done, in each direction by itself; then the rest of the world."""
    server, robot = userspace_linked(authority)
    near, plain = socket.socketpair()
    plain.setblocking(False)
    pump = make_pump(Plain(plain), server, Scratch())
    link = f"<UserspaceLink with 127.0.0.1:{robot.sock.getsockname()[1]}>"
    assert repr(pump) == f"<Pump <near to link moving, 0 bytes> <link to near moving, 0 bytes>, {link}>"
    near.sendall(b"12345")
    pump.turn()
    waits = "5 bytes, source empty> <link to near moving, 0 bytes, source empty>"
    assert repr(pump) == f"<Pump <near to link moving, {waits}, {link}>"
    near.shutdown(socket.SHUT_WR)
    pump.up.writable = False
    pump.up.end()
    assert repr(pump.up) == "<near to link draining, 5 bytes, sink full>"
    pump.up.writable = True
    pump.turn()
    assert repr(pump.up) == "<near to link done, 5 bytes>"
    pump.kept = True  # which this one would not be
    pump.cut = StreamCut(Side.LINK, ConnectionResetError(errno.ECONNRESET, "x"))
    pump.close()
    done = "<near to link done, 5 bytes> <link to near moving, 0 bytes, source empty>"
    cut = "cut by link: Connection reset by peer, kept"
    assert repr(pump) == f"<Pump {done}, {cut}, <UserspaceLink that is gone>>"
    near.close()
    robot.sock.close()


class Mixed:
    """``kernel`` ─ a link of the kernel's, which plain TCP plays │ one of OpenSSL's ═ ``openssl``."""

    def __init__(self, authority: Authority) -> None:
        inner, self.kernel = tcp_pair()
        ours, self.openssl = userspace_linked(authority)
        for sock in (inner, self.kernel):
            sock.setblocking(False)
        self.pump = make_pump(KernelLink(inner, "a suite", []), ours, Scratch())
        self.up, self.down = random_bytes(12_000_000, 1), random_bytes(12_000_000, 2)
        self._sent = self._written = 0

    def write(self) -> int:
        """As much as goes; how much has gone."""
        with contextlib.suppress(BlockingIOError):
            while self._sent < len(self.up):
                self._sent += self.kernel.send(self.up[self._sent : self._sent + 300_000])
        self.openssl.flush()
        while self.openssl.flushed and self._written < len(self.down):
            self.openssl.write(self.down[self._written : self._written + 65536])
            self._written += 65536
        return self._sent + self._written

    def turn(self) -> bool:
        """Move what can be moved, which nothing tells us; whether that was the end of one direction."""
        for flow in (self.pump.up, self.pump.down):
            flow.readable = flow.writable = True
        while self.pump.turn():
            pass
        assert self.pump.cut is None
        return self.pump.up.done or self.pump.down.done

    def read(self) -> bytes:
        """What comes at OpenSSL's peer, while it is moved there."""

        def some() -> list[bytes]:
            self.turn()
            with contextlib.suppress(BlockingIOError):
                return [self.openssl.read(10**6)]
            return []

        (data,) = wait_for(some, "data")
        return bytes(data)

    def close(self) -> None:
        self.pump.close()
        self.kernel.close()
        self.openssl.sock.close()


def test_between_the_kernel_and_openssl(authority: Authority) -> None:
    """Both ways; nobody reads until nobody can write any more."""
    mixed, written = Mixed(authority), -1
    while written != (written := mixed.write()):
        mixed.turn()
    for flow in (mixed.pump.up, mixed.pump.down):
        assert flow.holds
        assert not flow.writable
        assert flow.moved < len(mixed.up)
    at_openssl, at_kernel = bytearray(), bytearray()
    while len(at_openssl) < len(mixed.up) or len(at_kernel) < len(mixed.down):
        mixed.write()
        mixed.turn()
        with contextlib.suppress(BlockingIOError):
            at_openssl += mixed.openssl.read(10**6)
        with contextlib.suppress(BlockingIOError):
            at_kernel += mixed.kernel.recv(10**6)
    assert at_openssl == mixed.up
    assert at_kernel == mixed.down
    assert (mixed.pump.up.moved, mixed.pump.down.moved) == (len(mixed.up), len(mixed.down))
    mixed.close()


def test_an_end_waits_for_what_openssl_has_encrypted_already(authority: Authority) -> None:
    """The pipe may be empty by then, while the sink has not taken everything."""
    mixed = Mixed(authority)
    up = mixed.pump.up
    sent = 0
    while up.writable:
        with contextlib.suppress(BlockingIOError):
            sent += mixed.kernel.send(mixed.up[sent : sent + 10_000])
        up.readable = True
        mixed.pump.turn()
    up.end()  # whatever is still on its way into the pipe
    received = bytearray()
    while part := mixed.read():
        received += part
    assert received == mixed.up[: up.moved]
    assert up.done
    mixed.close()


def test_each_is_told_of_an_end_in_its_own_way(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    alerts: list[bytes] = []
    monkeypatch.setattr(ktls, "send_alert", lambda _sock, alert: alerts.append(alert))
    mixed = Mixed(authority)
    mixed.openssl.send_close_notify()
    wait_for(mixed.turn, "the end to be passed on")
    assert mixed.pump.down.done
    assert alerts == [ktls.ALERT_CLOSE_NOTIFY]
    mixed.kernel.settimeout(DEADLINE)
    assert mixed.kernel.recv(1) == b""
    assert not mixed.pump.up.ended
    mixed.pump.up.end()  # what close_notify of the kernel's link does
    mixed.turn()
    assert read_some(mixed.openssl) == b""
    assert mixed.pump.passed_on
    mixed.close()
