"""Unix sockets with restricted access, and who has connected to one; see unix(7)."""

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, LocalError, file_reason

BACKLOG = 1024  # connections waiting to be accepted; the kernel caps it at net.core.somaxconn
SOCKET_MODE = 0o660  # the daemon and its group; nobody else may connect
_SUN_PATH_MAX = 107  # bytes (unix(7): 108 with the terminating NUL)


@dataclass(frozen=True, slots=True)
class UnixListener:
    """A robot's unix socket: the file and the listening socket behind it.

    Attributes:
        path: the file.
        sock: listening, non-blocking.
        identity: device and inode of the file.
    """

    path: Path
    sock: socket.socket
    identity: tuple[int, int]

    @property
    def record(self) -> dict[str, Any]:
        """What ``remembered`` needs besides the socket, fit for JSON."""
        return {"identity": self.identity}

    @property
    def as_made_today(self) -> bool:
        """True if the file is in place and has the owner, group and mode that we would give it now."""
        with contextlib.suppress(OSError):
            status = self.path.lstat()
            ours = status.st_uid == os.geteuid() and status.st_gid == os.getegid()
            return ours and self.in_place and stat.S_IMODE(status.st_mode) == SOCKET_MODE
        return False

    @property
    def in_place(self) -> bool:
        """True if the file is still there and still ours: connecting to the path leads here."""
        with contextlib.suppress(OSError):
            return _identity(self.path) == self.identity
        return False

    def close(self) -> None:
        """Close the socket; remove the file if it is still ours."""
        if self.in_place:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.sock.close()


def remembered(sock: socket.socket, record: Mapping[str, Any]) -> UnixListener:
    """The listener that another process has recorded.

    Raises:
        KeyError, TypeError, ValueError: the record is not one of a listener.
    """
    device, inode = record["identity"]
    return UnixListener(Path(os.fsdecode(sock.getsockname())), sock, (int(device), int(inode)))


def listen_unix(path: Path) -> UnixListener:
    """Bind ``path`` with ``SOCKET_MODE``, replacing a stale socket but nothing else.

    Raises:
        ConfigError: the path is too long.
        LocalError: something is in the way, or the folder cannot be written.
    """
    if len(os.fsencode(path)) > _SUN_PATH_MAX:
        raise ConfigError(f"socket path {path} is longer than {_SUN_PATH_MAX} bytes; use a shorter --ldir")
    try:
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:  # no descriptors left
        raise LocalError(f"cannot make the socket {path}: {file_reason(error)}") from error
    # The mode must be right from the first moment, so we use umask rather than chmod. The umask applies to
    # the whole process, but no other thread of ours creates files.
    previous = os.umask(0o777 & ~SOCKET_MODE)
    try:
        sock.bind(os.fspath(path))
        sock.listen(BACKLOG)
        return UnixListener(path, sock, _identity(path))
    except OSError as error:
        sock.close()
        raise LocalError(f"cannot make the socket {path}: {file_reason(error)}") from error
    finally:
        os.umask(previous)


def _identity(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_dev, status.st_ino


def _remove_stale(path: Path) -> None:
    """Remove a socket file that nobody listens on.

    Raises:
        LocalError: it is not a socket (a symbolic link is not followed), or somebody does listen.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise LocalError(f"cannot look at {path}: {file_reason(error)}") from error
    if not stat.S_ISSOCK(mode):
        raise LocalError(f"{path} is in the way and not a socket; it was left alone: move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        outcome = probe.connect_ex(os.fspath(path))
    if outcome != errno.ECONNREFUSED:
        raise LocalError(f"another process listens on {path}; it was left alone")
    try:
        path.unlink()
    except OSError as error:
        raise LocalError(f"cannot replace the stale socket {path}: {file_reason(error)}") from error


_UCRED = struct.Struct("iII")  # pid, uid, gid (unix(7), SO_PEERCRED)


def peer_credentials(sock: Any) -> tuple[int, int, int]:
    """Process, user and group of the peer that connected to a unix socket, according to the kernel."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid
