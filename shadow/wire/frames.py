"""The wire codec: what two ends say to each other before a channel carries a visitor's bytes.

A frame is a header of four bytes (type, zero, length of the body as a big-endian 16-bit number) and a body
that is one JSON object. Header and body together fit one TLS record (RFC 5246, section 6.2.1: 2^14 bytes).
The decoder asks for exactly as many bytes as the current frame still needs and never for more, because
what follows a STARTED frame is the visitor's own data and belongs to the relay. No sockets and no
clocks here; ``docs/PROTOCOL.md`` says when each frame is sent.
"""

import base64
import binascii
import json
import re
import struct
from dataclasses import dataclass, fields
from typing import ClassVar

from ..errors import FrameError, LocalProtocolError

PROTOCOL_VERSION = 1

_HEADER = struct.Struct(">BBH")
FRAME_MAX = 2**14  # bytes, header included: one TLS record
BODY_MAX = FRAME_MAX - _HEADER.size
TEXT_MAX = 512  # characters of any one string: enough for an error text, too little to flood a log with
SERVICES_MAX = 64  # services that one robot may offer
BLOB_MAX = 4000  # bytes of any one certificate or request: three of them, in base64, fit one frame
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: JSON can say it, UTF-8 cannot
INTEGER_MAX = 2**53 - 1  # what every JSON implementation represents exactly (RFC 8259, section 6)


@dataclass(frozen=True, slots=True)
class Frame:
    """Base of all frames; a subclass's fields are the keys of its JSON object."""

    TYPE: ClassVar[int]


@dataclass(frozen=True, slots=True)
class Hello(Frame):
    """The first frame on every connection, from whoever has dialled: a robot, or a server of a fleet.

    Attributes:
        version: protocol version that it speaks.
        role: ``control`` or ``data``; ``peer`` from a server.
        robot: the robot's name, or the server's; must be the one in its certificate.
        services: (control) names of the services offered; the default service is the empty string.
        session: (data) the session id from the control channel's WELCOME.
        software: name and version of the program, for the log.
        boot: (control) random, the same for as long as the program runs, restarts that it survives included.
        attempt: (control) how many HELLOs it has sent on control channels since then, this one included.
        moves: (control) the robot understands MOVE.
        fleet: (peer) the fleet of which both must be servers.
    """

    TYPE: ClassVar[int] = 1
    version: int
    role: str
    robot: str
    services: tuple[str, ...] = ()
    session: str = ""
    software: str = ""
    boot: str = ""
    attempt: int = 0
    moves: bool = False
    fleet: str = ""


@dataclass(frozen=True, slots=True)
class Welcome(Frame):
    """The answer to HELLO: the connection is accepted.

    Attributes:
        version: protocol version to be spoken.
        session: id of the session; data channels name it.
        keepalive: interval between PINGs, in seconds.
        software: name and version of the server, for the log.
        renews: (control) the server has a signer for certificates: the robot may send SIGN.
        dial: (control) HOST:PORT where the session's data channels go; empty: where the control channel went.
    """

    TYPE: ClassVar[int] = 2
    version: int
    session: str = ""
    keepalive: float = 30.0
    software: str = ""
    renews: bool = False
    dial: str = ""


@dataclass(frozen=True, slots=True)
class Refusal(Frame):
    """To whoever has dialled: the connection is refused and will be closed (REFUSED).

    Attributes:
        code: reason for machines: ``name-mismatch``, ``version``, ``limit``, ``no-session``, …
        text: reason for humans.
        retry: minimum number of seconds to stay away; 0: the robot decides.
    """

    TYPE: ClassVar[int] = 3
    code: str
    text: str = ""
    retry: float = 0.0


@dataclass(frozen=True, slots=True)
class Ping(Frame):
    """Either side on the control channel: are you there? The PONG returns ``stamp``."""

    TYPE: ClassVar[int] = 4
    stamp: float = 0.0


@dataclass(frozen=True, slots=True)
class Pong(Frame):
    """The answer to a PING, with its ``stamp``."""

    TYPE: ClassVar[int] = 5
    stamp: float = 0.0


