"""The gate: one socket for all robots of the fleet, where a visitor first says which of them it wants.

That is a line, ``NAME`` or ``SERVICE@NAME``, like the name of a robot's socket without its suffix, and the
first bytes on the connection. What follows belongs to the robot. From then on the visitor is one of that
robot, as if it had opened its socket; but it may ask for any robot: for one that has no socket here, since
there are so many, and for one that nobody has at the moment. It waits, then, for as long as one whose robot
is on its way from one server to another.
"""

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Iterator, Sequence

from .. import events
from .. import text as texts
from ..errors import ConfigError
from ..names import ROBOT_NAME_MAX, SERVICE_NAME_MAX, parse_full_name
from ..net.acceptor import Acceptor
from ..net.unix import peer_credentials
from ..server.robots import Robots
from ..server.visitor import make_visitor
from ..systemd import fdstore
from ..systemd.fdstore import Store

SOCKET_NAME = "shadow-gate"
"""``FileDescriptorName=`` of the socket unit."""

_LINE_MAX = SERVICE_NAME_MAX + len("@") + ROBOT_NAME_MAX + len("\n")
_WITHIN = 5.0  # seconds for the line; programs say it at once
_NAMELESS_MAX = 64  # connections at once on which it has not come


class _Caller:
    """A connection whose line has not come, or not all of it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.timer: asyncio.TimerHandle | None = None
        self._line = b""

    def read(self) -> str | None:
        """What has come of the line by now, and nothing of what is behind it.

        Returns:
            The line; None if more of it has to come.

        Raises:
            ConfigError: it is too long, or is no text.
            EOFError: the visitor has left.
            OSError: the connection broke.
        """
        with contextlib.suppress(BlockingIOError):
            seen = self.sock.recv(_LINE_MAX - len(self._line), socket.MSG_PEEK)
            if not seen:
                raise EOFError
            # Take what belongs to the line, or we would be woken for it again and again.
            self._line += self.sock.recv(seen.find(b"\n") + 1 or len(seen))
        if not self._line.endswith(b"\n"):
            if len(self._line) == _LINE_MAX:
                raise ConfigError(f"the robot's name does not end after {_LINE_MAX} bytes")
            return None
        return self._line[:-1].decode("ascii", "replace")


def listen(store: Store) -> list[socket.socket]:
    """The gate's listening socket, if systemd has passed one; it is the caller's.

    Raises:
        ConfigError: what was passed is not a listening unix socket.
    """
    sockets = fdstore.listening_sockets(SOCKET_NAME, store)
    if any(sock.family != socket.AF_UNIX for sock in sockets):
        for sock in sockets:
            sock.close()
        text = f"socket {SOCKET_NAME!r} from systemd is no unix socket (ListenStream=/…)"
        raise ConfigError(f"{text}: its permissions are to say who may visit robots")
    return sockets


class Gate:
    """Lets visitors in, from the moment when it is made."""

    def __init__(self, sockets: Sequence[socket.socket], robots: Robots) -> None:
        """Those of robots elsewhere must be taken there by now; ``sockets`` are those of ``listen``."""
        self._robots = robots
        self._loop = asyncio.get_running_loop()
        self._callers: dict[_Caller, None] = {}  # the oldest first
        descriptors = robots.descriptors
        self._acceptors = [
            Acceptor(sock, self._came, descriptors.ran_out, descriptors.for_visitor) for sock in sockets
        ]

    def close(self) -> None:
        """Let nobody in any more, and hang up on those who have not said a name: they are not visitors yet.

        Who has said one waits for its robot, also during a restart.
        """
        for acceptor in self._acceptors:
            acceptor.close()
        for caller in list(self._callers):
            self._leave(caller)
            caller.sock.close()

    def describe(self) -> Iterator[str]:
        """Lines for debugging."""
        if self._acceptors:
            yield f"gate: {texts.many(len(self._callers), 'visitor')} without a robot's name"

    def _came(self, sock: socket.socket) -> None:
        caller = _Caller(sock)
        if len(self._callers) >= _NAMELESS_MAX:
            oldest = next(iter(self._callers))
            self._refuse(oldest, f"{_NAMELESS_MAX} others have come and have not named a robot either")
        self._callers[caller] = None
        why = f"no robot's name within {_WITHIN:g} s"
        caller.timer = self._loop.call_later(_WITHIN, self._refuse, caller, why)
        self._loop.add_reader(sock, functools.partial(self._listen, caller))
        self._listen(caller)  # it may have come with the connection

    def _listen(self, caller: _Caller) -> None:
        try:
            line = caller.read()
            if line is None:
                return
            robot, service = parse_full_name(line)
        except ConfigError as error:
            self._refuse(caller, str(error))
        except (EOFError, OSError):  # whether the gate is there, perhaps
            self._leave(caller)
            caller.sock.close()
        else:
            self._leave(caller)
            self._visit(caller.sock, robot, service)

    def _visit(self, sock: socket.socket, name: str, service: str) -> None:
        robot = self._robots.provide(name)
        visitor = make_visitor(sock, service, robot.visitors.next_number(), self._loop.time())
        session = robot.session
        if session is not None and service not in session.services:
            robot.visitors.turn_away(visitor, f"the robot does not offer {visitor.offered}")
        else:
            robot.visitors.take(visitor)
        robot.report_if_empty()

    def _refuse(self, caller: _Caller, why: str) -> None:
        self._leave(caller)
        pid, uid, _gid = peer_credentials(caller.sock)
        caller.sock.close()
        event = events.GateFailed(visitor_uid=uid, visitor_pid=pid)
        events.log(event, logging.WARNING, f"visitor with uid {uid} turned away at the gate: {why}")

    def _leave(self, caller: _Caller) -> None:
        """It is not at the gate any more."""
        del self._callers[caller]
        self._loop.remove_reader(caller.sock)
        if caller.timer is not None:
            caller.timer.cancel()
