"""The API: Varlink (https://varlink.org) on a unix socket that systemd passes.

The library ``varlink`` reads the interface and the calls; we ask it on the event loop for one reply at a
time, so that a long list or a slow reader delays nobody. The server runs without the library, too, and then
hangs up on all callers. So nothing here imports it, and no start waits for that either.
"""

import asyncio
import contextlib
import grp
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

from ..net.unix import peer_credentials
from ..server.overview import Overview
from .later import Later, Source
from .seats import Guest
from .task_server import TaskServer
from .watching import Feed, Watcher

SOCKET_NAME = "shadow-api"
"""``FileDescriptorName=`` of the socket unit."""
ADMINISTRATORS = "shadow-tunnel-admin"
"""The group whose members may change things."""

_CALLERS_MAX = 64  # connections at once
_CALL_MAX = 2**16  # bytes
_PATIENCE = 300.0  # seconds for which a caller may say nothing, or read nothing of what it asked for
_END = b"\0"  # of a message
_GROUPS_MAX = 1024  # bytes: what Python lets getsockopt(2) return
_SO_PEERGROUPS = 59  # <asm-generic/socket.h>


class Api(TaskServer):
    """Answers calls."""

    def __init__(self, service: Any, overview: Overview) -> None:
        """Answer calls.

        Args:
            service: the library's, see ``methods.make_service``; without it we answer nobody.
            overview: what happens at other servers, those who watch are told, too.
        """
        super().__init__("callers of the API", _CALLERS_MAX if service else 0)
        self.feed = Feed(overview)
        self._service = service
        self._turn = asyncio.Lock()

    async def _serve(self, guest: Guest, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_CALL_MAX)
        try:
            await Caller(self, guest, reader, writer).serve()
        except OSError:
            pass  # it has left, or has been silent too long
        except Exception:
            logging.getLogger("shadow").exception(
                "unexpected error: a call of the API failed (please report)"
            )
        finally:
            writer.transport.abort()

    def replies(self, message: bytes, caller: "Caller") -> Iterator[bytes]:
        """The replies to a call; each is computed only when it is taken."""
        replies: Iterator[bytes] = self._service.handle(message, _request=caller)
        return replies

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Take a turn at work that takes time: callers take turns one after the other.

        Between two of them all other work of the event loop runs, however many callers there are.
        """
        async with self._turn:
            yield
            await asyncio.sleep(0)


class Caller:
    """One connection to the API.

    Attributes:
        uid: the caller's user.
        may_steer: whether it may change anything.
    """

    def __init__(
        self, api: Api, guest: Guest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._api = api
        self._guest = guest
        self._reader = reader
        self._writer = writer
        self._source: Source | None = None
        self.uid, groups = _credentials(writer.get_extra_info("socket"))
        self.may_steer = may_steer(self.uid, groups)

    async def serve(self) -> None:
        """Answer calls until the caller leaves, or sends something that is not a call.

        Raises:
            OSError: it has left, or says or reads nothing for too long (TimeoutError).
        """
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            while True:
                self._api.seats.stirred(self._guest, busy=False)
                async with asyncio.timeout(_PATIENCE):
                    message = (await self._reader.readuntil(_END))[:-1]
                self._api.seats.stirred(self._guest, busy=True)
                async with self._api.turn():
                    if not _is_call(message):
                        return
                await self._answer(message)

    def watch(self) -> Watcher:
        """Watch everything that is logged from now on; replies are taken when there is something new."""
        watcher = self._api.feed.watch()
        self.draw_on(watcher)
        return watcher

    def draw_on(self, source: Source) -> None:
        """From now on, take a reply to the present call when this has one."""
        self._source = source

    async def _answer(self, message: bytes) -> None:
        replies = self._api.replies(message, self)
        try:
            while self._source is None or await self._has_news(self._source):
                async with self._api.turn():
                    reply = _next(replies)
                if isinstance(reply, Later):
                    reply = _said(message, await reply.message())
                if reply is None:
                    return
                self._writer.write(reply + _END)
                async with asyncio.timeout(_PATIENCE):
                    await self._writer.drain()
                self._api.seats.stirred(self._guest, busy=True)
        finally:
            if self._source is not None:
                self._source.close()
                self._source = None

    async def _has_news(self, source: Source) -> bool:
        """Wait for news; False if the caller has left (or says something more, which ends the call, too)."""
        if source.news.is_set():
            return not self._reader.at_eof()
        gone = asyncio.ensure_future(self._reader.read(1))
        news = asyncio.ensure_future(source.news.wait())
        try:
            await asyncio.wait({gone, news}, return_when=asyncio.FIRST_COMPLETED)
            return not gone.done()
        finally:
            for waiting in (gone, news):
                waiting.cancel()
            await asyncio.gather(gone, news, return_exceptions=True)


def _next(replies: Iterator[bytes]) -> bytes | Later | None:
    try:
        return next(replies, None)
    except Later as later:
        return later


def _said(call: bytes, message: dict[str, Any]) -> bytes | None:
    """A message as a reply to a call, unless that wants none."""
    return None if json.loads(call).get("oneway") else json.dumps(message).encode()


def _is_call(message: bytes) -> bool:
    """Whether the message can be passed to the library, which does not check this itself."""
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
