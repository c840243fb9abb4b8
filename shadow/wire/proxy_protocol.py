"""The PROXY protocol: the first words of a load balancer, which say on whose behalf it connects. No I/O.

Source: "The PROXY protocol, versions 1 & 2" of 2020-03-05, doc/proxy-protocol.txt of haproxy. A receiver must
be told who sends it and must not guess, or anybody could claim any address.
"""

import ipaddress
import struct
from dataclasses import dataclass

from ..errors import PeerError

HEADER_MAX = 536  # bytes: what fits in a segment of any TCP (section 2)
START_MAX = 5  # bytes that are enough to tell a header from TLS, whatever its version

_WORD = b"PROXY "
_LINE_MAX = 107  # bytes, with CRLF (section 2.1)
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED = struct.Struct(">12sBBH")  # signature, version and command, family and transport, length of the rest
_VERSION = 2
_LOCAL, _PROXY = range(2)
_UNSPEC, _INET, _INET6, _UNIX = range(4)
_STREAM, _DGRAM = 1, 2
_ADDRESSES = {_INET: struct.Struct(">4s4sHH"), _INET6: struct.Struct(">16s16sHH")}  # source, destination
_FAMILIES = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}


class HeaderError(PeerError):
    """A header that breaks the protocol."""


class NoHeader(HeaderError):
    """Something else than a header."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who has connected to the load balancer.

    Attributes:
        host: an IPv4 or IPv6 address, never an IPv4 address in the form of IPv6.
        port: 0 to 65535.
    """

    host: str
    port: int


def begins_header(start: bytes) -> bool:
    """Whether these bytes, ``START_MAX`` of them, begin a header."""
    return start[:START_MAX] in {_WORD[:START_MAX], _SIGNATURE[:START_MAX]}


def header_size(begun: bytes) -> int | None:
    """How many bytes the header has that begins like this; None if it takes more of them to know.

    While it is None, everything that has come belongs to the header.

    Raises:
        NoHeader: it does not begin like one.
        HeaderError: it would be too long.
    """
    if begun[: len(_WORD)] == _WORD[: len(begun)]:
        return _line_size(begun)
    if begun[: len(_SIGNATURE)] == _SIGNATURE[: len(begun)]:
        return _binary_size(begun)
    raise NoHeader(f"no PROXY header; it began with {begun[:START_MAX]!r}")


def parse_header(header: bytes) -> Origin | None:
    """On whose behalf the connection was made; None: the load balancer's own, or it does not know.

    Args:
        header: as many bytes as ``header_size`` says.

    Raises:
        HeaderError: it breaks the protocol, or is about something else than TCP.
    """
    return _parse_line(header) if header.startswith(_WORD) else _parse_binary(header)


def _line_size(begun: bytes) -> int | None:
    end = begun.find(b"\n", 0, _LINE_MAX)
    if end >= 0:
        return end + 1
    if len(begun) >= _LINE_MAX:
        raise HeaderError(f"bad PROXY header: no end of line in {_LINE_MAX} bytes")
    return None


def _binary_size(begun: bytes) -> int | None:
    if len(begun) < _FIXED.size:
        return None
    *_, length = _FIXED.unpack_from(begun)
    if _FIXED.size + length > HEADER_MAX:
        raise HeaderError(f"bad PROXY header: of {_FIXED.size + length} bytes, more than {HEADER_MAX}")
    return int(_FIXED.size + length)


def _parse_line(line: bytes) -> Origin | None:
    """Version 1 (section 2.1)."""
    if not line.endswith(b"\r\n"):
        raise _bad(line)
    words = line.removesuffix(b"\r\n").decode("latin-1").split(" ")
    if words[1] == "UNKNOWN":  # whatever follows
        return None
    try:
        _word, family, source, _destination, port, _other = words
        for address in words[2:4]:
            if "%" in address:  # a zone means nothing elsewhere
                raise _bad(line)
            _FAMILIES[family](address)
        if not all(number == str(int(number)) and 0 <= int(number) <= 65535 for number in words[4:]):
            raise _bad(line)
    except (KeyError, ValueError) as error:
        raise _bad(line) from error
    return _origin(ipaddress.ip_address(source), int(port))


def _bad(line: bytes) -> HeaderError:
    return HeaderError(f"bad PROXY header: {line!r}")


def _parse_binary(header: bytes) -> Origin | None:
    """Version 2 (section 2.2); what follows the addresses (TLV) is ignored."""
    _signature, command, kind, length = _FIXED.unpack_from(header)
    if command == _VERSION << 4 | _LOCAL:  # whatever follows
        return None
    family, transport = divmod(kind, 16)
    if command != _VERSION << 4 | _PROXY or family > _UNIX or transport > _DGRAM:
        raise HeaderError(f"bad PROXY header: command {command:#04x} for family {kind:#04x}")
    if _UNSPEC in {family, transport}:
        return None
    if family not in _ADDRESSES or transport != _STREAM:
        raise HeaderError(f"bad PROXY header: for family {kind:#04x}, which is not TCP")
    addresses = _ADDRESSES[family]
    if length < addresses.size:
        raise HeaderError(f"bad PROXY header: {length} bytes for addresses that take {addresses.size}")
    source, _destination, port, _other = addresses.unpack_from(header, _FIXED.size)
    return _origin(ipaddress.ip_address(source), port)


def _origin(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> Origin:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return Origin(str(mapped or address), port)
