"""The gate: a visitor says which robot it wants, and is that robot's visitor from then on."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shadow import events
from shadow.errors import ConfigError
from shadow.fleet import gate
from shadow.fleet.gate import Gate, listen
from shadow.fleet.visits import Visits
from shadow.names import GATE
from shadow.server.descriptors import Descriptors
from shadow.server.robots import Robots
from shadow.server.visitor import OwnDoor, Visitor
from shadow.systemd.fdstore import Store
from tests.support import CHECKOUT, DEADLINE, Tunnel, echo, exchange, random_bytes, serving, wait_for
from tests.support.fleet import until
from tests.support.log import Said
from tests.support.peer import START, STARTED, connect
from tests.support.sites import NAME, Fleet, Site


@pytest.fixture(autouse=True)
def _plenty_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "_WITHIN", DEADLINE)


class Scene:
    """The gate of a server that has no robots; nobody knows where they are."""

    def __init__(self, folder: Path) -> None:
        config: Any = SimpleNamespace(
            ldir=folder, signer=None, keepalive=30.0, start_timeout=10.0, max_streams=2, advertise=None
        )
        durable: Any = SimpleNamespace()
        trust: Any = SimpleNamespace(no_ktls=None)
        self.robots = Robots(config, durable, trust)
        self.path = folder / GATE
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(str(self.path))
        self.sock.listen(200)
        self.sock.setblocking(False)
        whereabouts: Any = SimpleNamespace(name="a", find=self._find, close=self._close)
        nothing: Any = SimpleNamespace()
        self.visits = self.robots.elsewhere = Visits(whereabouts, nothing, nothing, DEADLINE)
        self.gate = Gate([self.sock], self.robots)
        self.stack = contextlib.ExitStack()

    async def _find(self, *_: object) -> None:
        return None

    async def _close(self) -> None:
        pass

    def come(self, words: bytes = b"") -> socket.socket:
        visitor = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        visitor.settimeout(DEADLINE)
        visitor.connect(str(self.path))
        visitor.sendall(words)
        return visitor

    @property
    def waiting(self) -> list[tuple[str, str]]:
        return [
            (robot.name, visitor.service)
            for robot in self.robots.values()
            for visitor in robot.visitors.elsewhere
        ]

    async def visitor(self, name: str = NAME) -> Visitor:
        await until(lambda: name in self.robots and self.robots[name].visitors.elsewhere, "the visitor")
        (found,) = self.robots[name].visitors.elsewhere
        return found

    @contextlib.asynccontextmanager
    async def until_the_end(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self.gate.close()
            await self.visits.close()
            for robot in list(self.robots.values()):
                robot.dismiss("the test is over")
            self.stack.close()
            self.sock.close()


def play(folder: Path, body: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        scene = Scene(folder)
        async with scene.until_the_end():
            await body(scene)

    asyncio.run(run())


async def hangs_up(visitor: socket.socket) -> None:
    """Whoever has sent more than was read sees a reset."""

    def gone() -> bool:
        try:
            return visitor.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    visitor.setblocking(False)
    await until(gone, "the end")


def test_a_name_and_what_is_behind_it(tmp_path: Path) -> None:
    """All in one packet, and the robot gets what is behind the line; the kernel has it, and nobody else."""

    async def body(scene: Scene) -> None:
        scene.come(b"011\nSSH-2.0-x\r\n011\n")
        visitor = await scene.visitor()
        assert (visitor.service, visitor.uid, visitor.pid) == ("", os.getuid(), os.getpid())
        assert isinstance(visitor.door, OwnDoor)
        assert visitor.sock.recv(100) == b"SSH-2.0-x\r\n011\n"

    play(tmp_path, body)


def test_a_service(tmp_path: Path) -> None:
    async def body(scene: Scene) -> None:
        scene.come(b"web@011\n")
        await scene.visitor()
        assert scene.waiting == [(NAME, "web")]

    play(tmp_path, body)


def test_a_name_in_pieces_wakes_nobody_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[object] = []
    read = gate._Caller.read

    def counted(caller: gate._Caller) -> str | None:
        reads.append(caller)
        return read(caller)

    monkeypatch.setattr(gate._Caller, "read", counted)
    longest = "s" * 32 + "@" + "r" * 64

    async def body(scene: Scene) -> None:
        caller = scene.come(longest[:40].encode())
        await until(lambda: len(reads) >= 1, "the first piece")
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(reads) <= 3, "what has come of the line is taken, and does not wake us again"
        for letter in f"{longest[40:]}\nrest":
            caller.sendall(letter.encode())
            await asyncio.sleep(0.001)
        visitor = await scene.visitor("r" * 64)
        assert visitor.service == "s" * 32
        assert visitor.sock.recv(100) == b"rest"

    play(tmp_path, body)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"\n", "robot name '' is not allowed"),
        (b"../011\n", "robot name '../011' is not allowed"),
        (b"web@\n", "robot name '' is not allowed"),
        (b"@011\n", "service name '' is not allowed"),
        (b"a@b@011\n", "service name 'a@b' is not allowed"),
        (b"011\r\n", "is not allowed"),
        (b"r" * 65 + b"\n", "is not allowed"),
        (b"\xff\x1b[2J\n", "is not allowed"),
        (b"x" * 98, "the robot's name does not end after 98 bytes"),
        (b"\0" * 4000, "the robot's name does not end after 98 bytes"),
    ],
)
def test_what_is_no_name(tmp_path: Path, said: Said, line: bytes, why: str) -> None:
    async def body(scene: Scene) -> None:
        await hangs_up(scene.come(line))
        ((kind, text),) = said
        assert kind is events.GateFailed
        assert text.startswith(f"visitor with uid {os.getuid()} turned away at the gate: ")
        assert why in text
        assert text.isprintable()
        assert not scene.robots

    play(tmp_path, body)


def test_who_says_nothing_does_not_stay(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gate, "_WITHIN", 0.05)

    async def body(scene: Scene) -> None:
        await hangs_up(scene.come(b"01"))
        assert [kind for kind, _ in said] == [events.GateFailed]
        assert "no robot's name within 0.05 s" in said[0][1]
        scene.come(b"011\n")
        await scene.visitor()
        await asyncio.sleep(0.1)
        assert scene.waiting == [(NAME, "")], "the time for the name is over with the name"
        assert caplog.text == ""

    play(tmp_path, body)


def test_of_many_who_say_nothing_the_oldest_gives_way(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_NAMELESS_MAX", 3)

    async def body(scene: Scene) -> None:
        callers = [scene.come() for _ in range(5)]
        await until(lambda: len(said) == 2, "two to give way")
        for caller in callers[:2]:
            await hangs_up(caller)
        assert list(scene.gate.describe()) == ["gate: 3 visitors without a robot's name"]
        for caller in callers[2:]:
            caller.sendall(b"011\n")
        await until(lambda: len(scene.waiting) == 2, "the others")  # and one more than a robot may have
        await until(lambda: not scene.gate._callers, "all to have said it")

    play(tmp_path, body)


def test_who_only_looks_whether_it_is_there_is_no_line_in_the_log(tmp_path: Path, said: Said) -> None:
    async def body(scene: Scene) -> None:
        scene.come().close()
        scene.come(b"01").close()
        await until(lambda: not scene.gate._callers, "them to be gone")
        scene.come(b"011\n")
        await scene.visitor()
        assert said == []

    play(tmp_path, body)


def test_names_that_nobody_has_leave_nothing_behind(tmp_path: Path, said: Said) -> None:
    """Neither of those who have waited in vain, nor of those who have left."""

    async def body(scene: Scene) -> None:
        visitors = [scene.come(f"r{number}\n".encode()) for number in range(50)]
        await until(lambda: len(scene.robots) == 50, "all to wait")
        await until(lambda: len(scene.visits.news._futures) == 50, "all to wait for news")
        for visitor in visitors:
            visitor.close()
        await until(lambda: not scene.robots, "all to be forgotten")
        assert scene.visits.news._futures == {}
        assert said == []
        scene.visits._patience = 0.05
        for visitor in [scene.come(f"s{number}\n".encode()) for number in range(50)]:
            await hangs_up(visitor)
        await until(lambda: not scene.robots, "all to be forgotten")
        assert scene.visits.news._futures == {}
        assert sum("no server of the fleet has had the robot" in text for _, text in said) == 50

    play(tmp_path, body)


def test_a_server_that_has_left_the_fleet_knows_no_robot_for_it(tmp_path: Path, said: Said) -> None:
    async def body(scene: Scene) -> None:
        scene.robots.elsewhere = scene.robots.alone
        await hangs_up(scene.come(b"011\n"))
        assert "the robot disconnected" in said[0][1]
        assert not scene.robots

    play(tmp_path, body)


def test_a_robot_has_so_many_visitors_at_most(tmp_path: Path, said: Said) -> None:
    async def body(scene: Scene) -> None:
        visitors = [scene.come(b"011\n") for _ in range(3)]
        await hangs_up(visitors[2])
        assert "the robot has 2 visitors (--max-streams)" in said[0][1]
        assert len(scene.waiting) == 2

    play(tmp_path, body)


def test_who_was_turned_away_otherwise_is_not_looked_at_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As when the sockets of a robot that nobody has are removed."""

    async def body(scene: Scene) -> None:
        visitor = scene.come(b"011\n")
        await scene.visitor()
        await until(lambda: scene.visits.news._futures, "it to wait")
        scene.robots[NAME].dismiss("nobody has had it")
        await hangs_up(visitor)
        await until(lambda: not scene.visits._tasks, "nobody to be sought any more")
        assert "unexpected error" not in caplog.text
        assert caplog.text.count("turned away") == 1
        assert not scene.robots

    play(tmp_path, body)


