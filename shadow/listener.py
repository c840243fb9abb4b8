"""Listening sockets: the TCP port, the robots' unix sockets, and accepting on both with patience."""

import asyncio
import contextlib
import errno
import os
import select
import socket
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError, LocalError, file_reason, reason

BACKLOG = 1024  # connections waiting to be accepted; the kernel caps it at net.core.somaxconn
SOCKET_MODE = 0o660  # the daemon and its group; everybody else stays outside
_SUN_PATH_MAX = 107  # bytes (unix(7): 108 with the terminating NUL)
_ACCEPTS_AT_ONCE = 64
_PAUSE = 1.0  # seconds until accepting is tried again when descriptors have run out
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def listen_tcp(port: int, *, ipv4: bool, ipv6: bool) -> list[socket.socket]:
    """Listening sockets on all addresses of the chosen families; one dual-stack socket where possible.

    Raises:
        LocalError: the port is taken, or may not be used by us.
    """
    try:
        if not ipv6 or (ipv4 and not socket.has_dualstack_ipv6()):
            return [_listen(socket.AF_INET, ("0.0.0.0", port), dual=False)]  # noqa: S104 - the job
        return [_listen(socket.AF_INET6, ("::", port), dual=ipv4)]
    except OSError as error:
        hint = "; is another server running?" if error.errno == errno.EADDRINUSE else ""
        raise LocalError(f"cannot listen on port {port}: {reason(error)}{hint}") from error


def _listen(family: int, address: tuple[str, int], *, dual: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        sock.bind(address)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


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
        """True if the file is in place, and has the owner, group and mode that we would give it."""
        with contextlib.suppress(OSError):
            status = self.path.lstat()
            ours = status.st_uid == os.geteuid() and status.st_gid == os.getegid()
            return ours and self.in_place and stat.S_IMODE(status.st_mode) == SOCKET_MODE
        return False

    @property
    def in_place(self) -> bool:
        """True if the file is still there, and ours: who connects to the path comes here."""
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
    """The listener that another process has noted down.

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
    # The mode must be right from the first moment, so by umask rather than chmod. It is the process's,
    # but no other thread of ours makes files.
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


class Acceptor:
    """Accepts connections on a listening socket as long as there are descriptors for them.

    When they run out, or are wanted for others, it stops looking for a second and tries again: what waits
    stays in the backlog, and what runs is not disturbed.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_accept: Callable[[socket.socket], None],
        on_exhausted: Callable[[OSError], None],
        may_accept: Callable[[], bool] = lambda: True,
    ) -> None:
        """Accept from now on.

        Args:
            sock: listens.
            on_accept: gets each connection.
            on_exhausted: hears of it when there was no descriptor, or no memory.
            may_accept: asked before each.
        """
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._may_accept = may_accept
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._on_accept = on_accept
        self._on_exhausted = on_exhausted
        self._held = self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._acceptable)

    def hold(self) -> None:
        """Stop accepting until ``resume``."""
        self._held = True
        self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        """Accept again."""
        self._held = False
        if self._timer is None and not self._closed:
            self._loop.add_reader(self._sock, self._acceptable)

    def close(self) -> None:
        """Stop for good; the listening socket stays open."""
        self._closed = True
        self._loop.remove_reader(self._sock)
        if self._timer is not None:
            self._timer.cancel()

    def _acceptable(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            if self._held or self._closed:
                return
            if not self._may_accept():
                self._pause()
                return
            try:
                connection, _address = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # Others are errors of the connection that was to be accepted (accept(2)): try again.
                if error.errno in _EXHAUSTED:
                    self._pause()
                    self._on_exhausted(error)
                return
            connection.setblocking(False)
            self._on_accept(connection)
            if not self._poll.poll(0):  # `may_accept` is for somebody who is there
                return

    def _pause(self) -> None:
        self._loop.remove_reader(self._sock)
        self._timer = self._loop.call_later(_PAUSE, self._unpause)

    def _unpause(self) -> None:
        self._timer = None
        if not self._held:
            self.resume()
