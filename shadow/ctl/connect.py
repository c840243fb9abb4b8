"""The visitor's side of a robot's socket: opening it, and passing it on or joining it to pipes.

In a fleet, a robot that has no socket here may be visited all the same: by the gate (``fleet.gate``).
"""

import contextlib
import difflib
import os
import socket
import threading
from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError, LocalError, NotPermitted, OutputError, Unreachable, reason
from ..names import GATE, ROBOT_NAME_MAX, check_robot_name, check_service_name, full_name, socket_name
from ..text import printable, shorten

_CHUNK = 2**18  # bytes moved at once
_WHY = "the server's log says why: journalctl -u shadow-server"


def reach(folder: Path, robot: str, service: str) -> socket.socket:
    """A connection to a robot's service, or one on which the server of a fleet is asked for it.

    Args:
        folder: where the server has the robots' sockets.
        robot: its name.
        service: its name; empty for the default one.

    Raises:
        ConfigError: this cannot be the name of a robot or a service.
        Unreachable: the robot is not connected, has no such service, or there is no server.
        NotPermitted: this user may not visit robots.
        LocalError: the machine failed.
    """
    check_robot_name(robot)
    if service:
        check_service_name(service)
    try:
        try:
            return dial(folder / socket_name(robot, service))
        except FileNotFoundError:
            if not _services(folder, robot):
                with contextlib.suppress(FileNotFoundError, ConnectionError):  # no gate, or nobody at it
                    return _ask_at_gate(folder / GATE, full_name(robot, service))
            raise
    except OSError as error:
        raise _explained(error, folder, robot, service) from error


def _ask_at_gate(gate: Path, name: str) -> socket.socket:
    """A connection on which the server was told whom it is for; it may wait for that robot.

    Raises:
        OSError: there is no gate.
    """
    sock = dial(gate)
    try:
        sock.sendall(f"{name}\n".encode())
    except BaseException:
        sock.close()
        raise
    return sock


def dial(path: Path) -> socket.socket:
    """A connection to a unix socket.

    Raises:
        OSError: there is none.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(path))
    except BaseException:
        sock.close()
        raise
    return sock


class NotConnected(Unreachable):
    """The robot is not connected; the server is there."""


def not_connected(robot: str, near: Iterable[str]) -> NotConnected:
    """The error for a robot that is not there; ``near`` are robots with similar names."""
    names = printable(", ".join(near))
    hint = f"; did you mean {names}?" if names else ""
    return NotConnected(f"robot {shorten(robot)} is not connected{hint}")


def elsewhere(robot: str, server: str) -> NotConnected:
    """The error for a robot that is connected to another server of the fleet, which must be asked."""
    return NotConnected(
        f"robot {shorten(robot)} is connected to server {printable(server)}, not to this one: ask there"
    )


def _explained(
    error: OSError, folder: Path, robot: str, service: str
) -> ConfigError | Unreachable | NotPermitted | LocalError:
    if isinstance(error, PermissionError):
        return NotPermitted(
            f"{folder}: permission denied; you need to be in the group shadow-tunnel "
            "(log in again afterwards)"
        )
    if isinstance(error, ConnectionRefusedError):
        return Unreachable(f"robot {robot} is not connected: its socket is there, and nobody listens")
    if not isinstance(error, FileNotFoundError):
        return LocalError(f"cannot reach robot {robot}: {reason(error)}")
    if not folder.is_dir():
        return Unreachable(f"{folder} does not exist: shadow-server does not run here")
    if services := _services(folder, robot):
        known = ", ".join(sorted(services))
        return Unreachable(
            f"robot {robot} is connected and does not offer {service or 'default'}; it offers {known}"
        )
    return not_connected(robot, robots_like(robot, folder))


def robots_like(robot: str, folder: Path) -> list[str]:
    """Connected robots with names similar to one that is not connected: at most three, best first."""
    known = {name.rpartition("@")[2] for name in _sockets(folder)} - {robot}  # sockets may stay for a while
    return difflib.get_close_matches(robot[:ROBOT_NAME_MAX], known, n=3)


def _services(folder: Path, robot: str) -> list[str]:
    """The services of a robot that have a socket here."""
    sockets = _sockets(folder)
    services = [name.partition("@")[0] for name in sockets if name.endswith(f"@{robot}")]
    return [*services, "default"] if robot in sockets else services


def _sockets(folder: Path) -> list[str]:
    """The sockets in the folder, without their suffix; none if we may not look into it."""
    with contextlib.suppress(OSError):
        return [path.name.removesuffix(".sock") for path in folder.glob("*.sock")]
    return []


def hand_over(sock: socket.socket, descriptor: int) -> None:
    """Send a connection itself through a unix socket (ssh_config(5), ProxyUseFdpass).

    Raises:
        ConfigError: ``descriptor`` is not a unix socket.
    """
    try:
        with socket.socket(fileno=os.dup(descriptor)) as to:
            socket.send_fds(to, [b"\0"], [sock.fileno()])
    except OSError as error:
        raise ConfigError(
            "standard output is not a unix socket: --fdpass is for ssh's ProxyUseFdpass=yes"
        ) from error


def join(sock: socket.socket, source: int, sink: int) -> None:
    """Move bytes from ``source`` to the connection and from there to ``sink``, until the robot has ended.

    Raises:
        Unreachable: the connection broke; or it was the gate's, and has ended before a byte went either way.
        OutputError: ``sink`` cannot be written to; if its reader has left, that is no error.
    """
    by_gate = Path(os.fsdecode(sock.getpeername())).name == GATE
    began = threading.Event()
    threading.Thread(target=_send, args=(sock, source, began), daemon=True).start()
    heard = False
    try:
        while data := sock.recv(_CHUNK):
            heard = True
            _write(sink, data)
    except ConnectionResetError as error:
        why = f"; if it was never there, {_WHY}" if by_gate and not heard else ""
        raise Unreachable(f"the connection to the robot broke{why}") from error
    except BrokenPipeError:
        return
    if by_gate and not heard and not began.is_set():
        raise Unreachable(f"the server has hung up before anything came from the robot; {_WHY}")


def _send(sock: socket.socket, source: int, began: threading.Event) -> None:
    with contextlib.suppress(OSError):  # the thread that reads from the robot will notice
        while data := os.read(source, _CHUNK):
            began.set()
            sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)


def _write(sink: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(sink, view) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(reason(error)) from error
