"""Accepting, and when there is no room."""

import asyncio
import contextlib
import os
import resource
import socket

from bench.processes import free_port
from shadow.net.acceptor import Acceptor
from shadow.net.tcp import listen_tcp


def test_accepting_pauses_without_descriptors_and_recovers() -> None:
    async def body() -> None:
        (listener,) = listen_tcp(free_port(), ipv4=True, ipv6=False)
        accepted: list[socket.socket] = []
        exhausted: list[OSError] = []
        acceptor = Acceptor(listener, accepted.append, exhausted.append)
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
        # Fill the gaps below the limit too, or accept() would take them.
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, limits[1]))
        fillers = []
        try:
            with contextlib.suppress(OSError):  # EMFILE, in the end
                while True:
                    fillers.append(os.dup(0))
            while not exhausted:
                await asyncio.sleep(0.01)
            assert not accepted
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for descriptor in fillers:
                os.close(descriptor)
        async with asyncio.timeout(20):
            while len(accepted) < 3:
                await asyncio.sleep(0.01)
        assert len(exhausted) <= 2, "a pause must be a pause, not a busy loop"
        acceptor.close()
        for sock in [*accepted, *clients, listener]:
            sock.close()

    asyncio.run(body())


def test_a_held_acceptor_accepts_nobody_until_resumed() -> None:
    async def body() -> None:
        (listener,) = listen_tcp(free_port(), ipv4=True, ipv6=False)
        accepted: list[socket.socket] = []
        acceptor = Acceptor(listener, accepted.append, lambda _error: None)
        acceptor.hold()
        with socket.create_connection(listener.getsockname()):
            for _ in range(20):
                await asyncio.sleep(0)
            assert not accepted
            acceptor.resume()
            async with asyncio.timeout(20):
                while not accepted:
                    await asyncio.sleep(0.01)
        acceptor.close()
        accepted[0].close()
        listener.close()

    asyncio.run(body())
