"""Opening a robot's socket: what is said when that does not work, and what moves the bytes when it does."""

import array
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shadow.ctl.connect import hand_over, join, reach
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
def _closed() -> None:
    while _open:
        _open.pop().close()


def test_it_is_reached(folder: Path) -> None:
    for service in ("", "web"):
        reach(folder, "011", service).close()


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
    with theirs, pytest.raises(Unreachable, match="the connection to the robot broke"):
        join(theirs, reader, writer)
    os.close(writer)
    os.close(reader)
