"""Answering on listening sockets: a task for each who connects, and not too many at once."""

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable

from .listener import Acceptor


class Answerer(ABC):
    """Answers everybody who connects to its sockets."""

    def __init__(self, at_once: int) -> None:
        """Answer ``at_once`` at most; whoever else comes is hung up on."""
        self._at_once = at_once
        self._listening: list[tuple[socket.socket, Acceptor]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, sock: socket.socket, on_exhausted: Callable[[OSError], None]) -> None:
        """Answer on a listening socket; ``on_exhausted`` hears of it when accepting has to pause."""
        self._listening.append((sock, Acceptor(sock, self._accepted, on_exhausted)))

    async def close(self) -> None:
        """Answer nobody any more."""
        for sock, acceptor in self._listening:
            acceptor.close()
            sock.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, sock: socket.socket) -> None:
        if len(self._tasks) >= self._at_once:
            sock.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @abstractmethod
    async def _serve(self, sock: socket.socket) -> None:
        """Answer one, and close the socket."""
