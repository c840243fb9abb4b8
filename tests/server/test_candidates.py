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
        self.link = object()
        self.closed = False
        self.on_lost: Any = None

    def send(self, frame: Any) -> None:
        self.said.append(frame)

    def close(self) -> None:
        self.closed = True

    abort = close


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
        self.failure: Exception | None = None
        self.ended: list[tuple[Session, Cause]] = []
        self.empty: list[str] = []

    def provide(self, name: str) -> Any:
        return self.setdefault(name, SimpleNamespace(
            name=name,
            session=None,
            candidate=None,
            begin_session=lambda session: self._begin(name, session),
            end_session=lambda _why, cause, _refusal=None: self._end(name, cause),
            report_if_empty=lambda: self.empty.append(name),
        ))  # fmt: skip

    def _begin(self, name: str, session: Session) -> None:
        if isinstance(self.failure, Refused):
            raise self.failure
        self[name].session = session
        if self.failure is not None:
            raise self.failure

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
        self.revoked: dict[Any, str] = {}
        self.candidates = Candidates(self.robots, self.revoked.get)  # type: ignore[arg-type]

    def come(self, session: Session) -> Candidate:
        self.candidates.came(self.robots.provide("011"), session)  # type: ignore[arg-type]
        return self.directory.asked[-1]

    def present(self) -> Session | None:
        """The robot's session."""
        session: Session | None = self.robots["011"].session
        return session

    def begin(self, session: Session) -> None:
        self.come(session).welcome()
        assert self.robots["011"].session is session


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_session_begins_when_the_directory_says_so_and_once(scene: Scene) -> None:
    session = Session(1)
    candidate = scene.come(session)
    assert scene.present() is None
    candidate.welcome()
    assert scene.present() is session
    scene.robots["011"].session = None
    candidate.welcome()
    candidate.refuse(Refused("superseded", "too late"))
    assert (scene.present(), session.codes, scene.robots.ended) == (None, [], [])


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
    assert scene.present() is None
    candidate.welcome()
    assert scene.present() is second


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
    scene.robots.failure = Refused("socket", "no room for a socket")
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
    assert scene.present() is None


def test_one_that_was_revoked_while_it_waited(scene: Scene) -> None:
    before = Session(1)
    scene.begin(before)
    session = Session(2)
    candidate = scene.come(session)
    scene.revoked[session.channel.link] = "certificate 7 was revoked"
    candidate.welcome()
    assert (session.codes, session.channel.closed) == (["revoked"], True)
    assert scene.present() is before, "it may have shown another certificate: a reload judges that"
    assert scene.directory.noted == [("011", before)]


def test_a_bug_costs_one_robot_its_connection_and_the_directory_nothing(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.robots.failure = RuntimeError("a bug")
    session = Session(1)
    scene.come(session).welcome()
    assert session.channel.closed
    assert scene.robots.ended == [(session, Cause.LOST)]
    assert (scene.directory.noted, scene.robots.empty) == ([("011", None)], ["011"])
    assert "robot 011 could not be welcomed (please report)" in caplog.text
    scene.robots.failure = None
    scene.begin(Session(1))


def test_a_bug_of_the_directory_leaves_no_robot_waiting_for_ever(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_candidate: Candidate) -> None:
        raise RuntimeError("a bug")

    session = Session(1)
    with monkeypatch.context() as patch:
        patch.setattr(scene.directory, "came", fail)
        scene.candidates.came(scene.robots.provide("011"), session)  # type: ignore[arg-type]
    assert session.channel.closed
    assert scene.robots.empty == ["011"]
    scene.begin(Session(1))


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


@pytest.mark.parametrize("boot", ["", "x" * 65, "a b", "\u00e9"])
def test_who_says_no_boot_is_a_newer_one_each_time(tunnel: Tunnel, boot: str) -> None:
    tunnel.start_server()
    with connect(tunnel) as first, connect(tunnel) as second:
        assert first.hello(boot=boot, attempt=2)[0] == WELCOME
        assert second.hello(boot=boot, attempt=1)[0] == WELCOME
        assert first.receive()[1]["code"] == "superseded"
