"""Where events go: the journal, a terminal, and how much of it a peer decides."""

import contextlib
import io
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shadow import events
from shadow.errors import LocalError
from shadow.events import Event
from shadow.systemd import journal
from shadow.systemd.journal import is_journal, journal_fields, limits_of
from shadow.systemd.quota import PAUSE
from tests.support import DEADLINE, Tunnel, echo, serving, wait_for
from tests.support.journald import as_journald, hear


@pytest.fixture(autouse=True)
def _restore_logger() -> object:
    handlers, propagate = events.LOGGER.handlers[:], events.LOGGER.propagate
    yield
    journal.close()
    events.LOGGER.handlers[:] = handlers
    events.LOGGER.propagate = propagate


def record(event: Event | None) -> logging.LogRecord:
    made = logging.LogRecord("shadow", logging.INFO, "file", 1, "%s", ("text",), None)
    made.event = event
    return made


def test_plain_lines_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    output = io.StringIO()
    journal.setup(output)
    events.log(events.SocketFailed(robot="011"), logging.WARNING, "robot 100%d connected")
    journal.close()
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING: robot 100%d connected\n", output.getvalue())


def test_fields_for_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/shadow-server"])
    with as_journald(tmp_path, monkeypatch) as sock:
        events.log(events.Expires(expires="tomorrow", days=1), logging.ERROR, "over")
        fields = hear(sock)
    where = {name: fields.pop(name) for name in ("CODE_FILE", "CODE_LINE", "CODE_FUNC")}
    assert (where["CODE_FILE"], where["CODE_FUNC"]) == (__file__, "test_fields_for_the_journal")
    assert int(where["CODE_LINE"]) > 0
    assert fields == {
        "MESSAGE": "over",
        "EXPIRES": "tomorrow",
        "DAYS": "1",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "shadow-server",
        "MESSAGE_ID": events.Expires.MESSAGE_ID,
    }


def test_a_record_without_an_event_is_sent_too() -> None:
    record = logging.LogRecord("shadow", logging.INFO, "file", 1, "text", None, None)
    assert "MESSAGE_ID" not in journal_fields(record)


def test_the_journal_is_recognised_by_device_and_inode(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        status = os.fstat(stream.fileno())
        assert is_journal(stream, f"{status.st_dev}:{status.st_ino}")
        assert not is_journal(stream, f"{status.st_dev}:{status.st_ino + 1}")
        assert not is_journal(stream, "")
    assert not is_journal(io.StringIO(), "1:2")


def test_a_journal_that_is_away_does_not_stop_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with as_journald(tmp_path, monkeypatch) as sock:
        (tmp_path / "journald").unlink()
        events.log(events.Stopping(), logging.WARNING, "x")
        wait_for(lambda: journal.lost() == 1, "it to be counted")
        assert sock.fileno() != -1


def test_who_is_limited_by_what() -> None:
    assert limits_of(record(events.ServerReady())) == []
    for kind in (events.SocketFailed, events.SessionLost):
        assert limits_of(record(kind(robot="a"))) == limits_of(record(kind(robot="a"))) != []
        assert limits_of(record(kind(robot="a"))) != limits_of(record(kind(robot="b")))
    one, again, other = (
        limits_of(record(events.HandshakeFailed(peer=peer, cause="tls")))
        for peer in ("[::1]:5", "[::1]:6", "[::2]:6")
    )
    assert one == again
    assert one[0] != other[0]
    assert one[1] == other[1], "whoever has many addresses has no more"
    one, other = (
        limits_of(
            record(events.VisitorFailed(robot=name, service="", stream="1", visitor_uid=1, visitor_pid=1))
        )
        for name in "ab"
    )
    assert one[0] != other[0]
    assert one[1] == other[1], "whoever makes up names of robots has no more"
    assert limits_of(record(None)) == limits_of(record(None)), "a bug"


@pytest.mark.parametrize(
    "event",
    [
        events.PeerRefused(server="s2", peer="[::1]:5", code="revoked"),
        *(events.ListRefused(), events.ListPassedOn(number="3"), events.DrainBegun(), events.DrainOver()),
    ],
    ids=lambda event: type(event).__name__,
)
def test_what_a_stolen_server_causes_is_limited(event: events.Event) -> None:
    """Directly, or through the fleet's engine."""
    assert limits_of(record(event))


def test_what_a_peer_causes_again_and_again_is_counted_and_summed_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    output = io.StringIO()
    journal.setup(output)
    for number in range(1000):
        failed = events.HandshakeFailed(peer=f"192.0.2.1:{number}", cause="tls")
        events.log(failed, logging.WARNING, f"no handshake with {failed.peer}")
        events.log(events.SocketFailed(robot="011"), logging.INFO, "011 connected")
    events.log(events.SocketFailed(robot="012"), logging.INFO, "012 connected")
    journal.close()
    lines = output.getvalue().splitlines()
    assert len(lines) < 60
    assert sum("012" in line for line in lines) == 1
    told = [int(found[1]) for line in lines if (found := re.search(r"(\d+) more within", line))]
    assert sum(told) + sum("more" not in line for line in lines) == 2001
    assert any(
        f"more within {PAUSE:.0f} s, the last one: no handshake with 192.0.2.1:999" in x for x in lines
    )


UNREAD = """
import sys
import threading
from pathlib import Path
from shadow.systemd import journal
journal.JOURNALD = Path(sys.argv.pop(1))
from shadow.cli.server import main
raise SystemExit(main())
"""


@pytest.mark.long
@pytest.mark.parametrize("what", ["pipe", "journald"])
def test_a_log_that_nobody_reads_stops_nobody(tunnel: Tunnel, what: str) -> None:
    """Nor does it keep the server from stopping."""
    (tunnel.folder / "unread.py").write_text(UNREAD)
    path = tunnel.folder / "journald"
    theirs, ours = os.pipe2(os.O_NONBLOCK)
    environment = {**os.environ, "PYTHONPATH": str(tunnel.folder)}
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, theirs)
        full = stack.enter_context(os.fdopen(ours, "wb", buffering=0))
        journald = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        journald.bind(str(path))
        if what == "pipe":
            while full.write(b"." * 4096):
                pass
            os.set_blocking(ours, True)
        else:
            noise = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            noise.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    noise.sendto(b"noise", str(path))
            status = os.fstat(ours)
            environment["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
        command = [sys.executable, "-m", "unread", str(path), *tunnel.server_arguments()[1:]]
        server = stack.enter_context(subprocess.Popen(command, stderr=ours, env=environment))
        stack.callback(server.kill)
        service = stack.enter_context(serving(echo))
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        for number in range(30):
            with tunnel.visit() as visitor:
                visitor.sendall(b"%d" % number)
                assert visitor.recv(10) == b"%d" % number
        server.send_signal(signal.SIGTERM)
        assert server.wait(DEADLINE) == 0


def test_a_log_without_a_thread_is_an_error_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(LocalError, match=r"cannot start the log's thread: can't start new .*TasksMax="):
        journal.setup(io.StringIO())
