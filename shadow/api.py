"""The API: Varlink (https://varlink.org) on a unix socket that systemd passes.

The library ``varlink`` reads the interface and the calls; it is asked here, on the event loop, a reply at a
time, so that a long list or a slow reader holds nobody up. The server runs without the library too, and
then hangs up on everybody who calls. So nothing here imports it, and no start waits for that either.
"""

import asyncio
import collections
import contextlib
import grp
import json
import logging
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

from . import journal
from .answering import Answerer
from .errors import printable
from .journal import Event
from .visitor import peer_credentials

SOCKET_NAME = "shadow-api"
"""``FileDescriptorName=`` of the socket unit."""
ADMINISTRATORS = "shadow-tunnel-admin"
"""The group whose members may steer."""

_CALLERS_MAX = 64  # connections at once
_CALL_MAX = 2**16  # bytes
_EVENTS_MAX = 1000  # that a watcher may be behind
_END = b"\0"  # of a message
_GROUPS_MAX = 1024  # bytes: what Python lets getsockopt(2) return
_SO_PEERGROUPS = 59  # <asm-generic/socket.h>


class Api(Answerer):
    """Answers calls."""

    def __init__(self, service: Any) -> None:
        """``service`` is the library's, see ``operations.make_service``; without it nobody is answered."""
        super().__init__(_CALLERS_MAX if service else 0)
        self._service = service

    async def _serve(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_CALL_MAX)
        try:
            await Caller(self._service, reader, writer).serve()
        except OSError:
            pass  # it has left
        except Exception:
            logging.getLogger("shadow").exception("a call of the API failed in a way nobody thought of")
        finally:
            writer.transport.abort()


class Caller:
    """One connection to the API.

    Attributes:
        uid: whose it is.
        may_steer: whether it may change anything.
    """

    def __init__(self, service: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._service = service
        self._reader = reader
        self._writer = writer
        self._watcher: Watcher | None = None
        self.uid, groups = _credentials(writer.get_extra_info("socket"))
        self.may_steer = may_steer(self.uid, groups)

    async def serve(self) -> None:
        """Answer calls until the caller leaves, or says what is none."""
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while True:
                message = (await self._reader.readuntil(_END))[:-1]
                if not _is_call(message):
                    return
                await self._answer(message)

    def watch(self) -> "Watcher":
        """Everything that is logged from now on; replies are asked for when there is something in it."""
        self._watcher = Watcher()
        return self._watcher

    async def _answer(self, message: bytes) -> None:
        replies: Iterator[bytes] = self._service.handle(message, _request=self)
        try:
            while self._watcher is None or await self._has_news(self._watcher):
                reply = next(replies, None)
                if reply is None:
                    return
                self._writer.write(reply + _END)
                await self._writer.drain()
                await asyncio.sleep(0)  # others' turn: drain() alone may not wait
        finally:
            if self._watcher is not None:
                self._watcher.close()
                self._watcher = None

    async def _has_news(self, watcher: "Watcher") -> bool:
        """Wait for something to tell; False if the caller has left (or says more, which ends it as well)."""
        gone = asyncio.ensure_future(self._reader.read(1))
        news = asyncio.ensure_future(watcher.news.wait())
        try:
            await asyncio.wait({gone, news}, return_when=asyncio.FIRST_COMPLETED)
            return not gone.done()
        finally:
            for waiting in (gone, news):
                waiting.cancel()
            await asyncio.gather(gone, news, return_exceptions=True)


class Watcher(logging.Handler):
    """What has been logged and not been told yet.

    Attributes:
        news: set while there is something to tell.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.news = asyncio.Event()
        self.news.set()  # that the watch has begun
        self._loop = asyncio.get_running_loop()
        self._waiting: collections.deque[dict[str, Any]] = collections.deque()
        self._lost = 0
        journal.LOGGER.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """A line of the log; it may come from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._put, _event(record))

    def _put(self, event: dict[str, Any]) -> None:
        if len(self._waiting) >= _EVENTS_MAX:
            self._lost += 1
            return
        self._waiting.append(event)
        self.news.set()

    def take(self) -> dict[str, Any]:
        """The next reply of ``Watch``; to be called when there is ``news``."""
        if not self._waiting:
            self.news.clear()
            return {"ready": True}
        reply: dict[str, Any] = {"event": self._waiting.popleft()}
        if self._lost and not self._waiting:  # those came behind all that is in the queue
            reply["lost"], self._lost = self._lost, 0
        if not self._waiting:
            self.news.clear()
        return reply

    def close(self) -> None:
        """Listen no more."""
        journal.LOGGER.removeHandler(self)
        super().close()


def _event(record: logging.LogRecord) -> dict[str, Any]:
    kind: Event | None = getattr(record, "event", None)
    return {
        "event": kind.name.lower().replace("_", "-") if kind else "message",
        "priority": journal.priority_of(record),
        "message": printable(record.getMessage()),
        "fields": journal.fields_of(record),
    }


def _is_call(message: bytes) -> bool:
    """Whether it can be given to the library, which trusts its callers in this."""
    try:
        call = json.loads(message)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(call, dict)
        and isinstance(call.get("method"), str)
        and isinstance(call.get("parameters", {}), dict | None)
    )


def _credentials(sock: Any) -> tuple[int, set[int]]:
    """A caller's user, and its groups as they were when it connected (unix(7), SO_PEERGROUPS)."""
    _pid, uid, gid = peer_credentials(sock)
    try:
        groups = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_MAX)
    except OSError:  # ERANGE: more than 256 groups
        return uid, {gid}
    return uid, {gid, *(number for (number,) in struct.iter_unpack("I", groups))}


def may_steer(uid: int, groups: set[int]) -> bool:
    """Whether a user may change anything: root, the daemon's own user, and administrators."""
    if uid in {0, os.geteuid()}:
        return True
    try:
        return grp.getgrnam(ADMINISTRATORS).gr_gid in groups
    except KeyError:
        return False