def test_a_robot_that_is_here_is_visited_here(tmp_path: Path, said: Said) -> None:
    async def body(scene: Scene) -> None:
        session: Any = SimpleNamespace(
            services=("",), board=SimpleNamespace(visitors=[]), unreachable="it has expired", standbys=[]
        )
        robot = scene.robots.provide(NAME)
        robot._session = session
        await hangs_up(scene.come(b"web@011\n"))
        await hangs_up(scene.come(b"011\n"))
        uid = os.getuid()
        assert [text for _, text in said] == [
            f"robot 011: visitor with uid {uid} turned away: the robot does not offer web",
            f"robot 011: visitor with uid {uid} turned away: it has expired",
        ]
        assert scene.robots[NAME] is robot
        robot._session = None

    play(tmp_path, body)


def test_a_stop_sends_away_who_has_not_said_a_name_and_leaves_who_has(tmp_path: Path, said: Said) -> None:
    async def body(scene: Scene) -> None:
        nameless, named = scene.come(b"01"), scene.come(b"011\n")
        await scene.visitor()
        scene.gate.close()
        await hangs_up(nameless)
        later = scene.come(b"012\n")
        await scene.visits.close()
        named.setblocking(False)
        with pytest.raises(BlockingIOError):
            named.recv(1)
        assert scene.waiting == [(NAME, "")], "it is left to the next daemon as all who wait"
        later.close()
        assert said == []

    play(tmp_path, body)


