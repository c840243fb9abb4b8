"""Parcels: a few descriptors and a word about them, as one descriptor that the service manager can keep.

PID 1 compares each new descriptor with every one it has, so a stream costs one and not six. A parcel is
the receiving end of a ``SOCK_SEQPACKET`` pair (unix(7)) in whose queue lies one message: JSON, with the
descriptors as SCM_RIGHTS. Reading it leaves it there, for the next time.
"""

import contextlib
import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import LocalError, reason

VERSION = 1
DESCRIPTORS_MAX = 253  # SCM_MAX_FD (include/net/scm.h)
_TEXT_MAX = 2**16
_DESCRIPTOR = struct.Struct("i")


def pack(facts: Mapping[str, Any], descriptors: Sequence[int]) -> socket.socket:
    """Make a parcel; the descriptors stay open here, too.

    Raises:
        LocalError: no descriptors left, or too much for one parcel.
    """
    text = json.dumps({"version": VERSION, **facts}).encode()
    try:
        inside, outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise LocalError(f"cannot hand over to the service manager: {reason(error)}") from error
    with outside:
        try:
            socket.send_fds(outside, [text], list(descriptors))
        except OSError as error:
            inside.close()
            raise LocalError(f"cannot hand over to the service manager: {reason(error)}") from error
    return inside


def unpack(parcel: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What is in a parcel: the facts, and descriptors that are the caller's. The parcel stays as it is.

    Raises:
        LocalError: it is none of ours, or of another version.
    """
    room = socket.CMSG_SPACE(DESCRIPTORS_MAX * _DESCRIPTOR.size)
    # Not socket.recv_fds(): it ignores its flags (fixed in Python 3.14).
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    try:
        text, ancillary, said, _address = parcel.recvmsg(_TEXT_MAX, room, flags)
    except OSError as error:
        raise LocalError(f"a parcel cannot be read: {reason(error)}") from error
    descriptors = [
        number
        for level, kind, data in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (number,) in _DESCRIPTOR.iter_unpack(data[: len(data) - len(data) % _DESCRIPTOR.size])
    ]
    try:
        return _facts(text, said), descriptors
    except LocalError:
        close_all(descriptors)
        raise


def _facts(text: bytes, flags: int) -> dict[str, Any]:
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise LocalError("a parcel is larger than any of ours")
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise LocalError("a parcel is not one of ours") from error
    if not isinstance(facts, dict) or facts.pop("version", None) != VERSION:
        raise LocalError(f"a parcel is not of version {VERSION}")
    return facts


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors; those that are closed already do not matter."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
