"""Opening a robot's socket: what is said when that does not work, and what moves the bytes when it does."""

import array
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadow.ctl.connect import hand_over, join, reach, robots_like
from shadow.errors import ConfigError, LocalError, NotPermitted, ShadowError, Unreachable
from tests.support import CHECKOUT, DEADLINE, echo, random_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Robots 011 with a default service, web@011, web@012, and a dead 013."""
    for name in ("011", "web@011", "web@012", "013"):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / f"{name}.sock"))
        if name == "013":
            sock.close()
        else:
            sock.listen()
            _open.append(sock)
    return tmp_path


_open: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _open:
        _open.pop().close()


def test_it_is_reached(folder: Path) -> None:
    for service in ("", "web"):
        reach(folder, "011", service).close()


def test_a_robot_that_is_not_connected_is_not_like_itself(folder: Path) -> None:
    """In a fleet, its sockets are there for a while."""
    assert robots_like("0111", folder)[0] == "011"
    assert sorted(robots_like("011", folder)) == ["012", "013"]


@pytest.mark.parametrize(
    ("robot", "service", "kind", "complaint"),
    [
        ("0111", "", Unreachable, "robot '0111' is not connected; did you mean 011"),
        ("zebra", "", Unreachable, "robot 'zebra' is not connected"),
        ("013", "", Unreachable, "robot 013 is not connected: its socket is there, and nobody listens"),
        ("011", "wbe", Unreachable, "does not offer wbe; it offers default, web"),
        ("012", "", Unreachable, "does not offer default; it offers web"),
        ("../011", "", ConfigError, "robot name '../011' is not allowed"),
        ("", "", ConfigError, "robot name '' is not allowed"),
        ("011", "a/b", ConfigError, "service name 'a/b' is not allowed"),
    ],
)
def test_it_is_not_reached(
    folder: Path, robot: str, service: str, kind: type[ShadowError], complaint: str
) -> None:
    with pytest.raises(kind) as caught:
        reach(folder, robot, service)
    assert complaint in str(caught.value)


@pytest.fixture
def gate(folder: Path) -> Iterator[socket.socket]:
    """The server is one of a fleet."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(folder / "gate"))
        sock.listen()
        sock.settimeout(DEADLINE)
        yield sock


@pytest.mark.parametrize(("service", "line"), [("", b"0111\n"), ("web", b"web@0111\n")])
def test_a_robot_without_sockets_is_asked_for_at_the_gate(
    folder: Path, gate: socket.socket, service: str, line: bytes
) -> None:
    with reach(folder, "0111", service):
        connection, _address = gate.accept()
        with connection:
            assert connection.recv(100) == line


@pytest.mark.parametrize(
    ("robot", "service", "complaint"),
    [
        ("011", "wbe", "does not offer wbe; it offers default, web"),
        ("012", "", "does not offer default; it offers web"),
        ("013", "", "its socket is there, and nobody listens"),
        ("../011", "", "robot name '../011' is not allowed"),
    ],
)
def test_what_can_be_seen_without_is_not_asked_for_at_the_gate(
    folder: Path, gate: socket.socket, robot: str, service: str, complaint: str
) -> None:
    with pytest.raises(ShadowError, match=complaint):
        reach(folder, robot, service)
    reach(folder, "011", "").close()
    gate.setblocking(False)
    with pytest.raises(BlockingIOError):
        gate.accept()


def test_a_gate_at_which_nobody_is(folder: Path, gate: socket.socket) -> None:
    gate.close()
    with pytest.raises(Unreachable, match="robot '0111' is not connected; did you mean 011"):
        reach(folder, "0111", "")


def test_a_gate_for_others_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_sock: socket.socket, path: str) -> None:
        raise PermissionError(13, "x") if path.endswith("/gate") else FileNotFoundError(2, "x")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(NotPermitted, match="you need to be in the group shadow-tunnel"):
        reach(folder, "0111", "")


def test_no_server_here(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="does not exist: shadow-server does not run here"):
        reach(tmp_path / "away", "011", "")


def test_a_path_too_long(tmp_path: Path) -> None:
    with pytest.raises((LocalError, OSError)):
        reach(tmp_path / ("x" * 120), "011", "")


def test_not_permitted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "x")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(NotPermitted, match="permission denied; you need to be in the group shadow-tunnel"):
        reach(folder, "011", "")


