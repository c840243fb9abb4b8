"""Robots that have said HELLO, until the directory lets them be welcomed."""

from types import SimpleNamespace
from typing import Any

import pytest

from shadow.errors import PeerError, Refused
from shadow.server.candidates import Candidates
from shadow.server.directory import Candidate
from shadow.server.session import Cause
from tests.support import Tunnel
from tests.support.peer import REFUSED, WELCOME, connect


class Channel:
    def __init__(self) -> None:
        self.said: list[Any] = []
        self.closed = False
        self.on_lost: Any = None

    def send(self, frame: Any) -> None:
        self.said.append(frame)

    def close(self) -> None:
        self.closed = True


class Session:
    peer = "198.51.100.7:1234"

    def __init__(self, attempt: int, boot: str = "boot") -> None:
        self.attempt, self.boot = attempt, boot
        self.channel = Channel()

    def is_later_than(self, other: "Session") -> bool:
        return self.boot == other.boot and self.attempt >= other.attempt

    @property
    def codes(self) -> list[str]:
        return [frame.code for frame in self.channel.said]


class Robots(dict[str, Any]):
    """Of which each is nothing but its session."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Slow()
        self.refuses = False
        self.ended: list[tuple[Session, Cause]] = []
        self.empty: list[str] = []

    def provide(self, name: str) -> Any:
        return self.setdefault(name, SimpleNamespace(
            session=None,
            begin_session=lambda session: self._begin(name, session),
            end_session=lambda _why, cause, _refusal: self._end(name, cause),
            report_if_empty=lambda: self.empty.append(name),
        ))  # fmt: skip

    def _begin(self, name: str, session: Session) -> None:
        if self.refuses:
            raise Refused("socket", "no room for a socket")
        self[name].session = session

    def _end(self, name: str, cause: Cause) -> None:
        self.ended.append((self[name].session, cause))
        self[name].session = None


class Slow:
    """A directory that has not made up its mind."""

    def __init__(self) -> None:
        self.asked: list[Candidate] = []
        self.noted: list[tuple[str, Any]] = []

    def came(self, candidate: Candidate) -> None:
        self.asked.append(candidate)

    def note(self, name: str, session: Any) -> None:
        self.noted.append((name, session))


class Scene:
    def __init__(self) -> None:
        self.robots = Robots()
        self.directory = self.robots.directory
        self.candidates = Candidates(self.robots)  # type: ignore[arg-type]

    def come(self, session: Session) -> Candidate:
        self.candidates.came("011", session)  # type: ignore[arg-type]
        return self.directory.asked[-1]

    def begin(self, session: Session) -> None:
        self.come(session).welcome()
        assert self.robots["011"].session is session


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_session_begins_when_the_directory_says_so_and_once(scene: Scene) -> None:
    session = Session(1)
    candidate = scene.come(session)
    assert "011" not in scene.robots
    candidate.welcome()
    assert scene.robots["011"].session is session
    scene.robots["011"].session = None
    candidate.welcome()
    candidate.refuse(Refused("superseded", "too late"))
    assert (scene.robots["011"].session, session.codes, scene.robots.ended) == (None, [], [])


def test_a_robot_that_is_elsewhere_is_not_here_any_more_either(scene: Scene) -> None:
    before = Session(1)
    scene.begin(before)
    session = Session(2)
    scene.come(session).refuse(Refused("superseded", "it is elsewhere"))
    assert session.codes == ["superseded"]
    assert session.channel.closed
    assert scene.robots.ended == [(before, Cause.SUPERSEDED)]
    assert scene.directory.noted == [("011", None)]


@pytest.mark.parametrize("welcomed", [False, True])
@pytest.mark.parametrize("attempt", [1, 2])
def test_a_hello_that_was_overtaken_is_refused(scene: Scene, attempt: int, *, welcomed: bool) -> None:
    candidate = scene.come(Session(2))
    if welcomed:
        candidate.welcome()
    with pytest.raises(Refused, match="superseded"):
        scene.come(Session(attempt))
    assert scene.directory.asked == [candidate]
    scene.come(Session(attempt, boot="another"))


def test_one_that_waits_gives_way_to_the_next(scene: Scene) -> None:
    first, second = Session(1), Session(2)
    overtaken = scene.come(first)
    candidate = scene.come(second)
    assert first.codes == ["superseded"]
    overtaken.welcome()
    assert "011" not in scene.robots
    candidate.welcome()
    assert scene.robots["011"].session is second


@pytest.mark.parametrize("error", [None, PeerError("broken")])
def test_one_that_leaves_while_it_waits_leaves_what_was_there_before(
    scene: Scene, error: PeerError | None
) -> None:
    before = Session(1)
    scene.begin(before)
    session = Session(2)
    candidate = scene.come(session)
    session.channel.on_lost(error)
    assert scene.directory.noted == [("011", before)]
    assert scene.robots.empty == ["011"]
    candidate.welcome()
    assert scene.robots["011"].session is before


def test_one_that_cannot_have_a_socket(scene: Scene) -> None:
    scene.robots.refuses = True
    session = Session(1)
    scene.come(session).welcome()
    assert session.codes == ["socket"]
    assert session.channel.closed
    assert scene.directory.noted == [("011", None)]


def test_nobody_is_kept_waiting_at_the_end(scene: Scene) -> None:
    session = Session(1)
    candidate = scene.come(session)
    scene.candidates.close()
    assert session.channel.closed
    candidate.welcome()
    assert "011" not in scene.robots


def test_a_late_hello_over_the_wire(tunnel: Tunnel) -> None:
    server = tunnel.start_server()
    with connect(tunnel) as first:
        assert first.hello(boot="b007", attempt=2)[0] == WELCOME
        with connect(tunnel) as late:
            kind, answer = late.hello(boot="b007", attempt=1)
            assert (kind, answer["code"]) == (REFUSED, "superseded")
        server.wait_for_log("INFO: robot '011' from .* refused .superseded.: a later HELLO")
        with connect(tunnel) as rebooted:
            assert rebooted.hello(boot="another", attempt=1)[0] == WELCOME
        assert first.receive()[1]["code"] == "superseded"


@pytest.mark.parametrize("boot", ["", "x" * 65])
def test_who_says_no_boot_is_a_newer_one_each_time(tunnel: Tunnel, boot: str) -> None:
    tunnel.start_server()
    with connect(tunnel) as first, connect(tunnel) as second:
        assert first.hello(boot=boot, attempt=2)[0] == WELCOME
        assert second.hello(boot=boot, attempt=1)[0] == WELCOME
        assert first.receive()[1]["code"] == "superseded"
