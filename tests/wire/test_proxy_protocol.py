"""The PROXY protocol: bytes as the specification has them, what breaks it, and where a header ends."""

import contextlib
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow.wire.proxy_protocol import (
    HEADER_MAX,
    START_MAX,
    HeaderError,
    NoHeader,
    Origin,
    begins_header,
    header_size,
    parse_header,
)

SIGNATURE = bytes.fromhex("0D0A0D0A000D0A515549540A")  # section 2.2
LOCAL, PROXY = 0x20, 0x21
TCP4, TCP6, UNSPEC = 0x11, 0x21, 0x00
FOUR = bytes([203, 0, 113, 7, 192, 0, 2, 1]) + struct.pack(">HH", 56324, 2222)
SIX = ipaddress.ip_address("2001:db8::7").packed + bytes(16) + struct.pack(">HH", 1, 2)


def binary(command: int, family: int, rest: bytes) -> bytes:
    return SIGNATURE + bytes([command, family]) + len(rest).to_bytes(2, "big") + rest


def read(stream: bytes) -> Origin | None:
    """What a stream begins with, whose header must end where it says."""
    size = header_size(stream)
    assert size is not None
    return parse_header(stream[:size])


@pytest.mark.parametrize(
    ("line", "origin"),
    [
        (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", Origin("192.168.0.1", 56324)),  # section 2.1
        (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", Origin("255.255.255.255", 65535)),
        (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n", Origin("0.0.0.0", 0)),  # noqa: S104 - from nowhere
        (
            b"PROXY TCP6 " + b" ".join([b":".join([b"ffff"] * 8)] * 2) + b" 65535 65535\r\n",
            Origin("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535),
        ),
        (b"PROXY TCP6 2001:DB8::7 ::1 1 2\r\n", Origin("2001:db8::7", 1)),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1 2\r\n", Origin("192.0.2.1", 1)),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN " + b" ".join([b":".join([b"ffff"] * 8)] * 2) + b" 65535 65535\r\n", None),
        (b"PROXY UNKNOWN \xff\r and what not\r\n", None),
    ],
)
def test_version_1(line: bytes, origin: Origin | None) -> None:
    assert header_size(line) == len(line)
    assert read(line + b"GET / HTTP/1.1\r\n") == origin


@pytest.mark.parametrize(
    ("header", "origin"),
    [
        (binary(PROXY, TCP4, FOUR), Origin("203.0.113.7", 56324)),
        (binary(PROXY, TCP6, SIX), Origin("2001:db8::7", 1)),
        (binary(PROXY, TCP6, b"\0" * 10 + b"\xff\xff\xcb\0\x71\x07" + SIX[16:]), Origin("203.0.113.7", 1)),
        # PP2_TYPE_NOOP, PP2_TYPE_UNIQUE_ID, and a checksum that nobody checks.
        (binary(PROXY, TCP4, FOUR + b"\4\0\3abc\5\0\x011\3\0\4\0\0\0\0"), Origin("203.0.113.7", 56324)),
        (binary(PROXY, TCP4, FOUR + b"no TLV at all"), Origin("203.0.113.7", 56324)),
        (binary(PROXY, TCP4, FOUR.ljust(HEADER_MAX - 16, b"\0")), Origin("203.0.113.7", 56324)),
        (binary(LOCAL, UNSPEC, b""), None),
        (binary(LOCAL, TCP4, FOUR), None),
        (binary(LOCAL, 0xFF, b"whatever"), None),
        (binary(PROXY, UNSPEC, b""), None),
        (binary(PROXY, UNSPEC, b"whatever"), None),
        (binary(PROXY, 0x10, FOUR), None),
    ],
)
def test_version_2(header: bytes, origin: Origin | None) -> None:
    assert header_size(header) == len(header)
    assert read(header + b"\x16\x03\x01") == origin


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY \r\n",
        b"PROXY TCP4\r\n",
        b"PROXY TCP5 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY tcp4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY UNKNOWN\n",
        b"PROXY UNKNOWNX\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n",
        b"PROXY TCP4 192.0.2.1  192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
        b"PROXY  TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.256 1 2\r\n",
        b"PROXY TCP4 192.0.2 192.0.2.2 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 02\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1_0 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 \xb2 2\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 \t1 2\r\n",
        b"PROXY TCP4 robot.example.com 192.0.2.2 1 2\r\n",
    ],
)
def test_bad_lines(line: bytes) -> None:
    assert header_size(line) == len(line)
    with pytest.raises(HeaderError, match=r"bad PROXY header: b'PROXY "):
        parse_header(line)


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (binary(0x11, TCP4, FOUR), "command 0x11"),
        (binary(0x22, TCP4, FOUR), "command 0x22"),
        (binary(0x00, TCP4, FOUR), "command 0x00"),
        (binary(PROXY, 0x13, FOUR), "family 0x13"),
        (binary(PROXY, 0x41, FOUR), "family 0x41"),
        (binary(PROXY, 0x12, FOUR), "0x12, which is not TCP"),
        (binary(PROXY, 0x31, bytes(216)), "0x31, which is not TCP"),
        (binary(PROXY, TCP4, FOUR[:-1]), "11 bytes for addresses that take 12"),
        (binary(PROXY, TCP6, FOUR), "12 bytes for addresses that take 36"),
        (binary(PROXY, TCP4, b""), "0 bytes for addresses"),
    ],
)
def test_bad_bytes(header: bytes, complaint: str) -> None:
    assert header_size(header) == len(header)
    with pytest.raises(HeaderError, match=complaint):
        parse_header(header)