def test_without_descriptors_they_wait_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def too_few(descriptors: Descriptors) -> bool:
        asked.append(descriptors)
        return False

    monkeypatch.setattr(Descriptors, "for_visitor", too_few)

    async def body(scene: Scene) -> None:
        scene.come(b"011\n")
        await until(lambda: asked, "the question")
        assert scene.waiting == []

    play(tmp_path, body)


# What systemd passes


def passing(sock: socket.socket, name: str = "shadow-gate") -> Store:
    store = Store()
    store._passed = [(sock.detach(), name)]
    return store


def test_the_socket_is_taken(tmp_path: Path) -> None:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(tmp_path / "gate"))
    made.listen()
    (sock,) = listen(passing(made))
    with sock:
        assert sock.getsockname() == str(tmp_path / "gate")
        assert not sock.getblocking()
    assert listen(Store()) == []


def test_a_port_for_everybody_is_no_gate() -> None:
    with pytest.raises(ConfigError, match="'shadow-gate' from systemd is no unix socket") as caught:
        listen(passing(socket.create_server(("127.0.0.1", 0))))
    assert caught.value.exit_status == 78


def test_a_server_that_is_alone_says_that_it_has_no_use_for_it(tunnel: Tunnel) -> None:
    server = tunnel.start_server_with_gate()
    server.wait_for_log("dropped 1 descriptor of no use to this version with these settings: shadow-gate")


# With real servers


@pytest.fixture
def gates(fleet: Fleet) -> Fleet:
    """Two servers, each with a gate, and without sockets of each other's robots."""
    for site in fleet.sites:
        site.start_with_gate("--max-fleet-sockets=0", f"--start-timeout={DEADLINE:g}")
    for site in fleet.sites:
        site.follow()
    return fleet


@pytest.fixture
def robot(gates: Fleet) -> Iterator[None]:
    """A real one at the first server, with a service that echoes."""
    with serving(echo) as service:
        gates.sites[0].tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        wait_for(lambda: (gates.home() or ("", 0))[0] == "s1", "the robot's entry")
        yield


