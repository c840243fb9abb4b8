"""The server's way to the CA's signer: passes on a robot's request, and brings back the answer.

The signer is a program of its own behind a unix socket, and it may be slow, hang, or die at any step: the
robot is then told so, and tries again.
"""

import asyncio
import itertools
import logging
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from .. import events
from ..errors import IdentityError, PeerError, reason
from ..pki.certificates import moment, parse_certificate, serial_of, validity
from ..pki.request import known_code
from ..text import printable, shorten
from ..transport.channel import Channel
from ..wire.codec import Decoder, encode
from ..wire.frames import Frame, Sign, Signed, Unsigned

_AT_ONCE = 4  # requests; for each the service manager starts a process
_REST = 2.0  # seconds until a robot may ask again: a stolen one must not keep the signer's machine busy
_PATIENCE = 20.0  # seconds for an answer, including the wait for our turn


class Signer:
    """Has the certificates of the server's robots renewed."""

    def __init__(self, path: Path | None) -> None:
        """``path`` of the signer's socket; None: there is no signer."""
        self._path = path
        self._asking: dict[str, asyncio.Task[None]] = {}  # by the robots' names
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._rested: dict[str, float] = {}  # when each may ask again, by CLOCK_MONOTONIC; in that order

    @property
    def there(self) -> bool:
        """True if robots may ask."""
        return self._path is not None

    def ask(self, robot: str, channel: Channel, request: Sign) -> None:
        """Have a robot's request answered, on the control channel that it came on."""
        loop = asyncio.get_running_loop()
        if robot in self._asking or loop.time() < self._rested.get(robot, 0.0):
            text = "the request before this one has not, or only just been answered"
            self._answer(robot, channel, Unsigned("busy", text))
            return
        task = loop.create_task(self._serve(robot, channel, request))
        self._asking[robot] = task
        task.add_done_callback(lambda _task: self._asking.pop(robot, None))

    async def close(self) -> None:
        """Stop answering; robots will ask again."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, robot: str, channel: Channel, request: Sign) -> None:
        try:
            answer = await self._find(channel.link.certificate, request)
        except Exception:
            logging.getLogger("shadow").exception(
                "unexpected error: a robot's request for a certificate failed (please report)"
            )
            answer = Unsigned("internal", "internal error of the server; its log says more")
        self._let_rest(robot, asyncio.get_running_loop().time())
        self._answer(robot, channel, answer)

    def _let_rest(self, robot: str, now: float) -> None:
        rested = list(itertools.takewhile(lambda name: self._rested[name] <= now, self._rested))
        for name in (robot, *rested):
            self._rested.pop(name, None)
        self._rested[robot] = now + _REST

    async def _find(self, present: x509.Certificate, request: Sign) -> Signed | Unsigned:
        if self._path is None:
            return Unsigned("no-signer", "the server knows no signer (--signer)")
        if request.certificate != present.public_bytes(Encoding.DER):
            return Unsigned("bad-request", "the certificate is not the one of this connection")
        try:
            async with asyncio.timeout(_PATIENCE), self._turns:
                return await _ask(self._path, request)
        except TimeoutError:
            return Unsigned("timeout", f"no answer from the signer within {_PATIENCE:g} s")
        except OSError as error:
            return Unsigned("no-signer", f"the signer cannot be reached: {reason(error)}")
        except PeerError as error:
            return Unsigned("no-signer", f"the signer failed: {error}")

    def _answer(self, robot: str, channel: Channel, answer: Signed | Unsigned) -> None:
        _log(robot, answer)
        channel.send(answer)


async def _ask(path: Path, request: Sign) -> Signed | Unsigned:
    """Ask the signer.

    Raises:
        OSError: it is not there.
        PeerError: it died before it answered, or its answer makes no sense.
    """
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(encode(request))
        frame = await _read(reader)
    except asyncio.IncompleteReadError as error:
        raise PeerError("it hung up without an answer") from error
    finally:
        writer.transport.abort()
    if not isinstance(frame, Signed | Unsigned):
        raise PeerError(f"it answered with {type(frame).__name__}")
    return frame


async def _read(reader: asyncio.StreamReader) -> Frame:
    decoder = Decoder()
    while True:
        frame = decoder.feed(await reader.readexactly(decoder.wanted))
        if frame is not None:
            return frame


def _log(robot: str, answer: Signed | Unsigned) -> None:
    if isinstance(answer, Unsigned):
        text = f"robot {robot}: certificate not renewed ({shorten(answer.code)}): {printable(answer.text)}"
        code = known_code(answer.code)
        events.log(events.RenewalFailed(robot=robot, code=code), logging.WARNING, text)
        return
    try:
        certificate = parse_certificate(answer.certificate)
    except IdentityError:  # the robot will say so, too
        text = f"robot {robot}: what the signer sent is no certificate"
        events.log(events.RenewalFailed(robot=robot, code="damaged"), logging.ERROR, text)
        return
    serial, end = serial_of(certificate), validity(certificate)[1]
    text = f"robot {robot}: new certificate {serial}, valid until {moment(end)}"
    events.log(events.Renewed(robot=robot, serial=serial, expires=end.isoformat()), logging.INFO, text)
