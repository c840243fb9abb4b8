"""Userspace TLS in the relay: what backpressure keeps, and what was read together with the last frame."""

import contextlib
import errno
import socket

from shadow.relay.flow import CALL_COST, TURN_BUDGET, Side, StreamCut
from shadow.relay.userspace import Scratch, make_pump
from tests.support import Authority, random_bytes, read_some, userspace_linked, wait_for, write_all


def test_what_openssl_has_already_read_is_not_forgotten(authority: Authority) -> None:
    """The frame before the stream and the stream's first bytes arrive in one segment."""
    server, robot = userspace_linked(authority)
    robot.write(b"FRAMEbytes of the visitor")
    assert read_some(server, 5) == b"FRAME"
    near, plain = socket.socketpair()
    plain.setblocking(False)
    pump = make_pump(plain, server, Scratch())
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
    pump = make_pump(plain, server, Scratch())
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
        pump = make_pump(plain, ours, Scratch())
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
    pump = make_pump(plain, server, Scratch())
    link = f"<UserspaceLink with 127.0.0.1:{robot.sock.getsockname()[1]}>"
    assert repr(pump) == f"<Pump <plain to link moving, 0 bytes> <link to plain moving, 0 bytes>, {link}>"
    near.sendall(b"12345")
    pump.turn()
    waits = "5 bytes, source empty> <link to plain moving, 0 bytes, source empty>"
    assert repr(pump) == f"<Pump <plain to link moving, {waits}, {link}>"
    near.shutdown(socket.SHUT_WR)
    pump.up.writable = False
    pump.up.end()
    assert repr(pump.up) == "<plain to link draining, 5 bytes, sink full>"
    pump.up.writable = True
    pump.turn()
    assert repr(pump.up) == "<plain to link done, 5 bytes>"
    pump.kept = True  # which this one would not be
    pump.cut = StreamCut(Side.LINK, ConnectionResetError(errno.ECONNRESET, "x"))
    pump.close()
    done = "<plain to link done, 5 bytes> <link to plain moving, 0 bytes, source empty>"
    cut = "cut by link: Connection reset by peer, kept"
    assert repr(pump) == f"<Pump {done}, {cut}, <UserspaceLink that is gone>>"
    near.close()
    robot.sock.close()
