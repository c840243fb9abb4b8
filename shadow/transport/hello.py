"""The first words on a connection, as the robot says and hears them: HELLO, and WELCOME or REFUSED."""

import asyncio
import contextlib
from collections.abc import Callable

from ..errors import PeerError, Refused
from ..wire.conversation import Party
from ..wire.frames import PROTOCOL_VERSION, Frame, Hello, Refusal, Welcome
from .channel import Channel
from .link import Link

OnWelcome = Callable[[Channel, Welcome], None]


async def greet(link: Link, hello: Hello, welcomed: OnWelcome, timeout: float) -> None:  # noqa: ASYNC109
    """Say HELLO, wait for WELCOME and call ``welcomed`` with it.

    It is called as the frame is read, not when this coroutine comes around: START may be right behind
    WELCOME, and must find the channel with its new owner.

    Raises:
        Refused: the server said no.
        PeerError: the connection broke, or it took too long.
    """
    answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_frame(frame: Frame) -> None:
        if isinstance(frame, Refusal) and not answer.done():
            answer.set_exception(Refused(frame.code, frame.text, frame.retry))
        elif isinstance(frame, Welcome) and frame.version != PROTOCOL_VERSION:
            answer.set_exception(PeerError(f"the server speaks protocol version {frame.version}"))
        elif isinstance(frame, Welcome) and not answer.done():
            answer.set_result(None)
            welcomed(channel, frame)

    def on_lost(error: PeerError | None) -> None:
        if not answer.done():
            answer.set_exception(error or PeerError("the server hung up"))

    channel = Channel(link, Party.ROBOT, on_frame, on_lost)
    try:
        channel.send(hello)
        # Not wait_for() or timeout(): both may come too late by the time that `welcomed` has been called.
        await asyncio.wait([answer], timeout=timeout)
        if not answer.done():
            raise PeerError(f"no WELCOME within {timeout:g} s")
        answer.result()
    finally:
        if not (answer.done() and not answer.cancelled() and answer.exception() is None):
            channel.abort()


async def hear_hello(link: Link) -> tuple[Channel, Hello]:
    """Wait for HELLO.

    Raises:
        PeerError: something else came, or the connection broke.
    """
    first: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()

    def on_frame(frame: Frame) -> None:
        if not first.done() and isinstance(frame, Hello):
            first.set_result(frame)

    def on_lost(error: PeerError | None) -> None:
        if not first.done():
            first.set_exception(error or PeerError("the peer hung up before HELLO"))

    channel = Channel(link, Party.SERVER, on_frame, on_lost)
    try:
        return channel, await first
    except BaseException:
        channel.abort()
        with contextlib.suppress(Exception):
            first.exception()
        raise
