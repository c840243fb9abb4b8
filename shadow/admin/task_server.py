"""Answering on listening sockets: a task for each connection, and not too many at once."""

import asyncio
import logging
import socket
from abc import ABC, abstractmethod

from .. import events
from ..net.acceptor import Acceptor
from ..net.address import source_of
from ..net.unix import peer_credentials
from ..server.descriptors import Descriptors
from .seats import Guest, Seats

_SILENCE = 60.0  # seconds between two lines of the log about crowds


class TaskServer(ABC):
    """Answers everybody who connects to its sockets.

    Attributes:
        seats: who is being answered; see ``seats.Seats``.
    """

    def __init__(self, what: str, at_once: int) -> None:
        """Answer at most ``at_once``; ``what`` they are, for the log."""
        self.seats = Seats(at_once)
        self._what = what
        self._at_once = at_once
        self._listening: list[tuple[socket.socket, Acceptor]] = []
        self._tasks: dict[Guest, asyncio.Task[None]] = {}
        self._quiet_until = 0.0
        self._sent_away = 0

    def listen(self, sock: socket.socket, descriptors: Descriptors) -> None:
        """Answer on a listening socket; ``descriptors`` hear of each connection, and when there are none."""
        acceptor = Acceptor(sock, self._accepted, descriptors.ran_out, descriptors.for_caller)
        self._listening.append((sock, acceptor))

    async def close(self) -> None:
        """Stop answering."""
        for sock, acceptor in self._listening:
            acceptor.close()
            sock.close()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accepted(self, sock: socket.socket) -> None:
        try:
            guest = guest_of(sock)
        except OSError:  # it has left
            sock.close()
            return
        leaver = self.seats.came(guest)
        if leaver is not None and self._at_once:
            self._crowded(leaver)
        if leaver is guest:
            sock.close()
            return
        if leaver is not None:
            self._tasks[leaver].cancel()
        task = asyncio.get_running_loop().create_task(self._serve(guest, sock))
        self._tasks[guest] = task
        # Not in the task itself: it may be cancelled before it has begun.
        task.add_done_callback(lambda _task: self._answered(guest, sock))

    def _answered(self, guest: Guest, sock: socket.socket) -> None:
        self.seats.left(guest)
        del self._tasks[guest]
        sock.close()

    def _crowded(self, leaver: Guest) -> None:
        """Log it, but only once in a while: others decide how often it happens."""
        self._sent_away += 1
        now = asyncio.get_running_loop().time()
        if now < self._quiet_until:
            return
        self._quiet_until = now + _SILENCE
        text = f"all {self._at_once} places for {self._what} are taken; {leaver.source} loses one"
        if self._sent_away > 1:
            text += f" ({self._sent_away} times since this was said last)"
        self._sent_away = 0
        events.log(events.CallersCrowded(), logging.WARNING, text)

    @abstractmethod
    async def _serve(self, guest: Guest, sock: socket.socket) -> None:
        """Answer one guest; the caller closes the socket afterwards."""


def guest_of(sock: socket.socket) -> Guest:
    """Who has connected: on a unix socket a user, with priority for root; else an address.

    Raises:
        OSError: it has left.
    """
    if sock.family == socket.AF_UNIX:
        _pid, uid, _gid = peer_credentials(sock)
        return Guest(f"uid {uid}", first=uid == 0)
    return Guest(source_of(sock.getpeername()[0]))
