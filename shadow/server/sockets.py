"""The unix sockets of one robot: a file for each service, for as long as the robot is connected."""

import functools
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

from .. import events
from ..errors import ConfigError, LocalError, this_user
from ..names import socket_name
from ..net.acceptor import Acceptor
from ..net.unix import UnixListener, listen_unix
from .descriptors import Descriptors


class Sockets:
    """One robot's sockets in the folder ``ldir``.

    It reports visitors by ``on_visitor(service, connection)``, as long as there are ``descriptors`` left.
    """

    def __init__(
        self,
        ldir: Path,
        robot: str,
        on_visitor: Callable[[str, socket.socket], None],
        descriptors: Descriptors,
    ) -> None:
        self._ldir = ldir
        self._robot = robot
        self._on_visitor = on_visitor
        self._descriptors = descriptors
        self._listeners: dict[str, tuple[UnixListener, Acceptor]] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._listeners)

    @property
    def services(self) -> tuple[str, ...]:
        """Whose there are."""
        return tuple(self._listeners)

    def provide(self, services: tuple[str, ...]) -> bool:
        """``open`` them, and log what is worth a line; False if that is not possible."""
        try:
            removed = self.open(services)
        except (ConfigError, LocalError) as error:
            text = f"robot {self._robot}: {error}"
            events.log(events.SocketFailed(robot=self._robot), logging.ERROR, text)
            return False
        if removed:
            names = ", ".join(socket_name(self._robot, service) for service in removed)
            text = f"robot {self._robot}: somebody has removed {names}; made again"
            events.log(events.SocketRestored(robot=self._robot), logging.WARNING, text)
        return True

    def open(self, services: tuple[str, ...]) -> list[str]:
        """Make the missing sockets and remove those of services no longer offered: all, or nothing.

        A socket whose file has vanished or was replaced counts as missing, even if we once made it.

        Returns:
            The services whose sockets somebody else had removed.

        Raises:
            ConfigError: a path is too long.
            LocalError: something is in the way, or the folder cannot be written; nothing has changed.
        """
        made: dict[str, UnixListener] = {}
        try:
            for service in services:
                if not self._is_in_place(service):
                    made[service] = listen_unix(self._path(service))
        except BaseException:
            for listener in made.values():
                listener.close()
            raise
        removed = [service for service in made if service in self._listeners]
        for service in [*removed, *(set(self._listeners) - set(services))]:
            self._close(service)
        for service, listener in made.items():
            self._add(service, listener)
        return removed

    @property
    def in_place(self) -> bool:
        """True if all of them are where visitors look for them."""
        return all(map(self._is_in_place, self._listeners))

    def _is_in_place(self, service: str) -> bool:
        return service in self._listeners and self._listeners[service][0].in_place

    def _add(self, service: str, listener: UnixListener) -> None:
        on_accept = functools.partial(self._on_visitor, service)
        descriptors = self._descriptors
        acceptor = Acceptor(listener.sock, on_accept, descriptors.ran_out, descriptors.for_visitor)
        descriptors.took_one()
        self._listeners[service] = (listener, acceptor)

    def _path(self, service: str) -> Path:
        return self._ldir / socket_name(self._robot, service)

    def park(self) -> list[tuple[str, UnixListener]]:
        """Stop accepting; the services and their sockets are the caller's.

        Anyone who connects from now on waits until a process that has the socket resumes accepting.
        """
        parked = []
        for service, (listener, acceptor) in self._listeners.items():
            acceptor.close()
            parked.append((service, listener))
        self._listeners.clear()
        return parked

    def resume(self, service: str, listener: UnixListener) -> None:
        """Resume accepting on a parked socket.

        If its file is not as we would make it today, close it; ``open`` makes another.

        Raises:
            LocalError: the service has one already.
        """
        if service in self._listeners:
            raise LocalError("the service has a socket already")
        if listener.path == self._path(service) and listener.as_made_today:
            self._add(service, listener)
        else:
            listener.close()

    def close(self) -> None:
        """Remove them all."""
        for service in list(self._listeners):
            self._close(service)

    def _close(self, service: str) -> None:
        listener, acceptor = self._listeners.pop(service)
        acceptor.close()
        listener.close()


def check_folder(folder: Path) -> None:
    """Refuse a folder in which we cannot make sockets.

    Raises:
        ConfigError: missing, not a folder, or not writable.
    """
    if not folder.is_dir():
        raise ConfigError(f"--ldir {folder} is not an existing folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--ldir {folder} is not writable for {this_user()}")
