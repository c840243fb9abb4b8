"""The wire codec: frames as bytes.

A frame is a header of four bytes (type, zero, length of the body as a big-endian 16-bit number) and a body
that is one JSON object. Header and body together fit one TLS record (RFC 5246, section 6.2.1: 2^14 bytes).
The decoder asks for exactly as many bytes as the current frame still needs and never for more, because
what follows a STARTED frame is the visitor's own data and belongs to the relay. No sockets and no
clocks here.
"""

import base64
import binascii
import json
import re
import struct
from dataclasses import fields

from ..errors import FrameError, LocalProtocolError
from .frames import BLOB_MAX, FACTS_MAX, FRAME_MAX, INTEGER_MAX, KINDS, SERVICES_MAX, TEXT_MAX, Fact, Frame

_HEADER = struct.Struct(">BBH")
BODY_MAX = FRAME_MAX - _HEADER.size
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character: JSON can say it, UTF-8 cannot

_BY_TYPE = {kind.TYPE: kind for kind in KINDS}

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
    if (wanted is str and _is_text(value)) or (wanted is bool and isinstance(value, bool)):
        return value
    if wanted is bytes and isinstance(value, str):
        return _bytes(kind, name, value)
    if wanted is int and type(value) is int and 0 <= value <= INTEGER_MAX:
        return value
    if wanted is float and type(value) in {int, float} and 0 <= value <= INTEGER_MAX:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    if wanted == tuple[str, ...] and isinstance(value, list) and len(value) <= SERVICES_MAX:
        return tuple(str(_checked(kind, name, str, item)) for item in value)
    if wanted == tuple[Fact, ...] and isinstance(value, list) and len(value) <= FACTS_MAX:
        return tuple(_fact(kind, name, item) for item in value)
    raise _bad_value(kind, name)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= TEXT_MAX and not _SURROGATE.search(value)


def _fact(kind: type[Frame], name: str, value: object) -> Fact:
    if not isinstance(value, dict) or len(value) > FACTS_MAX:
        raise _bad_value(kind, name)
    return {
        str(_checked(kind, name, str, key)): _checked(kind, name, _SAID.get(type(item)), item)
        for key, item in value.items()
    }


_SAID: dict[type, object] = {kind: kind for kind in (str, bool, int, float)} | {list: tuple[str, ...]}
"""As what a value in a fact is read, by its type in JSON."""


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
