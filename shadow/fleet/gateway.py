"""etcd's JSON gateway: requests and streams over HTTP, to whichever of the engine's members answers.

https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/. Each request is tried on every member once, beginning
with the last that answered. A request whose answer was lost may have been carried out: callers make requests
that may be repeated.

Nothing a member says is taken for well-formed, and no answer may be larger than ``ANSWER_MAX``.
"""

import asyncio
import json
import random
import re
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from ..errors import EngineRefused, Unavailable, Unreachable, reason_of
from ..net.address import Endpoint
from ..net.resolving import resolve
from ..text import printable
from .credentials import Identity
from .verdicts import AuthOff, Elsewhere, Json, StaleToken, judge_status, parse, result

RESOLVE = 1.0  # seconds for a member's name
ANSWER = 2.0  # seconds for an answer: an election takes one or two, and a member that hangs has no more
SILENCE = 9.0  # seconds without a word on a stream: see ``live.BEAT``
ANSWER_MAX = 2**25  # bytes of an answer, and of a line of a stream
NONSENSE = (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError)
"""What comes of reading an answer that is not as it should be."""
_IDLE = 300.0  # seconds that a connection without requests is kept
_TEXT_MAX = 160  # characters of an error of aiohttp's
_TOKEN = re.compile(r"[!-~]{0,8192}", re.ASCII)  # it goes into a header

_ENCODER = json.JSONEncoder(separators=(",", ":"))

T = TypeVar("T")


class _Kind(NamedTuple):
    """How long an answer may take to begin, how long it may pause, and what we send along."""

    begins: float
    pauses: float | None
    headers: Mapping[str, str]


_HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
_REQUEST = _Kind(ANSWER, None, _HEADERS)
# With this header a member that is cut off from its leader ends the stream; without it, it falls silent. A
# request had better wait: the next leader may be there in time.
_STREAM = _Kind(ANSWER, SILENCE, {**_HEADERS, "Grpc-Metadata-hasleader": "true"})


class Gateway:
    """The members of one engine."""

    def __init__(self, endpoints: Sequence[Endpoint], identity: Identity) -> None:
        """Connect to nobody yet.

        Args:
            endpoints: the members' addresses, at least one; names as in their certificates.
            identity: what we show them.
        """
        self._endpoints = tuple(endpoints)
        self._identity = identity
        self._at = random.randrange(len(self._endpoints))  # noqa: S311 - or all servers begin with the same
        self._session: aiohttp.ClientSession | None = None
        self._token: str | None = None  # None: we have to log in; empty: the engine wants none
        self._logging_in = asyncio.Lock()
        self._streams: dict[aiohttp.ClientResponse, int] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def use(self, identity: Identity) -> None:
        """Show something else from now on; what is under way fails, and may be tried again."""
        self._identity, self._token = identity, None
        if self._session is not None:
            task = asyncio.get_running_loop().create_task(self._end(self._session))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            self._session = None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._end(self._session)
            self._session = None
        await asyncio.gather(*self._ending)

    async def _end(self, session: aiohttp.ClientSession) -> None:
        for answer in list(self._streams):  # aiohttp would not wake up who waits for one
            answer.close()
        await session.close()

    async def call(self, path: str, body: Json, read: Callable[[Json], T]) -> T:
        """Have a request answered.

        Args:
            path: of the gateway's URL.
            body: the request.
            read: makes sense of an answer; ``NONSENSE`` if there is none.

        Raises:
            Unavailable: by no member, or not in time, or it cannot be done for now; see its subclasses, too.
            EngineRefused: the engine does not accept our certificate or login, or does not permit this.
        """
        data = _encode(body)
        failures: dict[Endpoint, Elsewhere] = {}
        for _ in self._endpoints:
            at = self._at
            try:
                return _made_sense(read, await self._ask(at, path, data))
            except Elsewhere as failure:
                failures[self._endpoints[at]] = failure
                self._turn_away(at, failure)
        raise _summary(failures)

    async def stream(self, path: str, body: Json, read: Callable[[Json], T]) -> AsyncGenerator[T, None]:
        """What one member says to a request, for as long as it does; close the iterator (``aclosing``).

        It also ends when another request finds the member gone: the next stream is opened at another.

        Args:
            path: of the gateway's URL.
            body: the request.
            read: makes sense of a line, as for ``call``; it may raise what ``verdicts`` does.

        Raises:
            Unavailable: it has ended, or nothing came for ``SILENCE`` seconds; see its subclasses, too.
            EngineRefused: as for ``call``.
        """
        at, data = self._at, _encode(body)
        try:
            token = await self._find_token(at)
            async with self._post(at, path, data, token, _STREAM) as answer:
                if answer.status != 200:
                    judge_status(answer.status, await _read(answer), anonymous=self._is_anonymous(token))
                self._streams[answer] = at
                try:
                    async for line in _lines(answer):
                        yield _made_sense(read, result(parse(line)))
                finally:
                    del self._streams[answer]
            raise Elsewhere("it has ended the stream")
        except Elsewhere as failure:
            self._turn_away(at, failure)
            raise _summary({self._endpoints[at]: failure}) from failure
        except (StaleToken, AuthOff) as stale:
            self.log_in_again()
            raise Unavailable(f"{self._endpoints[at]}: {stale}") from stale

    def log_in_again(self) -> None:
        """Our token is no longer good."""
        self._token = None

    def _turn_away(self, at: int, failure: Elsewhere) -> None:
        """Turn to the next member, unless somebody has; if this one is gone, take the streams along."""
        if self._at == at:
            self._at = (at + 1) % len(self._endpoints)
        if failure.gone:
            for answer, where in list(self._streams.items()):
                if where == at:
                    answer.close()

    async def _ask(self, at: int, path: str, data: bytes) -> Json:
        """Have one member answer; log in if necessary, even if we just did."""
        why: Exception = StaleToken()
        for _ in range(2):
            token = ""
            try:
                token = await self._find_token(at)
                return await self._request(at, path, data, token)
            except (StaleToken, AuthOff) as stale:
                why = stale
                if self._token == token:  # else somebody else has logged in meanwhile
                    self._token = None
        if self._identity.login is None:
            raise EngineRefused(f"the fleet's engine has users (auth), and we have no login: {why}")
        raise Elsewhere(str(why)) from why

    async def _request(self, at: int, path: str, data: bytes, token: str) -> Json:
        try:
            async with (
                asyncio.timeout(_REQUEST.begins),
                self._post(at, path, data, token, _REQUEST) as answer,
            ):
                raw = await _read(answer)
        except TimeoutError as error:
            raise _explain(error) from error
        if answer.status != 200:
            judge_status(answer.status, raw, anonymous=self._is_anonymous(token))
        return result(parse(raw))

    def _is_anonymous(self, token: str) -> bool:
        return not token and self._identity.login is not None

    async def _find_token(self, at: int) -> str:
        """What to show with a request; empty where nobody has to log in."""
        login = self._identity.login
        if login is None:
            return ""
        async with self._logging_in:
            if self._token is None:
                data = _encode({"name": login.user, "password": login.password})
                try:
                    said = await self._request(at, "/v3/auth/authenticate", data, "")
                except AuthOff:
                    said = {"token": ""}
                token = said.get("token")
                if not isinstance(token, str) or not _TOKEN.fullmatch(token):
                    raise Elsewhere("its answer makes no sense")
                self._token = token
            return self._token

    @asynccontextmanager
    async def _post(
        self, at: int, path: str, data: bytes, token: str, kind: _Kind
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {**kind.headers, "Authorization": token} if token else kind.headers
        url = URL(f"https://{self._endpoints[at]}{path}", encoded=True)
        limits = aiohttp.ClientTimeout(total=None, sock_read=kind.pauses)
        try:
            async with AsyncExitStack() as stack:
                # Not aiohttp's own: Debian 12's cancels the task, which stays marked as cancelled.
                async with asyncio.timeout(kind.begins):
                    posted = self._http().post(
                        url, data=data, headers=headers, timeout=limits, allow_redirects=False
                    )
                    answer = await stack.enter_async_context(posted)
                yield answer
        except (aiohttp.ClientError, OSError) as error:
            raise _explain(error) from error

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                ssl=self._identity.context, limit=0, keepalive_timeout=_IDLE, resolver=_Resolver()
            )
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False,
                read_bufsize=2**18,
            )  # fmt: skip
        return self._session


