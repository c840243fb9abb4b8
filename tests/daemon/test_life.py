"""The life of a daemon under a service manager: ready, status, watchdog, reload, stop; real processes."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadow.transport import ktls
from tests.support import CHECKOUT, DEADLINE, Tunnel, echo, exchange, serving, wait_for


class Manager:
    """The service manager's end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._sock.setblocking(False)
        self.environment = {"NOTIFY_SOCKET": str(path)}
        self.said: list[str] = []

    def wait_for(self, pattern: str) -> str:
        def found() -> str | None:
            self._listen()
            return next((text for text in self.said if re.search(pattern, text)), None)

        try:
            return str(wait_for(found, pattern))
        except AssertionError as error:
            raise AssertionError(f"{error}; said was {self.said}") from None

    def heard(self, pattern: str) -> list[str]:
        """All that was said so far and begins like this, in its order."""
        self._listen()
        return [text for text in self.said if re.search(pattern, text)]

    def count(self, text: str) -> int:
        self._listen()
        return self.said.count(text)

    def _listen(self) -> None:
        try:
            while True:
                self.said.append(self._sock.recv(65536).decode())
        except BlockingIOError:
            pass

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


def test_the_server_is_ready_when_it_accepts(tunnel: Tunnel, manager: Manager) -> None:
    server = tunnel.daemon(tunnel.server_arguments(), manager.environment)
    manager.wait_for("^READY=1\n")
    socket.create_connection(("127.0.0.1", tunnel.port)).close()
    with serving(echo) as service:
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        how = "userspace TLS" if ktls.missing() else "kernel TLS"
        manager.wait_for(f"STATUS=1 robot, 0 streams, {how}")
        with tunnel.visit() as visitor:
            visitor.sendall(b"x")
            assert visitor.recv(1) == b"x"
            manager.wait_for("STATUS=1 robot, 1 stream, ")
    server.process.send_signal(signal.SIGHUP)
    manager.wait_for(r"^RELOADING=1\nMONOTONIC_USEC=\d+$")
    wait_for(lambda: sum(text.startswith("READY=1") for text in manager.said) >= 1, "READY after RELOADING")
    assert server.stop() == 0
    manager.wait_for("^STOPPING=1")


@pytest.mark.long
def test_the_client_is_ready_while_offline_and_says_so(tunnel: Tunnel, manager: Manager) -> None:
    client = tunnel.daemon(tunnel.client_arguments("--lport=9"), manager.environment)
    manager.wait_for("^READY=1\n")
    manager.wait_for(r"STATUS=Not connected: .*Connection refused; next try at \d\d:\d\d:\d\d; 0 streams")
    tunnel.start_server()
    manager.wait_for(r"STATUS=Connected to (127\.0\.0\.1|\[::1\]):\d+ since \d{4}-.*, 0 streams, ")
    assert client.stop() == 0


def test_a_client_with_a_bad_configuration_is_never_ready(tunnel: Tunnel, manager: Manager) -> None:
    client = tunnel.daemon(tunnel.client_arguments("--lport=9", "--ca=/nonexistent"), manager.environment)
    assert client.wait() == 78
    assert not manager.count("READY=1")
    # It leaves word for its next start, and says nothing else.
    assert [line for line in manager.said if not line.startswith("FDSTORE=1\nFDNAME=cannot-start\n")] == []


def test_the_watchdog_is_fed_while_everything_turns_and_not_otherwise(
    tunnel: Tunnel, manager: Manager
) -> None:
    environment = {**manager.environment, "WATCHDOG_USEC": "200000"}
    server = tunnel.daemon(tunnel.server_arguments(), environment)
    wait_for(lambda: manager.count("WATCHDOG=1") >= 5, "five signs of life")
    # A relay thread that hangs: stop exactly that thread, as a debugger would.
    relay = next(
        task for task in Path(f"/proc/{server.process.pid}/task").iterdir()
        if (task / "comm").read_text().startswith("relay") or task.name != str(server.process.pid)
    )  # fmt: skip
    assert relay.exists()
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(0.3)
    manager.count("WATCHDOG=1")
    before = manager.count("WATCHDOG=1")
    time.sleep(0.5)
    assert manager.count("WATCHDOG=1") == before
    server.process.send_signal(signal.SIGCONT)
    wait_for(lambda: manager.count("WATCHDOG=1") > before, "life after SIGCONT")


HANGING_RELAY = """
import sys, threading
from shadow.relay import pool
from shadow.cli.server import main
hang = threading.Event()
original = pool._Worker._read_inbox
def read_inbox(self):
    original(self)
    if self._pings >= 3 and "1" in self._thread.name:
        hang.wait()
pool._Worker._read_inbox = read_inbox
raise SystemExit(main())
"""


STEPS = "^(READY|RELOADING)=1\n"

