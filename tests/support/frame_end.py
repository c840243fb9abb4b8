"""One end of a connection that speaks frames, by hand and without TLS."""

import asyncio
import contextlib
import socket

from shadow.wire.codec import Decoder, encode
from shadow.wire.frames import Frame
from tests.support import DEADLINE


class FrameEnd:
    """Says and hears frames on a non-blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._decoder = Decoder()

    async def say(self, *frames: Frame) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, b"".join(map(encode, frames)))

    async def hear(self) -> Frame:
        async with asyncio.timeout(DEADLINE):
            while True:
                data = await asyncio.get_running_loop().sock_recv(self.sock, self._decoder.wanted)
                assert data, "the other end hung up"
                frame = self._decoder.feed(data)
                if frame is not None:
                    return frame

    async def hears_the_end(self) -> None:
        async with asyncio.timeout(DEADLINE):
            with contextlib.suppress(ConnectionResetError):
                while await asyncio.get_running_loop().sock_recv(self.sock, 4096):
                    pass

    @property
    def is_silent(self) -> bool:
        """Neither a word nor an end has come."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False