class _Resolver(AbstractResolver):
    """Looks names up as everybody here does (``net.resolving``), not in asyncio's executor."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> Any:
        """See aiohttp; OSError if there is no such name."""
        try:
            targets = await resolve(Endpoint(host, port), RESOLVE)
        except Unreachable as error:
            raise OSError(None, str(error)) from error
        return [
            {
                "hostname": host, "host": target.sockaddr[0], "port": port, "family": target.family,
                "proto": 0, "flags": socket.AI_NUMERICHOST,
            }
            for target in targets
        ]  # fmt: skip

    async def close(self) -> None:
        """Nothing is open."""


def _made_sense(read: Callable[[Json], T], said: Json) -> T:
    try:
        return read(said)
    except NONSENSE as error:
        raise Elsewhere("its answer makes no sense") from error


def _encode(body: Json) -> bytes:
    return _ENCODER.encode(body).encode()


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in answer.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > ANSWER_MAX:
            raise Elsewhere("its answer is too large")
    return b"".join(parts)


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    parts: list[bytes] = []
    size = 0
    async for part in answer.content.iter_any():
        *ends, rest = part.split(b"\n")
        for end in ends:
            yield b"".join([*parts, end])
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size > ANSWER_MAX:
            raise Elsewhere("a line of its answer is too large")


def _explain(error: Exception) -> Elsewhere:
    """What went wrong below HTTP, and whether somebody has to change a setting."""
    if isinstance(error, TimeoutError):
        return Elsewhere("no answer in time", gone=True)
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError):
        return Elsewhere("it has hung up", gone=True)
    inner = getattr(error, "os_error", None) or error.__cause__ or error
    if isinstance(inner, ssl.SSLCertVerificationError):
        return Elsewhere(f"its certificate is not good: {inner.verify_message}", refused=True)
    if isinstance(inner, ssl.SSLError) and "ALERT_" in (inner.reason or ""):
        alert = inner.reason.partition("ALERT_")[2].replace("_", " ").lower()
        return Elsewhere(f"it does not accept our certificate ({alert})", refused=True)
    text = reason_of(inner) if isinstance(inner, OSError) else str(inner)
    return Elsewhere(printable(text[:_TEXT_MAX]) or type(inner).__name__, gone=True)


def _summary(failures: dict[Endpoint, Elsewhere]) -> Unavailable | EngineRefused:
    """All of them refuse us: then only a change of settings will help."""
    text = "; ".join(f"{endpoint}: {failure}" for endpoint, failure in failures.items())
    if all(failure.refused for failure in failures.values()):
        return EngineRefused(f"the fleet's engine refuses us: {text}")
    return Unavailable(f"the fleet's engine does not answer: {text}")