ODD_FILE = """
import sys
from shadow.server import trust
from shadow.cli.server import main
class Odd({base}):
    pass
real, calls = trust.load_credentials, []
def load(*arguments):
    calls.append(1)
    if len(calls) == 2:
        raise Odd("what a library does not document")
    return real(*arguments)
trust.load_credentials = load
raise SystemExit(main())
"""


@pytest.mark.parametrize("base", ["Exception", "BaseException"])
def test_no_reload_ends_half_way_whatever_a_file_raises(tunnel: Tunnel, manager: Manager, base: str) -> None:
    (tunnel.folder / "odd.py").write_text(ODD_FILE.format(base=base))
    arguments = ["odd", *tunnel.server_arguments()[1:]]
    server = tunnel.daemon(arguments, {**manager.environment, "PYTHONPATH": str(tunnel.folder)})
    manager.wait_for("^READY=1\n")
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(manager.heard(STEPS)) == 3, "READY behind RELOADING")
    server.process.send_signal(signal.SIGHUP)
    wait_for(lambda: len(manager.heard(STEPS)) == 5, "the same again")
    said = [text.partition("=")[0] for text in manager.heard(STEPS)]
    assert said == ["READY", "RELOADING", "READY", "RELOADING", "READY"]
    server.wait_for_log("Odd: what a library does not document")
    if base == "Exception":
        server.wait_for_log(r"ERROR: reload failed, the old files stay in use: internal error: Odd\('what")
    server.wait_for_log("reloaded: new connections use the new certificates")
    assert server.stop() == 0


def test_one_hanging_relay_thread_starves_the_watchdog(tunnel: Tunnel, manager: Manager) -> None:
    arguments = tunnel.server_arguments()[1:]
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING_RELAY, *arguments],
        cwd=CHECKOUT,
        env={**os.environ, **manager.environment, "WATCHDOG_USEC": "200000"},
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: manager.count("WATCHDOG=1") >= 2, "signs of life")

        def silent() -> bool:
            before = manager.count("WATCHDOG=1")
            time.sleep(1.0)
            return manager.count("WATCHDOG=1") == before

        wait_for(silent, "silence: a thread hangs, so the service manager must not be told that all is well")
        with socket.create_connection(("127.0.0.1", tunnel.port)):
            pass  # the main loop still turns; it is not what withholds the food
    finally:
        process.kill()
        process.wait()


def test_socket_activation(tunnel: Tunnel) -> None:
    """The port belongs to systemd: the daemon starts at the first robot and is ready for it."""
    arguments = [word for word in tunnel.server_arguments() if not word.startswith("--lport")]
    with (tunnel.folder / "activated.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "systemd-socket-activate", f"--listen=[::]:{tunnel.port}", "--fdname=shadow-server",
                sys.executable, "-m", *arguments,
            ],
            cwd=CHECKOUT,
            stderr=log,
        )  # fmt: skip
    try:
        with serving(echo) as service:
            tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
            with tunnel.visit() as visitor:
                assert exchange(visitor, b"activated") == b"activated"
    finally:
        process.terminate()
        assert process.wait(DEADLINE) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_it(tunnel: Tunnel, number: int) -> None:
    assert tunnel.start_server().stop(number) == 0


def test_the_descriptor_limit_is_raised(tunnel: Tunnel) -> None:
    server = tunnel.start_server()
    limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    soft, hard = re.search(r"Max open files +(\d+) +(\d+)", limits).groups()  # type: ignore[union-attr]
    assert soft == hard


def test_no_thread_per_connection(tunnel: Tunnel) -> None:
    with serving(echo) as service:
        server = tunnel.start_server()
        client = tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        visitors = []
        for _ in range(30):
            visitor = tunnel.visit()
            visitor.sendall(b"x")
            assert visitor.recv(1) == b"x"
            visitors.append(visitor)
        for daemon in (server, client):
            threads = len(list(Path(f"/proc/{daemon.process.pid}/task").iterdir()))
            # One for the loop, one for the log, and one for each CPU's relay.
            assert threads <= 2 + (os.cpu_count() or 1)
        for visitor in visitors:
            visitor.close()


ASKED_EARLY = """
import os, signal
from shadow.server.server import Server
start = Server.start
async def start_slowly(server):
    os.kill(os.getpid(), signal.SIGHUP)
    await start(server)
Server.start = start_slowly
from shadow.cli.server import main
raise SystemExit(main())
"""


def test_a_reload_that_comes_during_the_start_ends_nothing_and_is_done_then(tunnel: Tunnel) -> None:
    (tunnel.folder / "asked_early.py").write_text(ASKED_EARLY)
    arguments = ["asked_early", *tunnel.server_arguments()[1:]]
    server = tunnel.daemon(arguments, {"PYTHONPATH": str(tunnel.folder)})
    server.wait_for_log("reloaded: new connections use the new certificates")
    assert server.log.index("accepting robots") < server.log.index("reloaded: ")
    assert server.log.count("reloaded: ") == 1
