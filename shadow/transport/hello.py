"""The first frames on a connection, on both sides: HELLO, then WELCOME or REFUSED."""

import asyncio
import contextlib

from ..errors import PeerError, Refused
from ..wire.conversation import Party
from ..wire.frames import PROTOCOL_VERSION, Frame, Hello, Refusal, Welcome
from .channel import Channel
from .link import Link


async def greet(
    link: Link,
    hello: Hello,
    timeout: float,  # noqa: ASYNC109
    us: Party = Party.ROBOT,
) -> tuple[Channel, Welcome]:
    """Say HELLO, and wait for WELCOME.

    Args:
        link: the connection that we have dialled.
        hello: what to say.
        timeout: seconds for the answer.
        us: who we are.

    Returns:
        The channel, and what the server said. The channel is paused: START may come right behind WELCOME, and
        must not be read before the new owner calls ``hear``.

    Raises:
        Refused: the server refused us.
        PeerError: the connection broke, or it took too long.
    """
    answer: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()

    def on_frame(frame: Frame) -> None:
        if answer.done():
            return
        if isinstance(frame, Refusal):
            answer.set_exception(Refused(frame.code, frame.text, frame.retry))
        elif isinstance(frame, Welcome) and frame.version != PROTOCOL_VERSION:
            answer.set_exception(PeerError(f"the server speaks protocol version {frame.version}"))
        elif isinstance(frame, Welcome):
            channel.pause()
            answer.set_result(frame)

    def on_lost(error: PeerError | None) -> None:
        if not answer.done():
            answer.set_exception(error or PeerError("the server hung up"))

    channel = Channel(link, us, on_frame, on_lost)
    try:
        channel.send(hello)
        # Not wait_for() or timeout(): on a machine that stood still, both would discard an answer received.
        await asyncio.wait([answer], timeout=timeout)
        if not answer.done():
            raise PeerError(f"no WELCOME within {timeout:g} s")
        return channel, answer.result()
    except BaseException:
        channel.abort()
        with contextlib.suppress(Exception):
            answer.exception()  # nobody else asks for it
        raise


async def hear_hello(link: Link, us: Party = Party.SERVER) -> tuple[Channel, Hello]:
    """Wait for HELLO; ``us``: who we are.

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

    channel = Channel(link, us, on_frame, on_lost)
    try:
        return channel, await first
    except BaseException:
        channel.abort()
        with contextlib.suppress(Exception):
            first.exception()
        raise
