"""All that there is between a server and the others: who is told of changes, and what the end leaves."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.daemon.config import ServerConfig
from shadow.fleet.acquaintances import Acquaintances
from shadow.fleet.between import Between
from shadow.fleet.foreign import Foreign
from shadow.fleet.news import News
from shadow.fleet.survey import Survey
from shadow.fleet.view import Subscriber
from shadow.server.robots import Robots
from shadow.server.visitor import Visitor, make_visitor
from shadow.wire.conversation import PEER
from shadow.wire.frames import Hello
from tests.support import DEADLINE, Authority
from tests.support.answering import Answering, peer_trust
from tests.support.asked import make_robots
from tests.support.directory import Directory
from tests.support.fleet import until


class Scene:
    """Server b, which knows of server a."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        anything = Path("none")
        config = ServerConfig(ldir=folder, ca=anything, crt=anything, key=anything)
        self.robots: Robots
        self.robots, _ = make_robots(config)
        self.directory = Directory("b")
        server: Any = SimpleNamespace(robots=self.robots, trust=None)
        registrar: Any = self.directory
        hello = Hello(1, PEER, "b", fleet="robots")
        self.between = Between(server, config, hello, peer_trust(authority, "b"), registrar)
        self.far: list[socket.socket] = []

    def comes(self, name: str) -> Visitor:
        """A visitor of a robot that is not here."""
        ours, theirs = socket.socketpair()
        self.far.append(theirs)
        robot = self.robots.provide(name)
        visitor = make_visitor(ours, "", robot.visitors.next_number(), asyncio.get_running_loop().time())
        robot.visitors.take(visitor)
        return visitor

    @property
    def lines(self) -> str:
        return "\n".join(self.between.describe())


def play(authority: Authority, folder: Path, body: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        scene = Scene(authority, folder)
        try:
            async with asyncio.timeout(DEADLINE):
                await body(scene)
        finally:
            await scene.between.close()
            for robot in list(scene.robots.values()):
                robot.dismiss("the test is over")
            assert scene.robots.descriptors._promised == 0
            for sock in scene.far:
                sock.close()

    asyncio.run(run())


def test_whoever_needs_it_is_told_of_changes(authority: Authority, tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        told: list[Any] = scene.directory.audience
        assert [type(one) for one in told] == [Acquaintances, Foreign, News, Survey]
        subscribers: list[Subscriber] = told
        assert subscribers[1] is scene.between.foreign

    play(authority, tmp_path, body)


def test_a_server_that_appears_is_dialled_until_the_end(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(scene: Scene) -> None:
        async with Answering(peer_trust(authority, "a").settings) as a:
            live = SimpleNamespace(peer=a.endpoint)
            monkeypatch.setattr(scene.directory, "live", lambda _server: live)
            acquaintances: Any = scene.directory.audience[0]
            acquaintances.on_live("a")
            await until(lambda: "2 standing by" in scene.lines, "channels")
            assert [hello.robot for hello in a.hellos] == ["b", "b"]
            await scene.between.close()
            await until(lambda: a.lost == [None, None], "their ends")
            assert "peers: 0 other servers" in scene.lines

    play(authority, tmp_path, body)


def test_whoever_waits_at_the_end_or_comes_then_is_left_to_the_next_daemon(
    authority: Authority, tmp_path: Path
) -> None:
    """Nobody is turned away because the server is about to be started anew."""

    async def body(scene: Scene) -> None:
        first = scene.comes("011")
        assert "1 visitor waiting for robots elsewhere" in scene.lines
        await scene.between.close()
        second = scene.comes("011")
        assert scene.robots["011"].visitors.elsewhere == {first, second}
        assert "waiting" not in scene.lines, "nobody seeks any more"
        assert scene.robots.elsewhere.take_over("011"), "and sockets stay"
        for sock in scene.far:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1)

    play(authority, tmp_path, body)
