"""Frames over a live connection: exact reading, release, and every way to lose it."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable

import pytest
from cryptography import x509

from shadow.errors import LocalError, LocalProtocolError, PeerError
from shadow.transport import link as links
from shadow.transport.channel import UNSENT_MAX, Channel, remembered
from shadow.transport.context import Ktls
from shadow.transport.link import KernelLink, Link
from shadow.wire.codec import encode
from shadow.wire.conversation import CONTROL, DATA, Party, State
from shadow.wire.frames import Dial, Frame, Hello, Ping, Pong, Start, Started, Welcome
from tests.support import DEADLINE, Authority, linked, tcp_pair
from tests.support.frame_end import FrameEnd


class Ends:
    """A server's channel and the bare link of the robot at its other end."""

    def __init__(self, server: Link, robot: Link) -> None:
        self.frames: list[Frame] = []
        self.losses: list[PeerError | None] = []
        self.robot = robot
        self.channel = Channel(server, Party.SERVER, self.frames.append, self.losses.append)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await asyncio.sleep(0.005)

    def say(self, *frames: Frame) -> None:
        self.robot.write(b"".join(map(encode, frames)))


def with_ends(authority: Authority, body: Callable[[Ends], Awaitable[None]]) -> None:
    async def run() -> None:
        ends = Ends(*await linked(authority, Ktls.OFF))
        try:
            await body(ends)
        finally:
            ends.channel.abort()
            ends.robot.sock.close()
            ends.channel.link.sock.close()

    asyncio.run(run())


HELLO = Hello(1, CONTROL, "011")


def test_frames_arrive_in_order(authority: Authority) -> None:
    async def body(ends: Ends) -> None:
        ends.say(HELLO)
        await ends.until(lambda: ends.frames == [HELLO])
        ends.channel.send(Welcome(1))
        pings = [Ping(float(number)) for number in range(50)]
        ends.say(*pings)
        await ends.until(lambda: ends.frames[1:] == pings)

    with_ends(authority, body)


def test_after_release_not_a_byte_is_touched(authority: Authority) -> None:
    async def body(ends: Ends) -> None:
        ends.say(Hello(1, DATA, "011"))
        await ends.until(lambda: ends.frames)
        ends.channel.send(Welcome(1))
        ends.channel.send(Start("", "1"))
        links: list[Link] = []
        ends.channel.on_frame = lambda _frame: links.append(ends.channel.release())
        ends.robot.write(encode(Started()) + b"the visitor's own")
        await ends.until(lambda: links)
        assert not ends.channel.live
        assert links[0].read(100) == b"the visitor's own"
        assert ends.losses == []

    with_ends(authority, body)


def test_an_orderly_end(authority: Authority) -> None:
    async def body(ends: Ends) -> None:
        ends.say(HELLO)
        ends.robot.send_close_notify()
        await ends.until(lambda: ends.losses)
        assert ends.losses == [None]
        assert ends.frames == [HELLO]
        assert not ends.channel.live

    with_ends(authority, body)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda link: link.sock.shutdown(socket.SHUT_WR), "connection lost: .*no close_notify"),
        (lambda link: link.abort(), "connection lost: Connection reset by peer"),
        (lambda link: link.sock.send(b"\x17\x03\x03\x00\x20" + bytes(32)), "connection lost: TLS: "),
        (lambda link: link.write(b"\x63\x00\x00\x02{}"), "unknown frame type 99"),
        (lambda link: link.write(encode(Started())), "Started from the robot while greeted"),
        (lambda link: (link.write(b"\x04\x00"), link.send_close_notify()), "middle of a frame"),
    ],
)
def test_every_way_to_lose_it(authority: Authority, spoil: Callable[[Link], object], complaint: str) -> None:
    async def body(ends: Ends) -> None:
        ends.say(HELLO)
        await ends.until(lambda: ends.frames)
        spoil(ends.robot)
        await ends.until(lambda: ends.losses)
        with pytest.raises(PeerError, match=complaint):
            raise ends.losses[0] or AssertionError
        assert ends.channel.link.sock.fileno() == -1, "the socket must be closed"
        ends.channel.send(Pong(1))  # harmless now

    with_ends(authority, body)


def test_a_peer_that_does_not_read_is_given_up(authority: Authority) -> None:
    async def body(ends: Ends) -> None:
        ends.say(HELLO)
        await ends.until(lambda: ends.frames)
        ends.channel.send(Welcome(1))
        sent = 0
        while ends.channel.live:
            ends.channel.send(Dial(1))
            sent += 1
            assert ends.channel.link.unsent < UNSENT_MAX + 256
            if sent % 1000 == 0:
                await asyncio.sleep(0)
        await ends.until(lambda: ends.losses)
        assert "does not read" in str(ends.losses[0])

    with_ends(authority, body)


