"""Listening sockets: what may be replaced, what may not, and running out of descriptors."""

import asyncio
import contextlib
import os
import resource
import socket
import stat
from pathlib import Path

import pytest

from bench.processes import free_port
from shadow.errors import ConfigError, LocalError
from shadow.listener import Acceptor, listen_tcp, listen_unix


def test_a_robots_socket_is_for_owner_and_group_only(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        listener = listen_unix(tmp_path / "011.sock")
        assert os.umask(0) == 0, "the process's umask must be as before"
    finally:
        os.umask(previous)
    mode = (tmp_path / "011.sock").stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    listener.close()
    assert not list(tmp_path.iterdir())


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "011.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = listen_unix(path)
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.connect(str(path))
    listener.close()


def test_a_live_socket_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "011.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(LocalError, match=r"another process listens on .*011\.sock"):
            listen_unix(path)
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(str(path))


@pytest.mark.parametrize("kind", ["file", "folder", "symlink", "fifo"])
def test_what_is_not_a_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "011.sock", tmp_path / "target"
    target.write_text("precious")
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    elif kind == "symlink":
        path.symlink_to(target)
    else:
        os.mkfifo(path)
    before = path.lstat()
    with pytest.raises(LocalError, match="in the way and not a socket"):
        listen_unix(path)
    assert path.lstat() == before
    assert target.read_text() == "precious"


def test_closing_removes_only_our_own_file(tmp_path: Path) -> None:
    path = tmp_path / "011.sock"
    listener = listen_unix(path)
    path.unlink()
    path.write_text("somebody else's")
    listener.close()
    assert path.read_text() == "somebody else's"


def test_a_path_too_long_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="longer than 107 bytes; use a shorter --ldir"):
        listen_unix(tmp_path / ("x" * 120))
    longest = Path("/tmp") / ("x" * (107 - len("/tmp/")))  # noqa: S108
    listen_unix(longest).close()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"cannot make the socket .*: No such file or directory"):
        listen_unix(tmp_path / "missing" / "011.sock")


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "reachable"),
    [
        (True, True, {"127.0.0.1", "::1"}),
        (True, False, {"127.0.0.1"}),
        (False, True, {"::1"}),
    ],
)
def test_families(ipv4: bool, ipv6: bool, reachable: set[str]) -> None:  # noqa: FBT001
    port = free_port()
    sockets = listen_tcp(port, ipv4=ipv4, ipv6=ipv6)
    answered = set()
    for host in ("127.0.0.1", "::1"):
        try:
            socket.create_connection((host, port), timeout=5).close()
        except ConnectionRefusedError:
            continue
        answered.add(host)
    for sock in sockets:
        sock.close()
    assert answered == reachable


def test_a_port_that_is_taken_is_named() -> None:
    port = free_port()
    (sock,) = listen_tcp(port, ipv4=True, ipv6=True)
    with sock, pytest.raises(LocalError, match=rf"port {port}: Address already in use; is another"):
        listen_tcp(port, ipv4=True, ipv6=True)


def test_accepting_pauses_without_descriptors_and_recovers() -> None:
    async def body() -> None:
        (listener,) = listen_tcp(free_port(), ipv4=True, ipv6=False)
        accepted: list[socket.socket] = []
        exhausted: list[OSError] = []
        acceptor = Acceptor(listener, accepted.append, exhausted.append)
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
        # Fill the gaps below the limit too, or accept() would take them.
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, limits[1]))
        fillers = []
        try:
            with contextlib.suppress(OSError):  # EMFILE, in the end
                while True:
                    fillers.append(os.dup(0))
            while not exhausted:
                await asyncio.sleep(0.01)
            assert not accepted
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for descriptor in fillers:
                os.close(descriptor)
        async with asyncio.timeout(20):
            while len(accepted) < 3:
                await asyncio.sleep(0.01)
        assert len(exhausted) <= 2, "a pause must be a pause, not a busy loop"
        acceptor.close()
        for sock in [*accepted, *clients, listener]:
            sock.close()

    asyncio.run(body())


def test_a_held_acceptor_accepts_nobody_until_resumed() -> None:
    async def body() -> None:
        (listener,) = listen_tcp(free_port(), ipv4=True, ipv6=False)
        accepted: list[socket.socket] = []
        acceptor = Acceptor(listener, accepted.append, lambda _error: None)
        acceptor.hold()
        with socket.create_connection(listener.getsockname()):
            for _ in range(20):
                await asyncio.sleep(0)
            assert not accepted
            acceptor.resume()
            async with asyncio.timeout(20):
                while not accepted:
                    await asyncio.sleep(0.01)
        acceptor.close()
        accepted[0].close()
        listener.close()

    asyncio.run(body())
