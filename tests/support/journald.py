"""A journald of our own: a socket, and what makes the log believe that it is the real one."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadow import events
from shadow.systemd import journal
from tests.support import DEADLINE


@contextlib.contextmanager
def as_journald(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The log, and what thinks that it is stderr, goes to a socket of ours."""
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        sock.bind(str(folder / "journald"))
        monkeypatch.setattr(journal, "JOURNALD", folder / "journald")
        with os.fdopen(os.dup(ours.fileno()), "w") as stream:
            status = os.fstat(stream.fileno())
            monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
            monkeypatch.setattr("sys.stderr", stream)
            handlers = events.LOGGER.handlers[:]
            journal.setup()
            try:
                yield sock
            finally:
                journal.close()
                events.LOGGER.handlers[:] = handlers


def hear(sock: socket.socket) -> dict[str, str]:
    """The next message, if none of its fields has several lines."""
    return dict(line.split("=", 1) for line in sock.recv(65536).decode().splitlines())
