"""What the service manager is told, and how often it wants to hear of us."""

import os
import socket
from pathlib import Path

import pytest

from shadow.errors import ConfigError
from shadow.systemd.notify import Notifier, watchdog_interval


@pytest.fixture
def notify_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    path = tmp_path / "notify"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(path))
    sock.settimeout(10)
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    return sock


def test_notifications(notify_socket: socket.socket) -> None:
    with notify_socket:
        notifier = Notifier()
        notifier.ready("all well")
        notifier.status("all well")  # nothing new: nothing sent
        notifier.status("better\nWATCHDOG=trigger")
        notifier.watchdog()
        notifier.reloading()
        notifier.stopping("bye")
        notifier.close()
        messages = [notify_socket.recv(4096).decode() for _ in range(5)]
    assert messages[:3] == ["READY=1\nSTATUS=all well", "STATUS=better?WATCHDOG=trigger", "WATCHDOG=1"]
    assert messages[3].startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert messages[4] == "STOPPING=1\nSTATUS=bye"


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready("nobody listens")


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [
        (None, None, None),
        ("30000000", None, 30.0),
        ("500000", "our own", 0.5),
        ("30000000", "1", None),
    ],
)
def test_watchdog_interval(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, interval: float | None
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(os.getpid()) if value == "our own" else value)
    assert watchdog_interval() == interval


@pytest.mark.parametrize("usec", ["soon", "-1", "0"])
def test_a_bad_watchdog_variable(monkeypatch: pytest.MonkeyPatch, usec: str) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with pytest.raises(ConfigError, match="WATCHDOG_USEC"):
        watchdog_interval()
