"""What the daemon before this one has left of visits between servers waits until this one has joined."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.daemon.config import ServerConfig
from shadow.errors import IdentityError, Refused
from shadow.fleet.arriving import Arriving
from shadow.fleet.foreign import Foreign
from shadow.fleet.peer_trust import PeerTrust
from shadow.pki.certificates import Files, Purpose
from shadow.server.directory import Alone
from shadow.server.robot import Robot
from shadow.server.robots import Robots
from shadow.server.visitor import Visitor, make_visitor
from shadow.transport.context import Ktls
from tests.support import Authority, settings, shake_hands
from tests.support.answering import peer_trust
from tests.support.asked import make_robots


class Joined(Alone):
    """From when we have joined, visitors go on here."""

    def __init__(self) -> None:
        self.passed_on: list[Visitor] = []

    def pass_on(self, robot: Robot, visitor: Visitor) -> bool:
        robot.visitors.elsewhere.add(visitor)
        self.passed_on.append(visitor)
        return True


def arrival(authority: Authority) -> Arriving:
    return Arriving(peer_trust(authority, "b"))


def play(authority: Authority, folder: Path, body: Callable[[Robots, Arriving], None]) -> None:
    async def run() -> None:
        anything = Path("none")
        robots, _ = make_robots(ServerConfig(ldir=folder, ca=anything, crt=anything, key=anything))
        robots.elsewhere = arriving = arrival(authority)
        body(robots, arriving)

    asyncio.run(run())


def test_visitors_and_sockets_are_kept_and_handed_over_once(authority: Authority, tmp_path: Path) -> None:
    def body(robots: Robots, arriving: Arriving) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            assert arriving.take_over("011")
            assert arriving.take_over("012")
            robot = robots.provide("011")
            visitor = make_visitor(ours, "", "2a", 5.0)
            robot.visitors.resume(visitor)
            assert robot.visitors.elsewhere == {visitor}
            robot.report_if_empty()
            assert "011" in robots
            robots.elsewhere = joined = Joined()
            names: list[str] = []
            foreign: Any = SimpleNamespace(take_over=names.append)
            for _ in range(2):
                arriving.arrive(foreign)
                assert sorted(names) == ["011", "012"]
                assert joined.passed_on == [visitor]
            assert robot.visitors.elsewhere == {visitor}
            robot.dismiss("the test is over")
            assert theirs.recv(1) == b""
            assert robots.descriptors._promised == 0

    play(authority, tmp_path, body)


def test_one_whose_robot_is_here_by_then_is_seated_here(authority: Authority, tmp_path: Path) -> None:
    def body(robots: Robots, arriving: Arriving) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            robot, seated = robots.provide("011"), []
            visitor = make_visitor(ours, "", "2a", 5.0)
            robot.visitors.resume(visitor)
            session: Any = SimpleNamespace(unreachable="", seat=lambda who, **_: seated.append(who))
            robot._session = session
            foreign: Any = SimpleNamespace(take_over=lambda _name: None)
            arriving.arrive(foreign)
            assert seated == [visitor]
            assert not robot.visitors.elsewhere
            robot._session = None
            visitor.close()

    play(authority, tmp_path, body)


def test_streams_go_on_with_servers_that_would_be_let_in_today(own: Authority, tmp_path: Path) -> None:
    ends = asyncio.run(shake_hands(peer_trust(own, "b").settings, peer_trust(own, "a").dialling("b")))
    arrival(own).readmit(ends[0])
    trust = PeerTrust(Files(own.ca, *own.peer("b")), "b", Ktls.AUTO, lambda _link: "0c was revoked")
    with pytest.raises(Refused, match=r"refused \(revoked\): 0c was revoked"):
        Arriving(trust).readmit(ends[0])
    with pytest.raises(IdentityError, match="is not good any more"):
        arrival(Authority(tmp_path / "other")).readmit(ends[0])
    robots = asyncio.run(shake_hands(settings(own, Purpose.SERVER), settings(own, Purpose.ROBOT)))
    with pytest.raises(IdentityError, match="is not a peer's"):
        arrival(own).readmit(robots[0])
    for end in (*ends, *robots):
        end.sock.close()


def test_nothing_may_have_been_left(authority: Authority, tmp_path: Path) -> None:
    def body(_robots: Robots, arriving: Arriving) -> None:
        nobody: Any = None
        foreign: Foreign = nobody
        arriving.arrive(foreign)

    play(authority, tmp_path, body)
