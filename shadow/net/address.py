"""Network addresses: parsing, and dialling all of them the way RFC 8305 wants."""

import asyncio
import errno
import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..errors import ConfigError, Unreachable, reason

ATTEMPT_DELAY = 0.25  # seconds before the next address is tried beside the last (RFC 8305, section 8)
_NAME = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_NAME_MAX = 253  # characters of a host name (RFC 1035, section 2.3.4, without the root's label)
_IPV6_PREFIX = 64  # bits: what one customer of a provider has at least (RFC 6177)

SockAddr = tuple[str, int] | tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host (name, IPv4 or IPv6 address) and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Target:
    """One socket address that an endpoint resolved to.

    Attributes:
        family: of the address.
        sockaddr: as the socket module has it.
        name: who must be there, in the words of who dials; empty: nothing is said about that.
    """

    family: int
    sockaddr: SockAddr
    name: str = ""

    def __str__(self) -> str:
        return str(Endpoint(self.sockaddr[0], self.sockaddr[1]))


OnFailure = Callable[[Target, OSError], None]
"""Called with an address that could not be connected to, and why."""

_Attempts: TypeAlias = dict["asyncio.Task[socket.socket]", Target]


def remembered_target(record: Sequence[Any], name: str = "") -> Target:
    """The address that another process has recorded: its family, and the socket module's form of it.

    Raises:
        TypeError, ValueError: it is no address to dial.
    """
    family, (host, port, *rest) = record
    version = ipaddress.ip_address(host.partition("%")[0]).version
    numbers = [port, *rest]
    if (family, len(numbers)) not in {(socket.AF_INET, 1), (socket.AF_INET6, 3)} or not all(
        type(number) is int and number >= 0 for number in numbers
    ):
        raise ValueError("no address to dial")
    if version != (4 if family == socket.AF_INET else 6) or port > 65535:
        raise ValueError("no address to dial")
    return Target(family, (host, *numbers), name)


def parse_port(text: str) -> int:
    """A TCP port from its decimal digits.

    Raises:
        ConfigError: not a number from 1 to 65535.
    """
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 65535):
        raise ConfigError(f"port {text!r} is not a number from 1 to 65535")
    return int(text)


def parse_host(text: str) -> str:
    """A host as typed: a name or an address, IPv6 with or without brackets.

    Raises:
        ConfigError: empty, or with characters that no host name contains.
    """
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not host or any(character.isspace() or character in "/[]@" for character in host):
        raise ConfigError(f"host {text!r} is neither a name nor an address")
    if not host.isascii():
        raise ConfigError(f"host {text!r}: write an international name in its ASCII form (xn--…)")
    name = host.removesuffix(".")
    if len(name) > _NAME_MAX or not all(0 < len(label) < 64 for label in name.split(".")):
        raise ConfigError(f"host {text!r} is neither a name nor an address")
    return host


def parse_endpoint(text: str) -> Endpoint:
    """``HOST:PORT``; an IPv6 address goes in brackets.

    Raises:
        ConfigError: it is not of that form.
    """
    host, colon, port = text.rpartition(":")
    if not colon or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise ConfigError(f"{text!r} is not HOST:PORT (an IPv6 address goes in brackets: [::1]:22)")
    return Endpoint(parse_host(host), parse_port(port))


def parse_advertised(text: str) -> Endpoint:
    """``HOST:PORT`` that other machines shall dial; a peer may have said it.

    Raises:
        ConfigError: it is not of that form, or no other machine can dial it: ``0.0.0.0``, ``fe80::1%eth0``.
    """
    endpoint = parse_endpoint(text)
    if not is_ip_address(endpoint.host):
        if not _NAME.fullmatch(endpoint.host):
            raise ConfigError(f"{text!r}: {endpoint.host!r} is neither a name nor an address")
    elif "%" in endpoint.host:
        raise ConfigError(f"{text!r}: an interface of this machine means nothing to another one")
    elif ipaddress.ip_address(endpoint.host).is_unspecified:
        raise ConfigError(f"{text!r}: {endpoint.host} stands for all addresses, and nobody can dial it")
    return endpoint


