"""Names to addresses, by getaddrinfo(3), so that a name whose resolver hangs harms no other name.

getaddrinfo(3) blocks, nobody can interrupt it, and with silent name servers it takes half a minute. So each
name is looked up in a thread of its own: at most one thread for each name, and everybody who wants that name
waits for it. Names come from our settings, so there are never more threads than names in them, and a few for
names that a peer has told us. The threads are daemonic: nobody waits for them when the process ends.
asyncio's executor would be wrong in both respects: a few names that hang fill it, and ``asyncio.run`` joins
it.
"""

import asyncio
import contextlib
import errno
import socket
import threading
from typing import TypeAlias, cast

from ..errors import Unreachable
from .address import Endpoint, SockAddr, Target, interleave, is_ip_address

Found = list[tuple[int, SockAddr]]
"""Address families and socket addresses (with port 0), in the C library's order."""

_LOOPBACK: Found = [(socket.AF_INET6, ("::1", 0, 0, 0)), (socket.AF_INET, ("127.0.0.1", 0))]

_Lookup: TypeAlias = "asyncio.Future[Found | Exception]"
_under_way: dict[str, _Lookup] = {}
_told: set[str] = set()  # the names among them that a peer has told us
_TOLD_MAX = 4  # of those: it could tell us another name each time we connect


async def resolve(endpoint: Endpoint, within: float, *, told: bool = False) -> list[Target]:
    """All socket addresses of an endpoint, in the order in which to try them.

    Addresses and ``localhost`` need no name server and are answered at once (RFC 6761, section 6.3).

    Args:
        endpoint: what to look up.
        within: seconds to wait for it.
        told: a peer has told us the name; few such names are looked up at once.

    Raises:
        Unreachable: the name cannot be resolved (now), or not ``within`` that many seconds.
    """
    host = endpoint.host
    try:
        if is_ip_address(host):
            found = _ask(host, socket.AI_NUMERICHOST)
        elif _is_localhost(host):
            found = _loopback()
        else:
            found = await _look_up(host, within, told=told)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a valid host name"
        raise Unreachable(f"cannot resolve {host}: {why}") from error
    targets = [Target(family, _with_port(sockaddr, endpoint.port)) for family, sockaddr in found]
    return interleave(list(dict.fromkeys(targets)))


def _ask(host: str, flags: int = 0) -> Found:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=flags)
    return [(info[0], cast("SockAddr", info[4])) for info in found]


def _with_port(sockaddr: SockAddr, port: int) -> SockAddr:
    return (sockaddr[0], port) if len(sockaddr) == 2 else (sockaddr[0], port, *sockaddr[2:])


def _is_localhost(host: str) -> bool:
    name = host.removesuffix(".").lower()
    return name == "localhost" or name.endswith(".localhost")


def _loopback() -> Found:
    """Both loopback addresses, those that this machine has first (RFC 6724, section 5, rule 1)."""
    return sorted(_LOOPBACK, key=lambda one: not _exists(*one))


def _exists(family: int, sockaddr: SockAddr) -> bool:
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(_with_port(sockaddr, 9))  # only looks for a route, sends nothing
        return True
    return False


async def _look_up(name: str, within: float, *, told: bool) -> Found:
    """Wait for the lookup of this name that is in progress, or for a new one.

    Raises:
        Unreachable: no answer ``within`` that many seconds; the lookup goes on, and the next caller waits for
            it.
        OSError, UnicodeError: what getaddrinfo(3) says; or there is no thread for it.
    """
    lookup = _under_way.get(name)
    if lookup is None or lookup.get_loop() is not asyncio.get_running_loop():
        if told and len(_told) >= _TOLD_MAX:
            raise OSError(errno.EAGAIN, "too many names are being looked up")
        lookup = _begin(name)
        if told:
            _told.add(name)
    await asyncio.wait([lookup], timeout=within)  # not wait_for(), which would cancel it for everybody
    if not lookup.done():
        raise Unreachable(f"cannot resolve {name}: no answer within {within:g} s")
    found = lookup.result()
    if isinstance(found, Exception):
        raise found
    return found


def _begin(name: str) -> _Lookup:
    loop = asyncio.get_running_loop()
    lookup: _Lookup = loop.create_future()

    def run() -> None:
        try:
            found: Found | Exception = _ask(name)
        except Exception as error:  # noqa: BLE001 - whatever it is, the waiting callers raise it
            found = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is waiting any more
            loop.call_soon_threadsafe(_end, name, lookup, found)

    try:
        threading.Thread(target=run, name=f"dns-{name}", daemon=True).start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from error
    _under_way[name] = lookup
    return lookup


def _end(name: str, lookup: _Lookup, found: Found | Exception) -> None:
    if _under_way.get(name) is lookup:
        del _under_way[name]
        _told.discard(name)
    lookup.set_result(found)
