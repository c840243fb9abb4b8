"""Descriptors from the service manager: sockets that it passes, and the store where it keeps ours.

See sd_listen_fds(3), sd_pid_notify_with_fds(3) and FileDescriptorStoreMax= in systemd.service(5). Outside
systemd none of this does anything.
"""

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Mapping

from systemd import daemon as _daemon

from ..errors import ConfigError, LocalError, reason
from ..events import STEPS


class Store:
    """What the service manager passed to us, and what it keeps for us: its file descriptor store.

    See sd_listen_fds(3), and sd_notify(3) on FDSTORE=1. Stored descriptors come back when the service starts
    again, whatever ended it; ``systemctl stop`` drops them.

    Attributes:
        limit: how many descriptors may be stored; 0 if there is no store.
    """

    def __init__(self) -> None:
        """Take what was passed.

        Raises:
            ConfigError: ``FDSTORE`` or ``FDSTORE_MAX`` is not a number.
        """
        self.limit = _store_limit() if "NOTIFY_SOCKET" in os.environ else 0
        self._count = 0
        self._passed = list(_daemon.listen_fds_with_names(unset_environment=True).items())
        for descriptor, _name in self._passed:
            # systemd passes them without the flag, or they could not have survived its execve().
            fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)

    @property
    def free(self) -> int:
        """How many more may be stored; the service manager silently closes what exceeds its limit."""
        return self.limit - self._count

    def take(self, wanted: Callable[[str], object]) -> list[tuple[str, int]]:
        """The passed descriptors whose names are wanted; they are the caller's."""
        taken = [(name, descriptor) for descriptor, name in self._passed if wanted(name)]
        self._passed = [(descriptor, name) for descriptor, name in self._passed if not wanted(name)]
        return taken

    def was_passed(self, wanted: Callable[[str], object]) -> bool:
        """True if a passed descriptor that nobody has taken has a wanted name."""
        return any(wanted(name) for _descriptor, name in self._passed)

    def count(self, number: int) -> None:
        """Count descriptors that came out of the store: they are still in it."""
        self._count += number

    def add(self, name: str, descriptor: int) -> None:
        """Store a copy of a descriptor; ``name`` is ASCII, without a colon, and used once.

        Raises:
            LocalError: the service manager cannot be reached.
        """
        try:
            _daemon.notify(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", fds=[descriptor])
        except OSError as error:
            raise LocalError(f"the service manager cannot be reached: {reason(error)}") from error
        self._count += 1
        STEPS.debug("stored descriptor %d as %s, %d of %d", descriptor, name, self._count, self.limit)

    def remove(self, name: str) -> None:
        """Drop the descriptor stored under a name."""
        self._count -= 1
        _drop(name)
        STEPS.debug("dropped %s from the store, %d of %d", name, self._count, self.limit)

    def close_rest(self) -> list[str]:
        """Close what nobody has taken, and have the store drop it; return the names."""
        names = [name for _descriptor, name in self._passed]
        for descriptor, name in self._passed:
            os.close(descriptor)
            _drop(name)
        self._passed = []
        return names


def _drop(name: str) -> None:
    with contextlib.suppress(OSError):  # if so, it stays until the service is stopped
        _daemon.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


class Memo:
    """One bit that outlives the process: whether a descriptor of no other meaning is in the store.

    Attributes:
        is_set: as it was when the process started, or has been set since.
    """

    def __init__(self, name: str) -> None:
        """Look; must run before ``Store`` is made, which removes the passed names from the environment."""
        self._name = name
        self.is_set = name in os.environ.get("LISTEN_FDNAMES", "").split(":")
        self._can_be_set = "NOTIFY_SOCKET" in os.environ

    def set(self) -> None:
        """Set it, if there is a store; without a service manager nothing happens."""
        if not self.is_set and self._can_be_set:
            with contextlib.suppress(OSError), os.fdopen(os.memfd_create(self._name), "rb") as nothing:
                _daemon.notify(f"FDSTORE=1\nFDNAME={self._name}\nFDPOLL=0", fds=[nothing.fileno()])
                self.is_set = True

    def clear(self, store: Store | None = None) -> None:
        """Clear it; also take it from what the store has passed to us, if it is there."""
        for _name, descriptor in store.take(lambda name: name == self._name) if store else []:
            os.close(descriptor)
        if self.is_set:
            _drop(self._name)
            self.is_set = False


def passes_socket(name: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether ``listening_sockets`` will find any; call it before ``Store`` takes what was passed."""
    if environment.get("LISTEN_PID") != str(os.getpid()) or environment.get("LISTEN_FDS", "0") == "0":
        return False
    return any(map(_chosen(name), environment.get("LISTEN_FDNAMES", "").split(":")))


def _chosen(name: str) -> Callable[[str], bool]:
    return lambda its_name: its_name in {name, "unknown", ""}


def listening_sockets(name: str, store: Store) -> list[socket.socket]:
    """The listening sockets that systemd passed under ``FileDescriptorName=name``.

    A socket without a name of its own (``systemd-socket-activate`` without ``--fdname``) counts too.

    Raises:
        ConfigError: what was passed is not a listening stream socket.
    """
    passed = store.take(_chosen(name))
    return [_listening_socket(descriptor, its_name) for its_name, descriptor in passed]


def _store_limit() -> int:
    """How many descriptors the service manager keeps for us.

    From version 254 on systemd says so itself in ``FDSTORE``, and is right even if a drop-in has changed
    ``FileDescriptorStoreMax=``. A variable of that name in a unit would override it (``Environment=``,
    systemd.exec(5)), so our units set one of another name for older versions.
    """
    for name in ("FDSTORE", "FDSTORE_MAX"):
        limit = os.environ.get(name)
        if limit is not None:
            if not (limit.isascii() and limit.isdecimal()):
                raise ConfigError(f"{name}={limit!r} in the environment is not a number")
            return int(limit)
    return 0


def _listening_socket(descriptor: int, name: str) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigError(f"descriptor {descriptor} ({name}) from systemd is not a socket") from error
    if not listening or sock.type != socket.SOCK_STREAM:
        sock.close()
        raise ConfigError(f"socket {name!r} from systemd does not listen (ListenStream=, Accept=no)")
    sock.setblocking(False)
    return sock
