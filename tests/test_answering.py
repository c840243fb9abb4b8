"""Answering: so many at once, and nobody any more when it is closed."""

import asyncio
import socket
from collections.abc import Callable

import pytest

from shadow.answering import Answerer
from tests.support import DEADLINE


class Waiter(Answerer):
    """Says hello, and waits for ever."""

    async def _serve(self, sock: socket.socket) -> None:
        with sock:
            await asyncio.get_running_loop().sock_sendall(sock, b"hello")
            await asyncio.Event().wait()


def hear(port: int) -> tuple[socket.socket, bytes]:
    sock = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
    return sock, sock.recv(100)


def answered(at_once: int, visit: Callable[[int], list[socket.socket]]) -> None:
    """Run ``visit``, which blocks; whoever it returns must have been hung up on at the end."""

    async def scenario() -> list[socket.socket]:
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        waiter = Waiter(at_once)
        waiter.listen(listening, lambda _error: None)
        try:
            return await asyncio.to_thread(visit, listening.getsockname()[1])
        finally:
            await waiter.close()
            assert listening.fileno() == -1

    for sock in asyncio.run(scenario()):
        with sock:
            assert sock.recv(100) == b""


@pytest.mark.parametrize("at_once", [0, 1, 3])
def test_so_many_at_once_and_none_after_the_end(at_once: int) -> None:
    def visit(port: int) -> list[socket.socket]:
        heard = [hear(port) for _ in range(4)]
        assert [data for _sock, data in heard] == [b"hello"] * at_once + [b""] * (4 - at_once)
        for sock, _data in heard[at_once:]:
            sock.close()
        return [sock for sock, _data in heard[:at_once]]

    answered(at_once, visit)
