"""As much HTTP as a scrape or a health check needs (RFC 9112): one GET, one answer, and that is it."""

import asyncio
import logging
import socket
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from .seats import Guest
from .task_server import TaskServer

_REQUEST_MAX = 2**13  # bytes
_SCRAPERS_MAX = 16  # at once
_PATIENCE = 10.0  # seconds for a request, and for its answer

Page = Callable[[str], Awaitable[tuple[str, bytes]]]
"""Content type and body, for what the scraper accepts."""


class Answer(NamedTuple):
    """An answer, see RFC 9110.

    Attributes:
        status: the code and a phrase.
        kind: the body's type.
        body: may be empty.
        fields: further header fields.
    """

    status: str
    kind: str
    body: bytes
    fields: tuple[str, ...] = ()


def text(status: str, line: str, *fields: str) -> Answer:
    """An answer of one line."""
    return Answer(status, "text/plain", f"{line}\n".encode(), fields)


class PageServer(TaskServer):
    """Serves one page to everybody who connects."""

    def __init__(self, path: str, what: str, at_once: int) -> None:
        """Answer at most ``at_once``; ``what`` they are, for the log."""
        super().__init__(what, at_once)
        self._path = path

    @abstractmethod
    async def _page(self, accept: str) -> Answer:
        """The page, for what the other side accepts."""

    def _last_word(self) -> Answer | None:
        """What those get who must leave before they have asked; by default nothing."""
        return None

    async def _serve(self, guest: Guest, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=sock, limit=_REQUEST_MAX)
        try:
            async with asyncio.timeout(_PATIENCE):
                request = await self._request(reader, writer)
                self.seats.stirred(guest, busy=True)
                writer.write(await self._answer(request))
                writer.close()
                await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # nobody who is in earnest does that
        except Exception:
            logging.getLogger("shadow").exception(
                "unexpected error: a request for %s failed (please report)", self._path
            )
        finally:
            writer.transport.abort()  # one who reads nothing must not keep its place

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        try:
            return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.CancelledError:
            if last_word := self._last_word():
                writer.write(_encode(last_word))
            raise

    async def _answer(self, request: str) -> bytes:
        line, *headers = request.split("\r\n")
        method, _, rest = line.partition(" ")
        target = rest.partition(" ")[0].partition("?")[0]
        if target != self._path:
            answer = text("404 Not Found", f"only {self._path} is here")
        elif method not in {"GET", "HEAD"}:
            answer = text("405 Method Not Allowed", "only GET", "Allow: GET, HEAD")
        else:
            fields = {
                name.strip().lower(): value.strip() for name, _, value in (h.partition(":") for h in headers)
            }
            answer = await self._page(fields.get("accept", ""))
        return _encode(answer, head=method == "HEAD")


class MetricsServer(PageServer):
    """Serves ``/metrics``."""

    def __init__(self, page: Page | None) -> None:
        """Without a ``page`` it tells everybody that there is none."""
        super().__init__("/metrics", "scrapers", _SCRAPERS_MAX)
        self._metrics = page

    async def _page(self, accept: str) -> Answer:
        if self._metrics is None:
            return text("503 Service Unavailable", "a library is missing: see the log")
        kind, body = await self._metrics(accept)
        return Answer("200 OK", kind, body)


def _encode(answer: Answer, *, head: bool = False) -> bytes:
    lines = (
        f"HTTP/1.1 {answer.status}",
        f"Content-Type: {answer.kind}",
        f"Content-Length: {len(answer.body)}",
        *answer.fields,
        "Connection: close",
    )
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if head else answer.body)
