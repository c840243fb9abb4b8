"""Sockets that systemd passes for real, and the descriptors that it keeps."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench.processes import free_port
from shadow.errors import ConfigError
from shadow.systemd.fdstore import Store, passes_socket
from tests.support import CHECKOUT

REPORT = """
import fcntl
from shadow.systemd.fdstore import Store, listening_sockets
for sock in listening_sockets("shadow-server", Store()):
    flags = fcntl.fcntl(sock, fcntl.F_GETFD)
    print(sock.getsockname()[1], sock.getblocking(), flags & fcntl.FD_CLOEXEC)
"""


def activate(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["systemd-socket-activate", *arguments, sys.executable, "-c", REPORT],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )


def poke(port: int) -> None:
    """Connect until somebody listens: what starts the program behind the socket."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            continue
        return


def test_sockets_are_chosen_by_name() -> None:
    ours, other = free_port(), free_port()
    process = activate(f"-l{ours}", f"-l{other}", "--fdname=shadow-server:metrics")
    poke(ours)
    output, _errors = process.communicate(timeout=60)
    assert output.split() == [str(ours), "False", "1"]


def test_a_socket_without_a_name_counts() -> None:
    port = free_port()
    process = activate(f"-l{port}")
    poke(port)
    output, _errors = process.communicate(timeout=60)
    assert output.split() == [str(port), "False", "1"]


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({}, True),
        ({"LISTEN_FDNAMES": "stored:shadow-server"}, True),
        ({"LISTEN_FDNAMES": "unknown"}, True),
        ({"LISTEN_FDNAMES": "stored:cannot-start"}, False),
        ({"LISTEN_FDS": "0"}, False),
        ({"LISTEN_PID": "1"}, False),
    ],
)
def test_whether_a_socket_is_passed_is_known_beforehand(more: dict[str, str], *, wanted: bool) -> None:
    environment = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
    assert passes_socket("shadow-server", {**environment, **more}) is wanted
    assert not passes_socket("shadow-server", {})


def test_a_socket_that_does_not_listen_is_refused(tmp_path: Path) -> None:
    program = f"""
import os, socket
ours, theirs = socket.socketpair()
os.dup2(ours.fileno(), 3)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="shadow-server")
{REPORT}
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60
    )
    assert "ConfigError: socket 'shadow-server' from systemd does not listen" in result.stderr


STORE = """
import os, sys
from shadow.systemd.fdstore import Store
store = Store()
print(store.limit, store.free, store.take(lambda name: name == "mine"))
reader, writer = os.pipe()
os.write(writer, b"inside")
store.add("s1", reader)
print(store.free)
store.remove("s1")
print(store.free, store.close_rest())
"""


def test_the_store(tmp_path: Path) -> None:
    """What is said to the service manager, and the descriptor that goes with it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        program = f"""
import os
os.dup2(os.open("/dev/null", os.O_RDONLY), 3)
os.dup2(os.open("/dev/null", os.O_RDONLY), 4)
os.environ.update(LISTEN_FDS="2", LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="mine:other")
{STORE}
"""
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "FDSTORE": "7"}
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=60, env=environment,
        )  # fmt: skip
        assert done.stdout.splitlines() == ["7 7 [('mine', 3)]", "6", "7 ['other']"]
        text, (descriptor,), _flags, _address = socket.recv_fds(manager, 1000, 1)
        assert text == b"FDSTORE=1\nFDNAME=s1\nFDPOLL=0"
        assert os.read(descriptor, 100) == b"inside"
        os.close(descriptor)
        assert manager.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=s1"
        assert manager.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=other"


@pytest.mark.parametrize(
    ("variables", "limit"),
    [
        ({}, 0),
        ({"FDSTORE": "5"}, 0),  # outside systemd
        ({"NOTIFY_SOCKET": "/nowhere"}, 0),
        ({"NOTIFY_SOCKET": "/nowhere", "FDSTORE_MAX": "6"}, 6),
        # A drop-in has changed FileDescriptorStoreMax= alone: what systemd says is true.
        ({"NOTIFY_SOCKET": "/nowhere", "FDSTORE_MAX": "6", "FDSTORE": "5"}, 5),
        ({"NOTIFY_SOCKET": "/nowhere", "FDSTORE_MAX": "6", "FDSTORE": "0"}, 0),
    ],
)
def test_the_limit_of_the_store(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], limit: int
) -> None:
    for name in ("NOTIFY_SOCKET", "FDSTORE", "FDSTORE_MAX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Store().limit == limit


@pytest.mark.parametrize("name", ["FDSTORE", "FDSTORE_MAX"])
def test_a_bad_store_variable(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv(name, "many")
    with pytest.raises(ConfigError, match=f"{name}='many'"):
        Store()