@dataclass(frozen=True, slots=True)
class Dial(Frame):
    """Server to robot on the control channel: open ``count`` more data channels, visitors are waiting."""

    TYPE: ClassVar[int] = 6
    count: int


@dataclass(frozen=True, slots=True)
class Start(Frame):
    """Server to robot on a standby channel: connect ``service`` for stream ``stream``."""

    TYPE: ClassVar[int] = 7
    service: str
    stream: str


@dataclass(frozen=True, slots=True)
class Started(Frame):
    """The answer to START or VISIT: connected; every byte after this frame is the service's own."""

    TYPE: ClassVar[int] = 8


@dataclass(frozen=True, slots=True)
class Failed(Frame):
    """The answer to START or VISIT: it could not be connected. From a robot: the channel will be closed.

    Attributes:
        code: ``refused``, ``unreachable``, ``timeout``, ``no-such-service`` or ``limit``; from a server also
            ``visitor``.
        text: reason for humans.
    """

    TYPE: ClassVar[int] = 9
    code: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Sign(Frame):
    """Robot to server on the control channel, and server to signer: renew my certificate.

    Attributes:
        request: for the new certificate, with the new key (RFC 2986, in DER).
        certificate: the present one, the same as in the connection's handshake (in DER).
        proof: a signature of the request with the present key; see ``request.prove``.
    """

    TYPE: ClassVar[int] = 10
    request: bytes
    certificate: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class Signed(Frame):
    """The answer to SIGN: the new ``certificate`` (in DER)."""

    TYPE: ClassVar[int] = 11
    certificate: bytes


@dataclass(frozen=True, slots=True)
class Unsigned(Frame):
    """The answer to SIGN: refused.

    Attributes:
        code: reason for machines: ``revoked``, ``early``, ``limit``, …
        text: reason for humans.
    """

    TYPE: ClassVar[int] = 12
    code: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Visit(Frame):
    """Server to server, on a channel that stands by: connect a visitor of mine with a robot of yours.

    Attributes:
        robot: its name.
        service: which of its services.
        stream: the number that the stream has at the visitor's server.
        sid: names the session that the robot is taken to have there; see ``session.Session.sid``.
        revision: of the directory's entry that says so: the fencing token. 0: no entry does.
        uid: the visitor's user there; ``user``: the name for that; ``pid``: its process.
    """

    TYPE: ClassVar[int] = 13
    robot: str
    service: str
    stream: str
    sid: str
    revision: int
    uid: int
    user: str
    pid: int


@dataclass(frozen=True, slots=True)
class Moved(Frame):
    """The answer to VISIT: the robot is not here, or not any more.

    Attributes:
        server: where it is, if known; ``revision``: of the directory's entry that says so, or 0.
    """

    TYPE: ClassVar[int] = 14
    server: str = ""
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Who(Frame):
    """Server to server, on a channel that stands by, while no directory answers: do you have this robot?"""

    TYPE: ClassVar[int] = 15
    robot: str


@dataclass(frozen=True, slots=True)
class Here(Frame):
    """The answer to WHO.

    Attributes:
        sid: of the session that the robot has here; empty: it has none, and the rest means nothing.
        boot: as in its HELLO; ``attempt``: the same.
        heard: how many seconds ago we heard it last.
    """

    TYPE: ClassVar[int] = 16
    sid: str = ""
    boot: str = ""
    attempt: int = 0
    heard: float = 0.0


@dataclass(frozen=True, slots=True)
class Move(Frame):
    """Server to robot on the control channel: begin a session with another server, and end this one then."""

    TYPE: ClassVar[int] = 17


_KINDS: tuple[type[Frame], ...] = (
    *(Hello, Welcome, Refusal, Ping, Pong, Dial, Start, Started, Failed),
    *(Sign, Signed, Unsigned),
    *(Visit, Moved, Who, Here, Move),
)
_BY_TYPE = {kind.TYPE: kind for kind in _KINDS}

# dataclasses.fields and asdict take longer than all the rest of a keepalive.
_FIELDS = {kind: [(field.name, field.type) for field in fields(kind)] for kind in _BY_TYPE.values()}


