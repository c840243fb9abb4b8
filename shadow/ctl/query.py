"""Querying a server through its API, as ``shadowctl`` does."""

import contextlib
import math
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigError, LocalError, NotPermitted, PeerError, ShadowError, Unreachable, reason
from ..names import API, INTERFACE_FILE
from ..text import printable
from .connect import dial, elsewhere, not_connected, robots_like

Facts = dict[str, Any]

_FLEET = "fleet"
"""A parameter that servers of before there were fleets refuse; without it they answer the same."""


class Answers:
    """A connection to the API."""

    def __init__(self, folder: Path, until: float = math.inf) -> None:
        """Connect.

        Args:
            folder: where the server has its sockets.
            until: when to give up waiting for a reply, by CLOCK_MONOTONIC.

        Raises:
            LocalError: the library ``varlink`` is missing.
            Unreachable: no server, or one without an API.
            NotPermitted: this user may not query the server.
        """
        try:
            import varlink  # noqa: PLC0415 - `connect` does without it, and must be quick
        except ImportError as error:
            text = (
                "the Python library varlink is missing (Debian: python3-varlink; Debian 12: from backports)"
            )
            raise LocalError(text) from error
        self._error: type[Exception] = varlink.VarlinkError
        self._folder = folder
        self._path = folder / API
        try:
            sock = dial(self._path)
        except OSError as error:
            raise _explained(error, self._path) from error
        text = INTERFACE_FILE.read_text("ascii")
        interface = varlink.Interface(text)
        check = interface.filter_params

        def check_call(part: str, kind: Any, namespaced: bool, given: Any, named: Any) -> Any:  # noqa: FBT001
            # Servers reply what they should; with 100,000 robots the library would look at that for seconds.
            return given if part == "client.reply" else check(part, kind, namespaced, given, named)

        interface.filter_params = check_call
        self._calls = varlink.SimpleClientInterfaceHandler(interface, _Line(sock, until))

    def close(self) -> None:
        """Hang up."""
        self._calls.close()

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, **parameters: Any) -> Facts:
        """One reply.

        Raises:
            ShadowError: the server refuses, or hangs up.
        """
        with self._errors():
            reply: Facts
            try:
                reply = getattr(self._calls, method)(**parameters)
            except self._error as error:
                reply = getattr(self._calls, method)(**_without_fleet(parameters, error))
            return reply

    def more(self, method: str, **parameters: Any) -> Iterator[Facts]:
        """All replies.

        Raises:
            ShadowError: the server refuses, or hangs up.
        """
        with self._errors():
            try:
                yield from getattr(self._calls, method)(_more=True, **parameters)
            except self._error as error:
                without = _without_fleet(parameters, error)
                yield from getattr(self._calls, method)(_more=True, **without)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise self._refusal(error) from error
        except TimeoutError as error:
            raise Unreachable(f"{self._path}: the server does not answer in time") from error
        except OSError as error:
            text = f"{self._path}: the server hung up; its log says why: journalctl -u shadow-server"
            raise Unreachable(text) from error
        except (ValueError, TypeError, AttributeError, KeyError) as error:  # the library checks no replies
            raise PeerError(f"{self._path} is not the API of a shadow-server") from error

    def _refusal(self, error: Any) -> ShadowError:
        name, parameters = str(error.error()), error.parameters() or {}
        kind = name.rpartition(".")[2]
        if kind == "NoSuchRobot":
            robot, server = str(parameters.get("name")), str(parameters.get("server") or "")
            near = () if server else robots_like(robot, self._folder)
            return elsewhere(robot, server) if server else not_connected(robot, near)
        if kind == "PermissionDenied":
            return NotPermitted("only root and members of the group shadow-tunnel-admin may do that")
        if kind in {"ReloadFailed", "DrainFailed"}:
            why = f"nothing has changed: {printable(str(parameters.get('reason')))}"
            return ConfigError(why) if kind == "ReloadFailed" else LocalError(why)
        if kind in {"NoSuchStream", "NoSuchServer", "NoAnswer"}:
            return Unreachable(_absence(kind, parameters))
        if kind == "InvalidParameter" and parameters.get("parameter") == "server":
            return PeerError("this server is of another version, and passes no orders on: give them there")
        return PeerError(f"the server is of another version: {printable(name)} {printable(str(parameters))}")


def _absence(kind: str, parameters: Facts) -> str:
    if kind == "NoSuchStream":
        return f"there is no stream {parameters.get('id')!r}"
    if kind == "NoSuchServer":
        return f"server {parameters.get('server')!r} is not one of the fleet"
    return printable(str(parameters.get("reason")))


def _without_fleet(parameters: Facts, error: Any) -> Facts:
    """The parameters without those that a server of before there were fleets refuses.

    Raises:
        Exception: ``error``, if that is not what it complains of.
    """
    if _FLEET not in parameters or not str(error.error()).endswith(".InvalidParameter"):
        raise error
    return {name: value for name, value in parameters.items() if name != _FLEET}


class _Line:
    """The connection, as the library expects it, but with a limit to waiting."""

    def __init__(self, sock: socket.socket, until: float) -> None:
        self._sock = sock
        self._until = until
        self.sendall, self.close = sock.sendall, sock.close

    def recv(self, size: int) -> bytes:
        if self._until < math.inf:
            self._sock.settimeout(max(0.001, self._until - time.monotonic()))
        return self._sock.recv(size)


def _explained(error: OSError, path: Path) -> ShadowError:
    if isinstance(error, PermissionError):
        return NotPermitted(
            f"{path}: permission denied; you need to be in the group shadow-tunnel (log in again afterwards)"
        )
    if isinstance(error, FileNotFoundError | ConnectionRefusedError):
        hint = (
            "is shadow-server-api.socket active?"
            if path.parent.is_dir()
            else "shadow-server does not run here"
        )
        return Unreachable(f"{path}: {reason(error)}; {hint}")
    return LocalError(f"{path}: {reason(error)}")
