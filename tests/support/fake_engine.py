"""An HTTPS server in the place of a member of the engine: it says what a real one does not say on demand."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from shadow.net.address import Endpoint
from tests.support.engine import HOST, Members

Answer = Callable[[str, bytes, asyncio.StreamWriter], Awaitable[None]]


class FakeMember:
    """Calls ``answer`` with path and body of each request. An asynchronous context manager."""

    def __init__(self, members: Members, answer: Answer) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(
            members.authority.folder / "member.crt", members.authority.folder / "member.key"
        )
        self._answer = answer
        self.asked: list[str] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0, ssl=self._context)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(HOST, self._server.sockets[0].getsockname()[1])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2])
            body = await reader.readexactly(int(fields["Content-Length"]))
            path = head.split()[1].decode()
            self.asked.append(path)
            await self._answer(path, body, writer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()


def with_status(status: int, body: bytes) -> Answer:
    """Always this answer."""

    async def answer(_path: str, _body: bytes, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status} Whatever\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)

    return answer


def raw(data: bytes) -> Answer:
    """These bytes."""

    async def answer(_path: str, _body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(data)

    return answer
