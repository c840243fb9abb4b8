"""Which servers are dialled: those of the directory, and for a while those that it has lost."""

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from shadow.fleet.acquaintances import Acquaintances
from shadow.net.address import Endpoint
from tests.support import virtual_time

HERE, THERE = Endpoint("192.0.2.1", 7), Endpoint("192.0.2.2", 7)


class Scene:
    """A view of servers, and who is dialled.

    Attributes:
        met: who was met, in order, and where.
    """

    def __init__(self) -> None:
        self.met: list[tuple[str, Endpoint | None]] = []
        self._servers: dict[str, Any] = {}
        peers: Any = SimpleNamespace(meet=lambda server, endpoint: self.met.append((server, endpoint)))
        view: Any = SimpleNamespace(live=self._servers.get)
        self.acquaintances = Acquaintances(peers, view)

    def live(self, server: str, endpoint: Endpoint | None) -> None:
        self._servers[server] = SimpleNamespace(peer=endpoint)
        self.acquaintances.on_live(server)

    def die(self, server: str) -> None:
        self._servers.pop(server, None)
        self.acquaintances.on_live(server)


def play(body: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        wrong: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: wrong.append(context))
        await body(Scene())
        assert not wrong

    virtual_time.run(run())


def test_servers_are_dialled_where_they_say() -> None:
    async def body(scene: Scene) -> None:
        scene.live("b", HERE)
        scene.live("c", None)
        scene.live("b", THERE)
        assert scene.met == [("b", HERE), ("c", None), ("b", THERE)]
        scene.acquaintances.on_reset()
        scene.acquaintances.on_engine(up=False)
        scene.acquaintances.on_change("011", None, 7)
        assert len(scene.met) == 3

    play(body)


def test_one_that_is_gone_is_dialled_for_ten_minutes() -> None:
    async def body(scene: Scene) -> None:
        scene.live("b", HERE)
        scene.die("b")
        await asyncio.sleep(599)
        assert scene.met == [("b", HERE)]
        await asyncio.sleep(2)
        assert scene.met == [("b", HERE), ("b", None)]
        scene.live("b", HERE)
        assert scene.met[2:] == [("b", HERE)]

    play(body)


def test_one_that_is_told_gone_twice_is_forgotten_once() -> None:
    async def body(scene: Scene) -> None:
        scene.die("b")
        await asyncio.sleep(300)
        scene.die("b")
        await asyncio.sleep(500)
        assert scene.met == [], "ten minutes after we have last heard of it"
        await asyncio.sleep(500)
        assert scene.met == [("b", None)]

    play(body)


def test_one_that_comes_back_in_time_is_not_forgotten() -> None:
    async def body(scene: Scene) -> None:
        scene.live("b", HERE)
        scene.die("b")
        scene.die("c")
        await asyncio.sleep(300)
        scene.live("b", HERE)
        await asyncio.sleep(1000)
        assert scene.met == [("b", HERE), ("b", HERE), ("c", None)]

    play(body)


def test_at_the_end_nobody_is_forgotten() -> None:
    async def body(scene: Scene) -> None:
        scene.die("b")
        scene.acquaintances.close()
        scene.acquaintances.close()
        await asyncio.sleep(1000)
        assert scene.met == []

    play(body)