@pytest.mark.long
def test_what_the_socket_does_not_take_at_once_follows(authority: Authority) -> None:
    async def body(ends: Ends) -> None:
        ends.say(HELLO)
        await ends.until(lambda: ends.frames)
        ends.channel.send(Welcome(1))
        count = 0
        while ends.channel.link.flushed:
            ends.channel.send(Dial(count))
            count += 1
        received = b""
        expected = encode(Welcome(1)) + b"".join(encode(Dial(number)) for number in range(count))

        def read() -> bool:
            nonlocal received
            with contextlib.suppress(BlockingIOError):
                while len(received) < len(expected):
                    received += ends.robot.read(2**20)
            return len(received) >= len(expected)

        await ends.until(read)
        assert received == expected
        assert ends.channel.link.flushed

    with_ends(authority, body)


def test_we_may_not_speak_out_of_turn_either(authority: Authority) -> None:
    async def body(ends: Ends) -> None:
        with pytest.raises(LocalProtocolError, match="Start from the server while opening"):
            ends.channel.send(Start("", "1"))
        await ends.until(lambda: ends.losses)
        assert str(ends.losses[0]) == "given up for a bug of ours: Start from the server while opening"

    with_ends(authority, body)


def test_openssls_state_cannot_be_left_to_another_process(authority: Authority) -> None:
    async def body(ends: Ends) -> None:
        with pytest.raises(LocalError, match="encryption in userspace ends with it"):
            _ = ends.channel.record

    with_ends(authority, body)


def test_another_process_goes_on_where_this_one_left(authority: Authority) -> None:
    crt, _key = authority.robot()
    certificate = x509.load_pem_x509_certificate(crt.read_bytes())

    async def body() -> None:
        near, far = tcp_pair()
        near.setblocking(False)
        far.setblocking(False)
        end = FrameEnd(far)
        frames: list[Frame] = []
        before = Channel(KernelLink(near, "a suite", [certificate]), Party.SERVER, frames.append, fail)
        await end.say(HELLO)
        async with asyncio.timeout(DEADLINE):
            while not frames:
                await asyncio.sleep(0.005)
        before.send(Welcome(1))
        assert isinstance(await end.hear(), Welcome)
        record = json.loads(json.dumps(before.record))
        copy = near.dup()
        before.leave()
        assert not before.live
        assert end.is_silent
        await end.say(Ping(1.0))

        its_link = links.remembered(copy, record)
        with pytest.raises(ValueError, match="is open and not standby"):
            remembered(its_link, record, Party.SERVER, State.STANDBY)
        after = remembered(its_link, record, Party.SERVER, State.OPEN)
        after.on_frame, after.on_lost = frames.append, fail
        async with asyncio.timeout(DEADLINE):
            while len(frames) < 2:
                await asyncio.sleep(0.005)
        assert frames == [HELLO, Ping(1.0)]
        assert after.link.suite == "a suite"
        assert after.link.certificate == certificate
        after.send(Pong(1.0))
        assert await end.hear() == Pong(1.0)
        after.abort()
        far.close()

    def fail(error: PeerError | None) -> None:
        raise AssertionError(error)

    asyncio.run(body())


def test_a_channel_that_retires_is_not_taken_for_one_that_broke(authority: Authority) -> None:
    """Whatever the peer said meanwhile: here START, which crosses the farewell."""

    async def body(ends: Ends) -> None:
        retiring, losses = ends.channel, list[PeerError | None]()
        peer = Channel(ends.robot, Party.ROBOT, lambda _frame: None, losses.append)
        retiring.retire(DEADLINE)
        ends.say(Start("", "1"))
        await ends.until(lambda: losses)
        assert losses == [None]
        assert not peer.live
        await ends.until(lambda: not retiring.live)
        assert (ends.frames, ends.losses) == ([], [])
        retiring.retire(DEADLINE)  # to no effect

    with_ends(authority, body)


def test_a_channel_that_retires_does_not_wait_for_ever(authority: Authority) -> None:
    async def body(ends: Ends) -> None:
        ends.channel.retire(0.01)
        await ends.until(lambda: not ends.channel.live)
        assert ends.losses == []

    with_ends(authority, body)


def test_one_that_breaks_while_it_is_paused_is_told_to_its_new_owner(authority: Authority) -> None:
    async def body(ends: Ends) -> None:
        lost: list[PeerError | None] = []
        ends.channel.pause()
        ends.channel._lose(PeerError("reset"))
        ends.channel.hear(print, lost.append)
        await ends.until(lambda: lost)
        assert str(lost[0]) == "connection lost"

    with_ends(authority, body)


def test_one_that_is_paused_costs_nothing(authority: Authority) -> None:
    """What the peer has said is there all the time, and nobody asks for it."""

    async def body(ends: Ends) -> None:
        ends.channel.pause()
        ends.say(HELLO)
        assert not asyncio.get_running_loop().remove_reader(ends.channel.link.sock)
        ends.channel.hear(ends.frames.append, ends.losses.append)
        await ends.until(lambda: ends.frames == [HELLO])
        ends.channel.send(Welcome(1))
        ends.say(Ping(1.0))
        await ends.until(lambda: ends.frames == [HELLO, Ping(1.0)])

    with_ends(authority, body)
