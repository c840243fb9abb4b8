"""As much HTTP as a scrape needs (RFC 9112): one GET, one answer, and the connection ends."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from .seats import Guest
from .task_server import TaskServer

_REQUEST_MAX = 2**13  # bytes
_SCRAPERS_MAX = 16  # at once
_PATIENCE = 10.0  # seconds for a request, and for its answer

Page = Callable[[str], Awaitable[tuple[str, bytes]]]
"""Content type and body, for what the scraper accepts."""


class MetricsServer(TaskServer):
    """Serves one page, ``/metrics``, to everybody who connects."""

    def __init__(self, page: Page | None) -> None:
        """Without a ``page`` it tells everybody that there is none."""
        super().__init__("scrapers", _SCRAPERS_MAX)
        self._page = page

    async def _serve(self, guest: Guest, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=sock, limit=_REQUEST_MAX)
        try:
            async with asyncio.timeout(_PATIENCE):
                request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.seats.stirred(guest, busy=True)
                writer.write(await self._answer(request))
                writer.close()
                await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # no real scraper does that
        except Exception:
            logging.getLogger("shadow").exception("unexpected error: a scrape failed (please report)")
        finally:
            writer.transport.abort()  # a scraper that reads nothing must not keep its place

    async def _answer(self, request: str) -> bytes:
        line, *headers = request.split("\r\n")
        method, _, rest = line.partition(" ")
        target = rest.partition(" ")[0].partition("?")[0]
        if self._page is None:
            return _response("503 Service Unavailable", "text/plain", b"a library is missing: see the log\n")
        if target != "/metrics":
            return _response("404 Not Found", "text/plain", b"only /metrics is here\n")
        if method not in {"GET", "HEAD"}:
            return _response("405 Method Not Allowed", "text/plain", b"only GET\n")
        fields = {
            name.strip().lower(): value.strip() for name, _, value in (h.partition(":") for h in headers)
        }
        kind, body = await self._page(fields.get("accept", ""))
        return _response("200 OK", kind, body, head=method == "HEAD")


def _response(status: str, kind: str, body: bytes, *, head: bool = False) -> bytes:
    lines = f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if head else body)