def test_the_connection_itself_is_handed_over() -> None:
    near, far = socket.socketpair()
    to, ours = socket.socketpair()
    with near, far, to, ours:
        hand_over(near, to.fileno())
        message, (control,), _flags, _address = ours.recvmsg(16, socket.CMSG_SPACE(4))
        assert message == b"\0"
        (descriptor,) = array.array("i", control[2])
        near.close()
        with socket.socket(fileno=descriptor) as received:
            received.sendall(b"through")
            assert far.recv(100) == b"through"


def test_handing_over_to_what_is_no_socket() -> None:
    near, far = socket.socketpair()
    reader, writer = os.pipe()
    with near, far:
        for descriptor in (writer, reader):
            with pytest.raises(ConfigError, match="--fdpass is for ssh's ProxyUseFdpass=yes"):
                hand_over(near, descriptor)
    os.close(reader)
    os.close(writer)


JOIN = """
import socket, sys
from shadow.ctl.connect import join
join(socket.socket(fileno=int(sys.argv[1])), 0, 1)
"""


def joined(theirs: socket.socket) -> subprocess.Popen[bytes]:
    with theirs:
        return subprocess.Popen(
            [sys.executable, "-c", JOIN, str(theirs.fileno())],
            cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
        )  # fmt: skip


@contextlib.contextmanager
def no_thread_left() -> Iterator[None]:
    """Whoever still reads from a descriptor would read from the next one with that number."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def echo_and_close(connection: socket.socket) -> None:
    with connection:
        echo(connection)


def test_both_directions_and_the_end() -> None:
    """More than fits anywhere: neither direction may wait for the other."""
    ours, theirs = socket.socketpair()
    data = random_bytes(3_000_000, 1)
    with joined(theirs) as process, ours:
        thread = threading.Thread(target=echo_and_close, args=(ours,))
        thread.start()
        output, errors = process.communicate(data, timeout=DEADLINE)
        thread.join()
    assert (output == data, errors, process.returncode) == (True, b"", 0)


def test_the_robot_ends_first() -> None:
    ours, theirs = socket.socketpair()
    with joined(theirs) as process:
        ours.sendall(b"bye")
        ours.close()
        assert process.stdout is not None
        assert process.stdout.read() == b"bye"
        assert process.wait(DEADLINE) == 0  # though its standard input is open


def test_a_connection_that_breaks() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    theirs.sendall(b"never read")
    ours.close()  # unread bytes: that is a reset
    with no_thread_left():
        with theirs, pytest.raises(Unreachable, match="the connection to the robot broke"):
            join(theirs, reader, writer)
        os.close(writer)
    os.close(reader)


class Hall:
    """Beyond the gate: what a server does with somebody who has named a robot."""

    def __init__(self, folder: Path, gate: socket.socket) -> None:
        self.mine = reach(folder, "0111", "")
        self.servers, _address = gate.accept()
        self.servers.recv(len("0111\n"))
        self.source, self.stdin = os.pipe()
        self.stdout, self.sink = os.pipe()

    def join(self) -> None:
        join(self.mine, self.source, self.sink)

    def close(self) -> None:
        for sock in (self.mine, self.servers):
            sock.close()
        for descriptor in (self.source, self.stdout, self.sink):
            os.close(descriptor)


@pytest.fixture
def hall(folder: Path, gate: socket.socket) -> Iterator[Hall]:
    made = Hall(folder, gate)
    with no_thread_left():
        yield made
        os.close(made.stdin)
    made.close()


def test_who_was_turned_away_at_the_gate_is_told_where_the_reason_is(hall: Hall) -> None:
    hall.servers.close()
    why = (
        "hung up before anything came from the robot; the server's log says why: journalctl -u shadow-server"
    )
    with pytest.raises(Unreachable, match=why):
        hall.join()


def test_who_had_begun_to_speak_is_told_so_too(hall: Hall) -> None:
    hall.mine.sendall(b"SSH-2.0-x")  # nobody reads that any more: a reset
    hall.servers.close()
    with pytest.raises(Unreachable, match=r"broke; if it was never there, .*journalctl -u shadow-server"):
        hall.join()


def test_a_service_that_hears_and_says_nothing_is_no_error(hall: Hall) -> None:
    os.write(hall.stdin, b"for the record")

    def swallow() -> None:
        hall.servers.recv(100)
        hall.servers.close()

    thread = threading.Thread(target=swallow)
    thread.start()
    hall.join()
    thread.join()


def test_a_robot_that_has_spoken_ends_as_any_other(hall: Hall) -> None:
    hall.servers.sendall(b"bye")
    hall.servers.close()
    hall.join()
    assert os.read(hall.stdout, 100) == b"bye"