def ask(site: Site, words: bytes) -> socket.socket:
    visitor = socket.socket(socket.AF_UNIX)
    visitor.settimeout(DEADLINE)
    visitor.connect(str(site.tunnel.ldir / GATE))
    visitor.sendall(words)
    return visitor


def hears(visitor: socket.socket, words: bytes) -> None:
    said = b""
    while len(said) < len(words):
        part = visitor.recv(len(words))
        assert part, f"hung up after {said[:100]!r}"
        said += part
    assert said == words


def test_the_gate_leads_to_a_robot_at_any_server(gates: Fleet, robot: None) -> None:
    """What is behind the line in its packet arrives whole, and so does all that follows."""
    one, two = gates.sites
    start, more = random_bytes(5000, 1), random_bytes(300_000, 2)
    for site in gates.sites:
        with ask(site, b"011\n" + start) as visitor:
            hears(visitor, start)
            assert exchange(visitor, more) == more
    assert not two.tunnel.socket_path().exists()
    two.daemon.wait_for_log(r"robot 011: stream \w+ started for uid .*, by way of server s1")
    two.daemon.wait_for_log(r"robot 011: stream \w+ ended: 305000 bytes to the robot, 305000 bytes from it")
    one.daemon.wait_for_log(r"robot 011: stream \w+ started for uid \d+ \(\w+ at server s2\)")


def test_a_service_that_the_robot_does_not_offer(gates: Fleet, robot: None) -> None:
    one, two = gates.sites
    for site in gates.sites:
        with ask(site, b"web@011\n") as visitor:
            assert visitor.recv(1) == b""
    one.daemon.wait_for_log(r"visitor with uid \d+ turned away: the robot does not offer web")
    two.daemon.wait_for_log(r"turned away: server s1 says: the robot has no service web")


@pytest.mark.parametrize("where", [0, 1])
def test_a_visitor_waits_for_a_robot_that_nobody_has_yet(gates: Fleet, where: int) -> None:
    """It may come here, or to another server."""
    with ask(gates.sites[0], b"011\nhello") as visitor:
        site = gates.sites[where]
        with site.robot(), connect(site.tunnel, NAME) as peer:
            peer.hello(NAME, role="data", session=site.answer[1]["session"])
            kind, _start = peer.receive()
            assert kind == START
            peer.send(STARTED)
            peer.sock.sendall(b"here I am")
            hears(visitor, b"here I am")


def test_nobody_waits_for_ever(gates: Fleet) -> None:
    two = gates.sites[1]
    two.daemon.stop()
    two.start_with_gate("--start-timeout=1")
    with ask(two, b"nobody\n") as visitor:
        assert visitor.recv(1) == b""
    two.daemon.wait_for_log(
        "robot nobody: visitor with .* turned away: no server of the fleet has had the robot for 1 s"
    )


def shadowctl(site: Site, *words: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "shadow.cli.ctl", f"--dir={site.tunnel.ldir}", "connect", *words],
        cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_shadowctl_goes_by_the_gate(gates: Fleet, robot: None) -> None:
    two = gates.sites[1]
    output, errors = shadowctl(two, "011.robot").communicate(b"there and back", DEADLINE)
    assert (output, errors) == (b"there and back", b"")
    ours, theirs = socket.socketpair()
    with ours, theirs:  # as ssh does it
        with shadowctl(two, "--fdpass", "--", "011.robot", stdout=theirs.fileno()) as process:
            assert process.wait(DEADLINE) == 0
        _message, (descriptor,), _flags, _address = socket.recv_fds(ours, 1, 1)
    with socket.socket(fileno=descriptor) as visitor:
        assert exchange(visitor, b"without anybody between") == b"without anybody between"


def test_shadowctl_says_that_it_has_waited_in_vain(gates: Fleet) -> None:
    two = gates.sites[1]
    two.daemon.stop()
    two.start_with_gate("--start-timeout=1")
    with shadowctl(two, "nobody") as process:  # which could still say something
        assert process.wait(DEADLINE) == 69
        assert process.stdout is not None
        assert process.stdout.read() == b""
        assert process.stderr is not None
        assert process.stderr.read() == (
            b"shadowctl: the server has hung up before anything came from the robot; "
            b"the server's log says why: journalctl -u shadow-server\n"
        )