def is_ip_address(host: str) -> bool:
    """True for an IPv4 or IPv6 address, with or without a zone (``fe80::1%eth0``)."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def describe(sockaddr: object) -> str:
    """A socket address for the log; an IPv4 peer of a dual-stack socket shows as IPv4."""
    if not isinstance(sockaddr, tuple) or len(sockaddr) < 2:
        return "a local socket"
    host = str(sockaddr[0]).removeprefix("::ffff:") if "." in str(sockaddr[0]) else str(sockaddr[0])
    return str(Endpoint(host, sockaddr[1]))


def source_of(host: str) -> str:
    """Where a connection comes from: an IPv4 address, or the network that an IPv6 address is in."""
    address = true_address(host)
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((address, _IPV6_PREFIX), strict=False))


def true_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address of a socket's end without its zone; that of IPv4 on a dual-stack socket is IPv4."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def interleave(targets: list[Target]) -> list[Target]:
    """The targets with alternating families, the resolver's favourite first (RFC 8305, section 4)."""
    first = [target for target in targets if target.family == targets[0].family]
    other = [target for target in targets if target.family != targets[0].family]
    mixed: list[Target] = []
    while first or other:
        mixed += first[:1] + other[:1]
        first, other = first[1:], other[1:]
    return mixed


async def dial(
    targets: list[Target], within: float, on_failure: OnFailure | None = None
) -> tuple[socket.socket, Target]:
    """Connect to the first target that answers.

    The next address is tried as soon as one fails, and beside it when it has not answered for
    ``ATTEMPT_DELAY`` (RFC 8305, section 5). The losers are closed.

    Raises:
        Unreachable: none answered ``within`` that many seconds; its ``__cause__`` is the first OSError.
    """
    attempts: _Attempts = {}
    queue = list(targets)
    failures: list[OSError] = []
    winner: asyncio.Task[socket.socket] | None = None

    def failed(target: Target, error: OSError) -> None:
        failures.append(error)
        if on_failure is not None:
            on_failure(target, error)

    try:
        async with asyncio.timeout(within):
            while winner is None and (queue or attempts):
                if queue:
                    target = queue.pop(0)
                    attempts[asyncio.create_task(_connect(target))] = target
                winner = await _first_success(attempts, failed, ATTEMPT_DELAY if queue else None)
    except TimeoutError:
        for target in attempts.values():
            failed(target, TimeoutError(errno.ETIMEDOUT, "no answer"))
    finally:
        _abandon([attempt for attempt in attempts if attempt is not winner])
    if winner is not None:
        return winner.result(), attempts[winner]
    where = ", ".join(map(str, targets[:4])) + (", …" if len(targets) > 4 else "")
    raise Unreachable(f"cannot connect to {where}: {reason(failures[0])}") from failures[0]


async def _first_success(
    attempts: _Attempts, failed: OnFailure, delay: float | None
) -> asyncio.Task[socket.socket] | None:
    """Wait for an attempt to end; return it if it connected, else report its failure and drop it."""
    done, _ = await asyncio.wait(attempts, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
    for attempt in done:
        error = attempt.exception()
        if error is None:
            return attempt
        if not isinstance(error, OSError):
            raise error
        failed(attempts.pop(attempt), error)
    return None


def _abandon(attempts: list[asyncio.Task[socket.socket]]) -> None:
    # Do not wait for them: a cancellation of ours meanwhile would look like that of an attempt.
    for attempt in attempts:
        attempt.cancel()
        attempt.add_done_callback(_close_late)


def _close_late(attempt: asyncio.Task[socket.socket]) -> None:
    """Close the socket of an attempt that connected at the very moment it lost."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def _connect(target: Target) -> socket.socket:
    sock = socket.socket(target.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        await asyncio.get_running_loop().sock_connect(sock, target.sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock
