"""The registry: which robots there are, how many are connected, and which standbys are given up first."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.errors import ConfigError
from shadow.server.robot import Robot
from shadow.server.robots import Robots
from shadow.server.session import Cause
from shadow.server.switchboard import Switchboard


class Channel:
    """As much of a channel as a session takes."""

    def __init__(self) -> None:
        self.link = SimpleNamespace(sock=None)
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def leave(self) -> None:
        pass


class Session:
    """As much of a session as a robot takes."""

    def __init__(self, standbys: int = 0) -> None:
        self.channel = Channel()
        self.board: Switchboard[Any, Channel] = Switchboard()
        for _ in range(standbys):
            self.board.channel_came(Channel())
        self.since = 0.0
        self.services = ()
        self.keepalive = SimpleNamespace(deadline=1e9)
        self.timer = None

    def tell(self, _lines: object, _now: float) -> None:
        pass

    def rest(self) -> None:
        pass

    def log_end(self, *_: object) -> None:
        pass


def make(folder: Path) -> Robots:
    config: Any = SimpleNamespace(
        ldir=folder, signer=None, keepalive=30.0, start_timeout=10.0, max_streams=100, advertise=None
    )
    durable: Any = SimpleNamespace()
    trust: Any = SimpleNamespace(no_ktls=None)
    return Robots(config, durable, trust)


def connect(robots: Robots, name: str, standbys: int = 0) -> Robot:
    robot = robots.provide(name)
    session: Any = Session(standbys)
    robot.have_session(session)
    return robot


def play(folder: Path, body: Callable[[Robots], None]) -> None:
    async def run() -> None:
        body(make(folder))

    asyncio.run(run())


def test_a_robot_is_there_from_its_first_session_until_it_has_neither_session_nor_stream(
    tmp_path: Path,
) -> None:
    def body(robots: Robots) -> None:
        robot = connect(robots, "011")
        assert dict(robots) == {"011": robot}
        assert robots.provide("011") is robot
        assert robots.connected == 1
        starting: Any = robot.visitors.starting
        starting["somebody"] = None
        robot.end_session("gone", Cause.LOST)
        assert dict(robots) == {"011": robot}, "a stream is about to begin"
        assert robots.connected == 0
        starting.clear()
        robot.report_if_empty()
        assert not robots

    play(tmp_path, body)


def test_a_robot_whose_next_session_waits_for_its_welcome_is_not_forgotten(tmp_path: Path) -> None:
    """Else it would be made anew, one more than may be."""

    def body(robots: Robots) -> None:
        robot = connect(robots, "011")
        candidate: Any = SimpleNamespace()
        robot.candidate = candidate
        robot.end_session("gone", Cause.LOST)
        assert dict(robots) == {"011": robot}
        robot.candidate = None
        robot.report_if_empty()
        assert not robots

    play(tmp_path, body)


def test_each_counts_once_as_connected_however_often_it_comes_back(tmp_path: Path) -> None:
    def body(robots: Robots) -> None:
        for _ in range(3):
            connect(robots, "011")
        other = connect(robots, "012")
        assert robots.connected == 2
        other.leave_session()
        assert robots.connected == 1

    play(tmp_path, body)


def test_the_registry_forgets_no_robot_that_has_taken_anothers_place(tmp_path: Path) -> None:
    def body(robots: Robots) -> None:
        before = connect(robots, "011")
        before.end_session("gone", Cause.LOST)
        after = connect(robots, "011")
        assert after is not before
        before.report_if_empty()
        assert robots["011"] is after

    play(tmp_path, body)


def test_two_servers_in_a_process_share_nothing(tmp_path: Path) -> None:
    def body(robots: Robots) -> None:
        others = make(tmp_path)
        connect(robots, "011")
        robots.numbers.take()
        assert (len(others), others.connected, others.numbers.take()) == (0, 0, "1")

    play(tmp_path, body)


@pytest.mark.parametrize(
    ("standbys", "count", "left", "given_up"),
    [
        ((3, 1, 2), 1, (2, 1, 2), 1),
        ((3, 1, 2), 3, (1, 1, 1), 3),
        ((3, 1, 2), 4, (0, 1, 1), 4),
        ((3, 1, 2), 100, (0, 0, 0), 6),
        ((), 5, (), 0),
    ],
)
def test_who_has_most_standbys_gives_up_first(
    tmp_path: Path, standbys: tuple[int, ...], count: int, left: tuple[int, ...], given_up: int
) -> None:
    def body(robots: Robots) -> None:
        made = [connect(robots, f"{number:03}", some) for number, some in enumerate(standbys)]
        assert robots._give_up_standbys(count) == given_up
        assert tuple(len(robot.session.board.standbys) for robot in made if robot.session) == left

    play(tmp_path, body)


def test_a_robot_that_cannot_be_cut_off_keeps_nobody_else_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cut: list[str] = []

    def cut_off_revoked(robot: Robot) -> int:
        if robot.name == "012":
            raise RuntimeError
        cut.append(robot.name)
        return 2

    def body(robots: Robots) -> None:
        for name in ("011", "012", "013"):
            connect(robots, name)
        assert robots.cut_off_revoked() == 4

    monkeypatch.setattr(Robot, "cut_off_revoked", cut_off_revoked)
    play(tmp_path, body)
    assert cut == ["011", "013"]
    assert "robot 012: its connections cannot be cut off" in caplog.text


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    async def run() -> None:
        make(tmp_path / "missing")

    with pytest.raises(ConfigError, match="is not an existing folder"):
        asyncio.run(run())
