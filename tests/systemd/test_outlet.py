"""Where the log goes: nobody waits for it, and what is lost is counted and told."""

import array
import contextlib
import fcntl
import logging
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadow.systemd import outlet
from shadow.systemd.outlet import Journald, Outlet, Sink, Terminal, native
from tests.support import DEADLINE, wait_for


class Open:
    """Lets everything pass."""

    def admit(self, _record: logging.LogRecord, _now: float) -> bool:
        return True

    def due(self, _now: float) -> list[logging.LogRecord]:
        return []

    def patience(self, _now: float) -> float | None:
        return None


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("shadow", logging.WARNING, "file", 1, "%s", (text,), None)


class Reader(Sink):
    """Takes lines as long as it is let."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.lines: list[bytes] = []
        self.outlet = Outlet(
            self,
            lambda one: one.getMessage().encode(),
            Open(),
            lambda count: record(f"{count} were lost"),
        )

    def write(self, line: bytes) -> None:
        self.may.wait(DEADLINE)
        if line == b"broken":
            raise OSError
        self.lines.append(line)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.may.set()
    made.outlet.close()
    made.outlet._thread.join(DEADLINE)


def test_nobody_waits_and_what_is_lost_is_told(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "_LINES_MAX", 10)
    reader.outlet.handle(record("0"))
    wait_for(lambda: not reader.outlet._lines, "the first one to be on its way")
    for number in range(1, 100):
        reader.outlet.handle(record(str(number)))  # which would never return
    assert reader.lines == []
    assert reader.outlet.lost == 89
    reader.may.set()
    reader.outlet.flush()
    kept = [str(number).encode() for number in range(11)]
    assert reader.lines == [*kept, b"89 were lost"], "where they are missing"
    reader.outlet.handle(record("after"))
    reader.outlet.flush()
    assert reader.lines[-1] == b"after"


def test_long_lines_are_bounded_too(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "_BYTES_MAX", 1000)
    for _ in range(10):
        reader.outlet.handle(record("x" * 400))
    assert reader.outlet.lost in {7, 8}


def test_a_log_that_is_broken_is_a_lost_line(reader: Reader) -> None:
    reader.may.set()
    reader.outlet.handle(record("broken"))
    wait_for(lambda: reader.outlet.lost == 1, "it to be counted")
    reader.outlet.handle(logging.LogRecord("shadow", logging.WARNING, "file", 1, "%d", ("no number",), None))
    reader.outlet.handle(record("good"))
    reader.outlet.flush()
    assert reader.lines == [b"good", b"2 were lost"]


def test_the_end_does_not_wait_for_ever(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "_LAST_WORDS", 0.1)
    reader.outlet.handle(record("x"))
    reader.outlet.close()
    assert reader.lines == []


def test_a_pipe_that_is_full_and_does_not_block() -> None:
    theirs, ours = os.pipe2(os.O_NONBLOCK)
    with os.fdopen(ours, "w") as stream, os.fdopen(theirs, "rb") as reading:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(ours, b"." * 4096)
        writing = threading.Thread(target=Terminal(stream).write, args=(b"a line\n",))
        writing.start()
        data = b""
        while not data.endswith(b"a line\n"):
            data += reading.read(65536) or b""
        writing.join()


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(DEADLINE)
        sock.bind(str(tmp_path / "socket"))
        yield sock


def test_what_no_datagram_takes_goes_as_a_sealed_file(journald: socket.socket) -> None:
    sink = Journald(Path(journald.getsockname()))
    sink.write(b"MESSAGE=short\n")
    assert journald.recv(100) == b"MESSAGE=short\n"
    long = b"MESSAGE=%s\n" % (b"x" * 2**25)
    sink.write(long)
    sink.close()
    numbers = array.array("i")
    data, ancillary, _flags, _address = journald.recvmsg(100, socket.CMSG_SPACE(numbers.itemsize))
    assert data == b""
    numbers.frombytes(ancillary[0][2])
    with os.fdopen(numbers[0], "rb") as file:
        assert fcntl.fcntl(file, fcntl.F_GET_SEALS) == outlet._SEALS
        assert os.pread(file.fileno(), len(long) + 1, 0) == long


def test_a_journald_that_was_restarted_and_one_that_is_away(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    sink = Journald(path)
    for _ in range(2):
        with pytest.raises(OSError, match=r"No such file|refused"):
            sink.write(b"A=b\n")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            path.unlink(missing_ok=True)
            sock.bind(str(path))
            sink.write(b"A=b\n")
            assert sock.recv(100) == b"A=b\n"
    sink.close()


def test_fields_of_several_lines() -> None:
    assert native({"A": "b", "MESSAGE": "two\nlines"}) == b"A=b\nMESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\n"