def encode(frame: Frame) -> bytes:
    """The frame as bytes, to be sent in one write so that it becomes one TLS record.

    Raises:
        LocalProtocolError: the body would be longer than ``BODY_MAX``.
    """
    values = {name: getattr(frame, name) for name, _type in _FIELDS[type(frame)]}
    body = json.dumps(values, separators=(",", ":"), default=_base64).encode()
    if len(body) > BODY_MAX:
        raise LocalProtocolError(f"{type(frame).__name__} frame of {len(body)} bytes exceeds {BODY_MAX}")
    return _HEADER.pack(frame.TYPE, 0, len(body)) + body


def _base64(value: object) -> str:
    """RFC 4648, section 4; bytes are the only thing in a frame that JSON cannot express."""
    if not isinstance(value, bytes):
        raise TypeError(f"{type(value).__name__} in a frame")
    return base64.b64encode(value).decode()


class Decoder:
    """Turns bytes into frames, one at a time.

    ``wanted`` says how many bytes the current frame still needs; feed at most that many.
    """

    __slots__ = ("_body_length", "_buffer", "_kind")

    def __init__(self) -> None:
        self._buffer = b""
        self._kind: type[Frame] | None = None
        self._body_length = 0

    @property
    def wanted(self) -> int:
        """Bytes still missing from the current header or body; never 0."""
        total = _HEADER.size if self._kind is None else self._body_length
        return total - len(self._buffer)

    @property
    def idle(self) -> bool:
        """True between frames: nothing of the next one has arrived yet."""
        return self._kind is None and not self._buffer

    def feed(self, data: bytes) -> Frame | None:
        """Take up to ``wanted`` bytes; return the frame they complete, if they do.

        Raises:
            FrameError: unknown type, too long, or a body that is not what its type says.
        """
        self._buffer += data
        if self.wanted > 0:
            return None
        if self._kind is None:
            self._begin_body()
            return None
        kind, body = self._kind, self._buffer
        self._kind, self._buffer = None, b""
        return _decode_body(kind, body)

    def _begin_body(self) -> None:
        number, zero, length = _HEADER.unpack(self._buffer)
        kind = _BY_TYPE.get(number)
        if kind is None or zero != 0:
            raise FrameError(f"unknown frame type {number}")
        if not 2 <= length <= BODY_MAX:  # "{}" is the shortest JSON object
            raise FrameError(f"{kind.__name__} frame announces a body of {length} bytes")
        self._kind, self._body_length, self._buffer = kind, length, b""


def _decode_body(kind: type[Frame], body: bytes) -> Frame:
    try:
        # A lone NaN or Infinity is not JSON, and would poison every comparison of times made with it.
        values = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"{kind.__name__} frame is not JSON") from error
    if not isinstance(values, dict):
        raise FrameError(f"{kind.__name__} frame is not a JSON object")
    # Ignore keys that we do not know: a newer peer may say more than we understand.
    known = {
        name: _checked(kind, name, wanted, values[name]) for name, wanted in _FIELDS[kind] if name in values
    }
    try:
        return kind(**known)
    except TypeError as error:
        raise FrameError(f"{kind.__name__} frame lacks a field") from error


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _checked(kind: type[Frame], name: str, wanted: object, value: object) -> object:
    """``value`` as the field's type requires it; the types are those that appear in the classes above."""
    if wanted is str and isinstance(value, str) and len(value) <= TEXT_MAX and not _SURROGATE.search(value):
        return value
    if wanted is bool and isinstance(value, bool):
        return value
    if wanted is bytes and isinstance(value, str):
        return _bytes(kind, name, value)
    if wanted is int and type(value) is int and 0 <= value <= INTEGER_MAX:
        return value
    if wanted is float and type(value) in {int, float} and 0 <= value <= INTEGER_MAX:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    if wanted == tuple[str, ...] and isinstance(value, list) and len(value) <= SERVICES_MAX:
        return tuple(str(_checked(kind, name, str, item)) for item in value)
    raise _bad_value(kind, name)


def _bytes(kind: type[Frame], name: str, text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: not ASCII
        raise _bad_value(kind, name) from error
    if len(data) > BLOB_MAX:
        raise _bad_value(kind, name)
    return data


def _bad_value(kind: type[Frame], name: str) -> FrameError:
    return FrameError(f"{kind.__name__} frame has a bad value for {name!r}")
