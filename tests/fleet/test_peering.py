"""A server's port for the others: taken before it starts, open once it has joined, closed with it."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.processes import free_port
from shadow.daemon.config import ServerConfig
from shadow.daemon.membership import Membership
from shadow.errors import ConfigError, LocalError, PeerError, Refused
from shadow.fleet.arriving import Arriving
from shadow.fleet.peer_way import Manner, Way
from shadow.fleet.peering import Peering
from shadow.fleet.visits import Visits
from shadow.fleet.whereabouts import ask
from shadow.net.address import Endpoint
from shadow.pki.certificates import Files, Purpose
from shadow.transport.link import Link
from shadow.wire.conversation import PEER
from shadow.wire.frames import Frame, Hello, Here, Refusal, Who
from tests.support import DEADLINE, Authority
from tests.support.answering import peer_trust
from tests.support.asked import make_robots
from tests.support.directory import Directory
from tests.support.store import Store


class Scene:
    """Server b of a fleet, from its settings to its end."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        crt, key = authority.peer("b")
        self.authority = authority
        self.endpoint = Endpoint("127.0.0.1", free_port())
        self.config = ServerConfig(
            ldir=folder, ca=authority.ca, crt=Path("none"), key=Path("none"), ipv4=True
        )
        self.membership = Membership(
            "robots", "b", self.endpoint, crt, key, (), Files(authority.ca, crt, key), None
        )
        self.peering = Peering(self.membership, self.config)
        self.robots, _ = make_robots(self.config)
        self.store = Store()
        self.revoked = ""
        self.server: Any = SimpleNamespace(
            robots=self.robots,
            durable=SimpleNamespace(store=self.store),
            trust=SimpleNamespace(revocation=self.revocation),
        )
        self.registrar: Any = Directory("b")

    def revocation(self, _link: Link) -> str | None:
        return self.revoked or None

    def way(self) -> Way:
        """Of server a."""
        hello = Hello(1, PEER, "a", fleet="robots")
        return Way("b", self.endpoint, Manner(hello, peer_trust(self.authority, "a"), 30.0, DEADLINE))


def play(authority: Authority, folder: Path, body: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        scene = Scene(authority, folder)
        try:
            async with asyncio.timeout(DEADLINE):
                await body(scene)
        finally:
            scene.peering.close()
            scene.store.close()

    asyncio.run(run())


def test_it_is_ready_for_what_was_left_before_it_opens(authority: Authority, tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        scene.peering.prepare(scene.server)
        assert isinstance(scene.robots.elsewhere, Arriving)
        with socket.create_connection((scene.endpoint.host, scene.endpoint.port)):
            pass  # who comes early waits
        assert scene.peering._trust.revocation == scene.revocation
        scene.peering.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((scene.endpoint.host, scene.endpoint.port))

    play(authority, tmp_path, body)


def test_a_port_that_is_taken(authority: Authority, tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        with (
            socket.create_server((scene.endpoint.host, scene.endpoint.port)),
            pytest.raises(LocalError, match=str(scene.endpoint.port)),
        ):
            scene.peering.prepare(scene.server)
        assert scene.robots.elsewhere is scene.robots.alone

    play(authority, tmp_path, body)


def test_from_open_to_close_other_servers_are_answered(authority: Authority, tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        scene.peering.prepare(scene.server)
        early = asyncio.create_task(scene.way().open())
        assert scene.robots.elsewhere.take_over("012")
        between = scene.peering.open(scene.server, scene.registrar)
        assert len(between.foreign) == 1, "what was left has arrived"
        assert isinstance(scene.robots.elsewhere, Visits)
        channel = await early
        assert await ask(channel, Who("011"), DEADLINE) == Here()
        scene.revoked = "certificate 0c was revoked"
        with pytest.raises(Refused, match="certificate 0c was revoked"):
            await scene.way().open()
        heard: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        channel.hear(heard.set_result, lambda _error: None)
        between.cut_off_revoked()
        assert await heard == Refusal("revoked", scene.revoked)
        heard = asyncio.get_running_loop().create_future()
        scene.revoked = ""
        channel = await scene.way().open()
        channel.hear(heard.set_result, lambda _error: None)
        await between.close()
        assert await heard == Refusal("stopping", "the server is stopping")
        scene.peering.close()
        with pytest.raises(PeerError, match="cannot connect"):
            await scene.way().open()

    play(authority, tmp_path, body)


def test_what_of_it_expires_and_is_read_again(own: Authority, tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        (term,) = scene.peering.terms
        assert "peer-b.crt" in term.what
        own.issue("peer-b", "peer:b", Purpose.PEER, days=(-1, 50))
        scene.peering.load()
        (later,) = scene.peering.terms
        assert later.until > term.until
        assert len(scene.peering.ca) == 1
        own.issue("peer-b", "peer:c", Purpose.PEER)
        with pytest.raises(ConfigError, match="is the certificate of server c"):
            scene.peering.load()
        assert list(scene.peering.terms) == [later]

    play(own, tmp_path, body)
