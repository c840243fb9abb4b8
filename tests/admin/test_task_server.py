"""Answering: so many at once, and nobody any more when it is closed."""

import asyncio
import os
import socket
from collections.abc import Callable

import pytest

from shadow import events
from shadow.admin import task_server
from shadow.admin.seats import Guest
from shadow.admin.task_server import TaskServer, guest_of
from tests.support import DEADLINE, PLENTY, tcp_pair
from tests.support.log import Said


class Waiter(TaskServer):
    """Says hello, and waits for ever."""

    busy = True

    async def _serve(self, guest: Guest, sock: socket.socket) -> None:
        self.seats.stirred(guest, busy=self.busy)
        await asyncio.get_running_loop().sock_sendall(sock, b"hello")
        await asyncio.Event().wait()


class Listener(Waiter):
    """Lets others speak."""

    busy = False


def hear(port: int) -> tuple[socket.socket, bytes]:
    sock = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE)
    return sock, sock.recv(100)


def answered(at_once: int, visit: Callable[[int], list[socket.socket]], kind: type[Waiter] = Waiter) -> None:
    """Run ``visit``, which blocks; whoever it returns must have been hung up on at the end."""

    async def scenario() -> list[socket.socket]:
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        waiter = kind("waiters", at_once)
        waiter.listen(listening, PLENTY)
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


def test_who_is_silent_gives_way_to_who_comes(said: Said) -> None:
    """However many come: each is heard, and the log says so once."""

    def visit(port: int) -> list[socket.socket]:
        heard = [hear(port) for _ in range(10)]
        assert [data for _sock, data in heard] == [b"hello"] * 10
        for sock, _data in heard[:8]:
            assert sock.recv(100) == b""
            sock.close()
        return [sock for sock, _data in heard[8:]]

    answered(2, visit, Listener)
    assert said == [
        (events.CallersCrowded, "all 2 places for waiters are taken; 127.0.0.1 loses one"),
    ]


def test_the_log_says_how_many_had_to_leave(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        waiter = Waiter("waiters", 0)
        for _ in range(5):
            waiter._crowded(Guest("uid 7"))
        monkeypatch.setattr(task_server, "_SILENCE", 0.0)
        waiter._quiet_until = 0.0
        waiter._crowded(Guest("uid 8"))

    asyncio.run(scenario())
    assert [text for _event, text in said] == [
        "all 0 places for waiters are taken; uid 7 loses one",
        "all 0 places for waiters are taken; uid 8 loses one (5 times since this was said last)",
    ]


def test_whose_a_connection_is() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        guest = guest_of(ours)
        assert (guest.source, guest.first) == (f"uid {os.getuid()}", os.getuid() == 0)
    near, far = tcp_pair()
    with near, far:
        assert (guest_of(near).source, guest_of(near).first) == ("127.0.0.1", False)
