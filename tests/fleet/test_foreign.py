"""Sockets of robots that are at other servers."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.fleet import foreign
from shadow.fleet.entries import Entries
from shadow.fleet.foreign import Foreign
from shadow.fleet.keys import Entry
from shadow.server.directory import Alone
from shadow.server.robot import Robot
from shadow.server.robots import Robots
from shadow.server.visitor import Visitor
from tests.support.fleet import entry, until


class View:
    """Says what the test wants it to say."""

    def __init__(self) -> None:
        self.entries = Entries()
        self.alive = {"a", "b"}
        self.up = True

    def robot(self, name: str) -> Entry | None:
        return self.entries.get(name)

    def counts(self, one: Entry) -> bool:
        return one.server in self.alive


class Elsewhere(Alone):
    """As it is in a fleet: visitors wait."""

    def pass_on(self, robot: Robot, visitor: Visitor) -> bool:
        robot.visitors.elsewhere.add(visitor)
        return True


class Scene:
    """Server ``a``, and robots that move."""

    def __init__(self, folder: Path, most: int) -> None:
        config: Any = SimpleNamespace(
            ldir=folder, signer=None, keepalive=30.0, start_timeout=10.0, max_streams=100, advertise=None
        )
        durable: Any = SimpleNamespace()
        trust: Any = SimpleNamespace(no_ktls=None)
        self.folder = folder
        self.robots = Robots(config, durable, trust)
        self.robots.elsewhere = Elsewhere()
        self.view = View()
        view: Any = self.view
        self.foreign = Foreign(self.robots, "a", view, most)

    def claim(self, name: str, server: str | None) -> None:
        if server is None:
            self.view.entries.remove(name)
            self.foreign.on_change(name, None, 0)
        else:
            found = entry(server)
            self.view.entries.put(name, found, found.encode())
            self.foreign.on_change(name, found, 0)

    def lives(self, server: str, *, alive: bool) -> None:
        (self.view.alive.add if alive else self.view.alive.discard)(server)
        self.foreign.on_live(server)

    @property
    def there(self) -> set[str]:
        return {path.name.removesuffix(".sock") for path in self.folder.iterdir()}

    async def become(self, *names: str) -> None:
        await until(lambda: self.there == set(names), f"sockets of {names}")


def play(folder: Path, body: Callable[[Scene], Awaitable[None]], most: int = 10) -> None:
    async def run() -> None:
        scene = Scene(folder, most)
        task = asyncio.create_task(scene.foreign.run())
        try:
            await body(scene)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            for robot in list(scene.robots.values()):
                robot.dismiss("the test is over")

    asyncio.run(run())


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_STAY", 0.05)
    monkeypatch.setattr(foreign, "_LOOK", 0.01)


def test_a_robot_of_another_server_has_sockets_here(tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        scene.claim("011", "b")
        scene.claim("012", "a")
        await scene.become("011")
        assert len(scene.foreign) == 1

    play(tmp_path, body)


def test_a_server_that_comes_brings_all_of_its_robots(tmp_path: Path, soon: None) -> None:
    async def body(scene: Scene) -> None:
        scene.lives("b", alive=False)
        for name in ("011", "012"):
            scene.claim(name, "b")
        scene.claim("013", "a")
        scene.lives("b", alive=True)
        await scene.become("011", "012")
        scene.lives("b", alive=False)
        await scene.become()
        assert not scene.robots

    play(tmp_path, body)


def test_sockets_stay_for_a_while_when_nobody_has_the_robot(tmp_path: Path, soon: None) -> None:
    """Until then it may be on its way; a visitor who waits is turned away with them."""

    async def body(scene: Scene) -> None:
        scene.claim("011", "b")
        await scene.become("011")
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.setblocking(False)
            visitor.connect(str(tmp_path / "011.sock"))
            await until(lambda: scene.robots["011"].visitors.elsewhere, "the visitor")
            scene.view.up = False
            scene.claim("011", None)
            await asyncio.sleep(0.2)
            assert scene.there == {"011"}, "nobody knows where it is while the engine is away"
            scene.view.up = True
            await scene.become()
            assert visitor.recv(1) == b""

    play(tmp_path, body)


def test_a_robot_that_is_here_has_its_own(tmp_path: Path, soon: None) -> None:
    async def body(scene: Scene) -> None:
        scene.claim("011", "b")
        await scene.become("011")
        session: Any = SimpleNamespace(services=("",))
        robot = scene.robots["011"]
        robot._session = session
        scene.claim("011", "a")
        await until(lambda: not len(scene.foreign), "it to be here")
        scene.claim("011", None)
        scene.claim("012", "b")
        await scene.become("011", "012")
        robot._session = None

    play(tmp_path, body)


def test_one_that_has_left_is_taken_over(tmp_path: Path, soon: None) -> None:
    async def body(scene: Scene) -> None:
        robot = scene.robots.provide("011")
        robot.sockets.provide(("",))
        scene.foreign.take_over("011")
        await scene.become()
        assert not scene.robots

    play(tmp_path, body)


def test_there_are_so_many_at_most(tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        for number in range(5):
            scene.claim(f"01{number}", "b")
        await until(lambda: len(scene.there) == 3, "three")
        await until(lambda: not scene.foreign._due, "all to be looked at")
        assert len(scene.there) == 3

    play(tmp_path, body, most=3)


def test_everything_may_have_changed(tmp_path: Path, soon: None) -> None:
    async def body(scene: Scene) -> None:
        scene.claim("011", "b")
        await scene.become("011")
        scene.view.entries.remove("011")
        found = entry("b")
        scene.view.entries.put("012", found, found.encode())
        scene.foreign.on_reset()
        await scene.become("012")

    play(tmp_path, body)
