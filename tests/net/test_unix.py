"""Robots' sockets: what may be replaced, and what may not."""

import os
import socket
import stat
from pathlib import Path

import pytest

from shadow.errors import ConfigError, LocalError
from shadow.net.unix import listen_unix


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
