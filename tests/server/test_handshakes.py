"""Where robots come in: how many a second, and what becomes of a crowd."""

import asyncio
import contextlib
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.errors import HandshakeError
from shadow.net.networks import parse_networks
from shadow.pki.certificates import Purpose
from shadow.server import handshakes
from shadow.server.descriptors import Descriptors
from shadow.server.handshakes import Handshakes
from shadow.transport import handshake as tls_handshake
from shadow.transport.link import Link
from tests.support import DEADLINE, Authority, Tunnel, settings, wait_for
from tests.support.peer import WELCOME, Peer, client_context, still_works


def test_so_many_a_second(tunnel: Tunnel) -> None:
    """One a second: the third has to wait for more than a second, and all are served."""
    tunnel.start_server("--max-handshake-rate=1")
    context = client_context(tunnel.authority, tunnel.authority.robot())
    for _ in range(3):
        with Peer(tunnel.port, context) as peer:
            assert peer.hello()[0] == WELCOME


def test_handshakes_are_bounded_in_number_and_time(tunnel: Tunnel) -> None:
    """Who says nothing holds his own share of the places, and nobody else's."""
    server = tunnel.start_server("--handshake-timeout=60", "--max-handshakes=8")
    stalled = [socket.create_connection(("127.0.0.1", tunnel.port)) for _ in range(40)]
    # At once, for it comes from another address: those 40 together have two places of eight.
    context = client_context(tunnel.authority, tunnel.authority.robot())
    with Peer(tunnel.port, context, source="127.0.0.2") as peer:
        assert peer.hello()[0] == WELCOME
    assert "no HELLO" not in server.log
    for sock in stalled:
        sock.close()
    still_works(tunnel)


CROWDED = """
import sys
from shadow.server import handshakes
handshakes._WAITING_MAX = 5
from shadow.cli.server import main
raise SystemExit(main())
"""


def test_a_crowd_is_sent_away_and_told_of_once(tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert handshakes._WAITING_MAX >= 1024
    module = tunnel.folder / "crowded.py"
    module.write_text(CROWDED)
    arguments = ["crowded", *tunnel.server_arguments("--max-handshakes=4", "--handshake-timeout=60")[1:]]
    server = tunnel.daemon(arguments, {"PYTHONPATH": str(tunnel.folder)})
    server.wait_for_log("accepting robots")
    silent = [socket.create_connection(("127.0.0.1", tunnel.port)) for _ in range(16)]
    server.wait_for_log("WARNING: handshake queue full: connections dropped: 1, e.g. from 127.0.0.1:")

    def sent_away() -> int:
        count = 0
        for sock in silent:
            sock.setblocking(False)
            try:
                count += sock.recv(1) == b""
            except BlockingIOError:
                continue
            except ConnectionResetError:
                count += 1
        return count

    assert wait_for(lambda: sent_away() >= 10, "ten to be sent away")
    context = client_context(tunnel.authority, tunnel.authority.robot())
    with Peer(tunnel.port, context, source="127.0.0.2") as peer:  # who is not one of the crowd
        peer.sock.settimeout(DEADLINE)
        assert peer.hello()[0] == WELCOME
    assert server.log.count("handshake queue full") == 1
    for sock in silent:
        sock.close()


def test_a_slow_machine_has_few_at_a_time(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handshake that takes four steps, each of some work: as many run as it has steps, and all are done."""
    running: list[int] = []
    most: list[int] = []
    done: list[int] = []

    async def handshake(_sock: socket.socket, _settings: object) -> Link:
        running.append(1)
        most.append(len(running))
        for _ in range(4):
            await asyncio.sleep(0)
        running.pop()
        done.append(1)
        raise HandshakeError("enough")

    monkeypatch.setattr(tls_handshake, "handshake", handshake)
    config: Any = SimpleNamespace(
        max_handshakes=256,
        max_handshake_rate=1e6,
        keepalive=30.0,
        handshake_timeout=DEADLINE,
        proxy_protocol=(),
    )

    trust: Any = SimpleNamespace(settings=settings(authority, Purpose.SERVER))

    async def body() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=200) as listening:
            listening.setblocking(False)
            descriptors = Descriptors(lambda _count: 0, 1)
            received = Handshakes(config, trust, print, descriptors)
            crowd = [socket.create_connection(listening.getsockname()) for _ in range(100)]
            for sock in crowd:
                sock.sendall(b"x")
            received.open([listening])
            async with asyncio.timeout(DEADLINE):
                while len(done) < len(crowd):
                    await asyncio.sleep(0.001)
            await received.close()
            descriptors.close()
            for sock in crowd:
                sock.close()

    asyncio.run(body())
    assert max(most) <= 8


@pytest.mark.parametrize("rounds", range(4))
@pytest.mark.parametrize("sources", ["1", "2", "113422"])
def test_a_stop_closes_whatever_has_come_however_far_it_is(rounds: int, sources: str) -> None:
    """In its handshake, about to begin it, waiting for its turn, or without the header it needs."""
    config: Any = SimpleNamespace(
        max_handshakes=2,
        max_handshake_rate=1e6,
        keepalive=30.0,
        handshake_timeout=DEADLINE,
        proxy_protocol=parse_networks("127.0.0.2"),
    )
    trust: Any = None  # nobody gets that far

    async def body() -> list[int]:
        descriptors = Descriptors(lambda _count: 0, 1)
        received = Handshakes(config, trust, print, descriptors)
        with contextlib.ExitStack() as stack:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            ours = []
            for source in sources:
                where = (f"127.0.0.{source}", 0)
                far = socket.create_connection(listening.getsockname(), source_address=where)
                stack.enter_context(far)
                near, _address = listening.accept()
                near.setblocking(False)
                ours.append(near)
                received._accepted(near)
            for _ in range(rounds):
                await asyncio.sleep(0)
            await received.close()
        descriptors.close()
        return [sock.fileno() for sock in ours]

    assert asyncio.run(body()) == [-1] * len(sources)
