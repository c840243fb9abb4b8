"""A daemon that cannot start, in real processes with a service manager's socket."""

import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shadow.daemon import patience
from shadow.daemon.patience import Patience
from shadow.errors import ConfigError
from shadow.systemd.fdstore import Store
from tests.support import Authority, Daemon, Tunnel, wait_for

MARK = "cannot-start"


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


def said(notify: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(notify.recvmsg(4096, socket.CMSG_SPACE(4))[0].decode())
        except BlockingIOError:
            return found


def wait_for_status(notify: socket.socket, why: str) -> None:
    begin = f"STATUS=Cannot start: {why}"
    wait_for(lambda: [text for text in said(notify) if text.startswith(begin)], begin)


def environment(notify: socket.socket, folder: Path, *names: str) -> dict[str, str]:
    return {
        "NOTIFY_SOCKET": notify.getsockname(),
        "FDSTORE_MAX": "4096",
        "SHADOW_CA": str(folder / "ca.crt"),
        "LISTEN_FDNAMES": ":".join(names),
    }


def start(tunnel: Tunnel, given: dict[str, str]) -> Daemon:
    arguments = [word for word in tunnel.server_arguments() if not word.startswith("--ca=")]
    return tunnel.daemon(arguments, given)


def failing(it: Patience) -> int:
    """The exit status that a start ends with."""

    def body() -> None:
        raise ConfigError("a file is wrong")

    with pytest.raises(ConfigError):
        it.watch(body)()
    return it.leave(78)


@pytest.fixture
def own(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def test_the_first_time_it_leaves_at_once(own: Authority, tmp_path: Path, notify: socket.socket) -> None:
    with Tunnel(own, tmp_path) as tunnel:
        given = environment(notify, own.folder)
        own.ca.rename(own.folder / "away")
        server = start(tunnel, given)
        assert server.wait() == 78
        assert f"CA certificate {own.ca}: No such file" in server.log
    assert said(notify)[1:] == [f"FDSTORE=1\nFDNAME={MARK}\nFDPOLL=0"]  # the first is for streams


def test_the_second_time_it_waits_until_something_changes(
    own: Authority, tmp_path: Path, notify: socket.socket
) -> None:
    with Tunnel(own, tmp_path) as tunnel:
        own.ca.rename(own.folder / "away")
        server = start(tunnel, environment(notify, own.folder, MARK))
        server.wait_for_log(f"CA certificate {own.ca}: No such file")
        wait_for_status(notify, f"CA certificate {own.ca}: No such file")
        assert server.process.poll() is None
        (own.folder / "away").rename(own.ca)
        assert server.wait() == 78  # the service manager starts it again
    assert said(notify) == []  # it is still to be remembered


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_leaves_in_order_and_nothing_is_remembered(
    own: Authority, tmp_path: Path, notify: socket.socket, number: int
) -> None:
    with Tunnel(own, tmp_path) as tunnel:
        own.ca.rename(own.folder / "away")
        server = start(tunnel, environment(notify, own.folder, MARK))
        wait_for_status(notify, "CA certificate")
        assert server.stop(number) == 0
    assert said(notify) == [f"FDSTOREREMOVE=1\nFDNAME={MARK}"]


def test_a_start_that_succeeds_is_remembered_as_such(
    own: Authority, tmp_path: Path, notify: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(notify, own.folder, MARK).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LISTEN_FDS", "0")
    it = Patience()
    it.started(Store())
    assert said(notify) == [f"FDSTOREREMOVE=1\nFDNAME={MARK}"]
    assert failing(it) == 78  # after a week, say: no wait, and nothing to remember
    assert said(notify) == []


def test_it_does_not_wait_for_ever(
    tmp_path: Path, notify: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_WAIT", 0.3)
    for name, value in environment(notify, tmp_path, MARK).items():
        monkeypatch.setenv(name, value)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert failing(Patience()) == 78
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_without_a_service_manager_nothing_is_remembered(
    tmp_path: Path, notify: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(notify, tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert failing(Patience()) == 78
    assert said(notify) == []


CHANGES: dict[str, Callable[[Path], object]] = {
    "new": lambda path: (path.parent / "server.env").write_text(""),
    "content": lambda path: path.write_text("new"),
    "mode": lambda path: path.chmod(0o600),
    "gone": lambda path: path.unlink(missing_ok=True),
    "replaced": lambda path: (
        path.with_name("other").write_text("old"),
        path.with_name("other").replace(path),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_counts_as_a_change(tmp_path: Path, change: str) -> None:
    path = tmp_path / "ca.crt"
    path.write_text("old")
    it = Patience({"SHADOW_CA": str(path)})
    assert it._look() == it._seen

    def seen() -> bool:
        CHANGES[change](path)
        return it._look() != it._seen

    wait_for(seen, "a change")  # again: the clock of a file system only ticks a few hundred times a second


def test_a_folder_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    it = Patience({"SHADOW_CA": str(tmp_path / "etc" / "ca.crt"), "SHADOW_CRT": ""})
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "ca.crt").write_text("")
    assert it._look() != it._seen