def test_too_long() -> None:
    line = b"PROXY UNKNOWN".ljust(105, b" ")
    assert header_size(line + b"\r\n") == 107
    assert header_size(line + b"\r") is None
    for rest in (b" \r", b" \r\n", b" " * 999):
        with pytest.raises(HeaderError, match="no end of line in 107 bytes"):
            header_size(line + rest)
    assert header_size(binary(LOCAL, UNSPEC, bytes(520))) == HEADER_MAX == 536
    with pytest.raises(HeaderError, match="of 537 bytes, more than 536"):
        header_size(binary(LOCAL, UNSPEC, bytes(521))[:16])


@pytest.mark.parametrize(
    ("start", "at"),
    [
        (b"\x16\x03\x01\x02\0", 1),
        (b"GET / HTTP/1.0\r\n", 1),
        (b"POST / HTTP/1.0\r\n", 2),
        (b"\r\n\r\n\r", 5),
        (b"PROXY\tTCP4", 6),
        (SIGNATURE[:-1] + b"\r", 12),
    ],
)
def test_something_else(start: bytes, at: int) -> None:
    """It is refused at the first byte that cannot be one of a header."""
    assert header_size(start[: at - 1]) is None
    with pytest.raises(NoHeader, match="no PROXY header; it began with"):
        header_size(start[:at])
    assert begins_header(start[:START_MAX]) is (at > START_MAX)


Address = ipaddress.IPv4Address | ipaddress.IPv6Address
addresses = st.one_of(st.tuples(*[st.ip_addresses(v=4)] * 2), st.tuples(*[st.ip_addresses(v=6)] * 2))
ports = st.tuples(*[st.integers(0, 65535)] * 2)


def as_line(ends: tuple[Address, Address], numbers: tuple[int, int]) -> bytes:
    source, destination = ends
    return f"PROXY TCP{source.version} {source} {destination} {numbers[0]} {numbers[1]}\r\n".encode()


def as_bytes(ends: tuple[Address, Address], numbers: tuple[int, int], more: bytes) -> bytes:
    source, destination = ends
    packed = source.packed + destination.packed + struct.pack(">HH", *numbers)
    return binary(PROXY, TCP4 if source.version == 4 else TCP6, packed + more)


headers = st.one_of(
    st.builds(as_line, addresses, ports),
    st.builds(as_bytes, addresses, ports, st.binary(max_size=480)),
    st.builds(binary, st.just(LOCAL), st.integers(0, 255), st.binary(max_size=520)),
)


@given(addresses, ports, st.binary(max_size=400))
def test_both_versions_say_the_same(
    ends: tuple[Address, Address], numbers: tuple[int, int], more: bytes
) -> None:
    origin = read(as_bytes(ends, numbers, more))
    assert origin == read(as_line(ends, numbers))
    assert origin is not None
    mapped = getattr(ends[0], "ipv4_mapped", None)
    assert (ipaddress.ip_address(origin.host), origin.port) == (mapped or ends[0], numbers[0])


@given(headers, st.binary(max_size=600))
def test_the_end_of_a_header_is_found_wherever_it_is_cut(header: bytes, more: bytes) -> None:
    """Nothing is refused that may become a header, and nothing behind it counts."""
    known = [header_size(header[:end]) for end in range(len(header))]
    assert set(known) <= {None, len(header)}
    assert header_size(header + more) == len(header)
    assert begins_header(header[:START_MAX])


spoiled = st.builds(lambda header, end, more: header[:end] + more, headers, st.integers(0, 60), st.binary())


@given(st.one_of(st.binary(max_size=600), spoiled))
def test_whatever_comes(stream: bytes) -> None:
    """It is a header of at most so many bytes, may become one, or is refused."""
    with contextlib.suppress(HeaderError):
        size = header_size(stream)
        if size is None:
            assert len(stream) < 107
        else:
            assert 8 <= size <= HEADER_MAX
            if size <= len(stream):
                parse_header(stream[:size])
