"""Bundles: descriptors and facts about them, as one descriptor that the service manager can keep.

PID 1 compares each new descriptor with every one it has, so a stream costs one descriptor and not six. A
bundle is the receiving end of a ``SOCK_SEQPACKET`` pair (unix(7)) with letters in its queue. A letter is one
message: JSON, with descriptors as SCM_RIGHTS.

The bundle of a stream has one letter, which we read and leave there for the next time (``pack``, ``unpack``).
Other bundles are filled with as many letters as fit, and emptied once (``BundleWriter``, ``empty``).
"""

import contextlib
import errno
import json
import math
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import LocalError, reason
from ..net.tcp import is_tcp, reset

VERSION = 1
DESCRIPTORS_MAX = 253  # SCM_MAX_FD (include/net/scm.h)
_TEXT_MAX = 2**16
_DESCRIPTOR = struct.Struct("i")
_QUEUE = 212992  # bytes of memory for letters: the kernel's usual limit, which it doubles (socket(7))


class Letter(NamedTuple):
    """What goes into a bundle.

    Attributes:
        facts: fit for JSON.
        descriptors: the bundle holds copies of them.
    """

    facts: Mapping[str, Any]
    descriptors: Sequence[int]


class BundleWriter:
    """Fills one bundle with letters, until it is full or sealed by ``close``.

    Attributes:
        bundle: to be kept; the caller's.
    """

    def __init__(self) -> None:
        """Make an empty one.

        Raises:
            LocalError: no descriptors left.
        """
        try:
            self.bundle, self._outside = socket.socketpair(
                socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
            )
        except OSError as error:
            raise LocalError(f"cannot hand over to the service manager: {reason(error)}") from error
        self._outside.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _QUEUE)

    def put(self, letter: Letter) -> bool:
        """Add a letter; False if the bundle is full.

        Raises:
            LocalError: too much for one letter, or more descriptors than a user may have in flight (unix(7),
                ETOOMANYREFS).
        """
        text = json.dumps({"version": VERSION, **letter.facts}).encode()
        if len(text) > _TEXT_MAX:
            raise LocalError(f"cannot hand over to the service manager: {len(text)} bytes are too much")
        try:
            socket.send_fds(self._outside, [text], list(letter.descriptors))
        except BlockingIOError:
            return False
        except OSError as error:
            raise LocalError(f"cannot hand over to the service manager: {_why_not(error)}") from error
        return True

    def close(self) -> None:
        """Seal the bundle."""
        self._outside.close()


def _why_not(error: OSError) -> str:
    if error.errno == errno.ETOOMANYREFS:
        # net/unix/scm.c, too_many_unix_fds: all bundles of the user count, against this process's limit.
        return (
            "too many descriptors of this user lie in bundles, and LimitNOFILE= of the unit counts them, too "
            "(ETOOMANYREFS, unix(7))"
        )
    return reason(error)


def pack(facts: Mapping[str, Any], descriptors: Sequence[int]) -> socket.socket:
    """Make a bundle of one letter; the descriptors stay open here, too.

    Raises:
        LocalError: no descriptors left, or too much for one letter.
    """
    with contextlib.closing(BundleWriter()) as writer:
        try:
            if not writer.put(Letter(facts, descriptors)):
                raise LocalError("cannot hand over to the service manager: too much for one bundle")
        except BaseException:
            writer.bundle.close()
            raise
    return writer.bundle


def unpack(bundle: socket.socket) -> Letter:
    """The first letter; its descriptors are the caller's. The bundle stays as it is.

    Raises:
        LocalError: it is not one of ours, or of another version.
    """
    try:
        letter = _read(bundle, socket.MSG_PEEK)
    except OSError as error:
        raise LocalError(f"a bundle cannot be read: {reason(error)}") from error
    if letter is None:
        raise LocalError("a bundle is empty")
    return letter


def empty(bundle: socket.socket) -> Iterator[Letter | LocalError]:
    """Take all letters out; their descriptors are the caller's. A letter that is not ours yields an error."""
    while True:
        try:
            letter: Letter | LocalError | None = _read(bundle, 0)
        except OSError as error:
            yield LocalError(f"a bundle cannot be read: {reason(error)}")
            return
        except LocalError as error:
            letter = error
        if letter is None:
            return
        yield letter


def _read(bundle: socket.socket, flags: int) -> Letter | None:
    room = socket.CMSG_SPACE(DESCRIPTORS_MAX * _DESCRIPTOR.size)
    # Not socket.recv_fds(): it ignores its flags (fixed in Python 3.14).
    flags |= socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    text, ancillary, said, _address = bundle.recvmsg(_TEXT_MAX, room, flags)
    if not text and not ancillary:  # an empty message would look the same; nobody sends one
        return None
    descriptors = [
        number
        for level, kind, data in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (number,) in _DESCRIPTOR.iter_unpack(data[: len(data) - len(data) % _DESCRIPTOR.size])
    ]
    try:
        return Letter(_facts(text, said), descriptors)
    except BaseException:
        abandon(descriptors)
        raise


def _facts(text: bytes, flags: int) -> dict[str, Any]:
    if flags & socket.MSG_TRUNC:
        raise LocalError("a letter is larger than any of ours")
    if flags & socket.MSG_CTRUNC:  # recvmsg(2): no descriptor was left for one of them
        raise LocalError("there is no room for its descriptors (LimitNOFILE= of the unit may be too low)")
    try:
        # Times that are not numbers would poison every comparison made with them.
        facts = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise LocalError("a letter is not one of ours") from error
    if not isinstance(facts, dict) or facts.pop("version", None) != VERSION:
        raise LocalError(f"a letter is not of version {VERSION}")
    return facts


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def as_sockets(descriptors: Sequence[int], count: int | None = None) -> list[socket.socket]:
    """The same descriptors as non-blocking sockets; if one is not a socket, all are closed.

    Raises:
        LocalError: one is not a socket, or there are not ``count``.
    """
    made: list[socket.socket] = []
    if count not in {None, len(descriptors)}:
        abandon(descriptors)
        raise LocalError(f"{len(descriptors)} descriptors and not {count}")
    try:
        for descriptor in descriptors:
            made.append(socket.socket(fileno=descriptor))
            made[-1].setblocking(False)
    except OSError as error:
        abandon([*(sock.detach() for sock in made), *descriptors[len(made) :]])
        raise LocalError(f"a bundle has what is no socket: {reason(error)}") from error
    return made


def abandon(descriptors: Sequence[int]) -> None:
    """Close descriptors that nobody can go on with, so that no peer takes it for an orderly end."""
    for descriptor in descriptors:
        try:
            sock = socket.socket(fileno=descriptor)
        except OSError:
            close_all([descriptor])
            continue
        if is_tcp(sock):
            reset(sock)
        else:
            sock.close()


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors; those that are closed already do not matter."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
