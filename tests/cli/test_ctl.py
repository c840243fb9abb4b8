"""``shadowctl`` as people use it, against a server with robots."""

import collections
import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from shadow.cli import ctl
from tests.support import CHECKOUT, DEADLINE, Daemon, Tunnel, echo, parsers, serving, wait_for

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(tunnel: Tunnel) -> Daemon:
    return tunnel.start_server_with_api()


@pytest.fixture
def run(tunnel: Tunnel, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("SHADOW_LDIR", str(tunnel.ldir))

    def call(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = ctl.main(arguments)
        output = capfd.readouterr()
        return status, output.out, output.err

    return call


@pytest.fixture
def robot(server: Daemon, tunnel: Tunnel) -> Iterator[Daemon]:
    assert server.process.poll() is None
    with serving(echo) as service:
        yield tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")


def good(result: tuple[int, str, str]) -> str:
    status, output, errors = result
    assert (status, errors) == (0, "")
    return output


def start(tunnel: Tunnel, *words: str, **more: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "shadow.cli.ctl", f"--dir={tunnel.ldir}", *words],
        cwd=CHECKOUT, stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        stdout=more.get("stdout", subprocess.PIPE),
    )  # fmt: skip


def test_list(run: Run, server: Daemon, tunnel: Tunnel) -> None:
    assert good(run("list")) == "0 robots\n"
    assert json.loads(good(run("list", "--json"))) == []
    with serving(echo) as service:
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        assert good(run("list")).splitlines()[1].startswith("011 ")
        assert json.loads(good(run("--json", "list")))[0]["name"] == "011"
    assert server.process.poll() is None


def test_robots_are_listed_in_order_wherever_they_are(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    robots = [{"name": name, "connected": True, "services": [], "streams": 0} for name in "cab"]
    replies = iter([{"robots": robots[:1]}, {"robots": robots[1:]}])
    answers = SimpleNamespace(more=lambda _method, **_parameters: replies)
    monkeypatch.setattr(ctl, "Answers", lambda _folder: contextlib.nullcontext(answers))
    assert [robot["name"] for robot in json.loads(good(run("list", "--json")))] == ["a", "b", "c"]


@pytest.mark.usefixtures("robot")
def test_a_server_that_is_in_no_fleet(run: Run) -> None:
    assert good(run("servers")) == "the server is not one of a fleet\n"
    assert json.loads(good(run("servers", "--json"))) == []
    assert good(run("list", "--local")).splitlines()[0].split()[:2] == ["ROBOT", "FROM"]
    assert "Fleet" not in good(run("status"))


@pytest.mark.usefixtures("robot")
def test_status(run: Run, tunnel: Tunnel) -> None:
    with tunnel.visit() as visitor:
        visitor.sendall(b"x")
        assert visitor.recv(1) == b"x"
        text = good(run("status", "011"))
        assert text.startswith("● 011 - connected from ")
        assert "1 stream\n" in text
        assert json.loads(good(run("status", "011", "--json")))["robot"]["streams"] == 1
    assert good(run("status")).startswith("● shadow-server ")
    assert json.loads(good(run("status", "--json")))["robots"] == 1


@pytest.mark.usefixtures("robot")
def test_streams(run: Run, tunnel: Tunnel) -> None:
    assert good(run("streams")) == "0 streams\n"
    with tunnel.visit() as visitor:
        visitor.sendall(b"x")
        assert visitor.recv(1) == b"x"
        assert re.match(r"1 +011 +default ", good(run("streams")).splitlines()[1])
        assert json.loads(good(run("streams", "011", "--json")))[0]["pid"] == os.getpid()


def test_watch(server: Daemon, tunnel: Tunnel) -> None:
    plain, other, programs = (
        start(tunnel, "watch"), start(tunnel, "watch", "012"), start(tunnel, "watch", "--json"),
    )  # fmt: skip
    with plain, other, programs, serving(echo) as service:
        try:
            # A watch says nothing when it begins, so make something happen until everyone has seen some.
            tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1", robot="012")
            tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
            for process in (plain, other, programs):
                assert process.stdout is not None
                os.set_blocking(process.stdout.fileno(), False)
            seen = {plain: b"", other: b"", programs: b""}

            def enough() -> bool:
                for name in ("011", "012"):
                    with tunnel.visit(name) as visitor:
                        visitor.sendall(b"x")
                        visitor.recv(1)
                for process in seen:
                    assert process.stdout is not None
                    seen[process] += process.stdout.read() or b""
                return all(b"stream" in text and text.endswith(b"\n") for text in seen.values())

            wait_for(enough, "something to be watched")
        finally:
            for process in (plain, other, programs):
                process.terminate()
    assert re.match(rb"\d\d:\d\d:\d\d robot 01", seen[plain])
    assert b"robot 011" not in seen[other]
    assert {json.loads(line)["fields"]["ROBOT"] for line in seen[programs].splitlines()} <= {"011", "012"}
    assert server.process.poll() is None


@pytest.mark.usefixtures("robot")
def test_a_watch_goes_on_when_the_server_is_back(server: Daemon, tunnel: Tunnel) -> None:
    with start(tunnel, "watch") as watch:
        assert watch.stderr is not None
        assert watch.stdout is not None
        os.set_blocking(watch.stdout.fileno(), False)

        def sees_a_visit() -> bool:
            with contextlib.suppress(OSError), tunnel.visit() as visitor:  # the robot may not be back yet
                visitor.sendall(b"x")
                visitor.recv(1)
            return b"stream" in (watch.stdout.read() or b"")  # type: ignore[union-attr]

        try:
            wait_for(sees_a_visit, "the watch to begin")
            server.stop()
            assert b"the server hung up" in watch.stderr.readline()
            (tunnel.ldir / "io.shadowtunnel.Server").unlink()
            tunnel.start_server_with_api()
            assert watch.stderr.readline() == b"shadowctl: the server is back\n"
            wait_for(sees_a_visit, "the watch to go on")
        finally:
            watch.terminate()


@pytest.mark.usefixtures("robot")
def test_disconnect(run: Run, server: Daemon, tunnel: Tunnel) -> None:
    with tunnel.visit() as first, tunnel.visit() as second:
        for visitor in (first, second):
            visitor.sendall(b"x")
            assert visitor.recv(1) == b"x"
        assert good(run("disconnect", "--stream", "1")) == "stream 1: 1 connection ended\n"
        assert first.recv(1) == b""
        assert json.loads(good(run("disconnect", "011", "--json"))) == {"ended": 2}
        assert second.recv(1) == b""
    server.wait_for_log("robot 011 disconnected: uid")


def test_reload(run: Run, server: Daemon, tunnel: Tunnel) -> None:
    assert good(run("reload")) == ""
    server.wait_for_log("reloaded")
    ca = tunnel.authority.ca
    before = ca.read_bytes()
    try:
        ca.write_text("broken")
        status, output, errors = run("reload")
    finally:
        ca.write_bytes(before)
    assert (status, output) == (78, "")
    assert errors.startswith(f"shadowctl: nothing has changed: CA certificate {ca}")


@pytest.mark.usefixtures("robot")
def test_connect_joins_standard_input_and_output(tunnel: Tunnel) -> None:
    for name in ("011", "011.robot"):
        output, errors = start(tunnel, "connect", name).communicate(b"there and back", DEADLINE)
        assert (output, errors) == (b"there and back", b"")


@pytest.mark.usefixtures("robot")
def test_connect_hands_the_connection_over_and_leaves(tunnel: Tunnel) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with start(tunnel, "connect", "--fdpass", "011", stdout=theirs.fileno()) as process:
            assert process.wait(DEADLINE) == 0
        _message, (descriptor,), _flags, _address = socket.recv_fds(ours, 1, 1)
    with socket.socket(fileno=descriptor) as visitor:
        visitor.sendall(b"without anybody between")
        assert visitor.recv(100) == b"without anybody between"


def test_wait(run: Run, tunnel: Tunnel, server: Daemon) -> None:
    waiting = start(tunnel, "wait", "011")
    status, output, errors = run("wait", "011", "--timeout=0.2")
    assert (status, output) == (69, "")
    assert errors == "shadowctl: robot 011 has not come within 0.2 s\n"
    assert waiting.poll() is None
    with serving(echo) as service:
        tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        assert waiting.communicate(timeout=DEADLINE) == (b"", b"")
    assert waiting.returncode == 0
    assert server.process.poll() is None


class FakeServer:
    """An API that says what a test wants; counts the calls of each method."""

    def __init__(self, folder: Path) -> None:
        self.calls: collections.Counter[str] = collections.Counter()
        self.connected = False
        self._watching: list[socket.socket] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(folder / "io.shadowtunnel.Server"))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._answer(self._listening.accept()[0])

    def _answer(self, sock: socket.socket) -> None:
        method = json.loads(sock.recv(65536)[:-1])["method"].rpartition(".")[2]
        self.calls[method] += 1
        if method == "Watch":
            self._watching.append(sock)
            self._say(sock, {"ready": True})
            return
        with sock:
            if not self.connected:
                error = {"error": "io.shadowtunnel.Server.NoSuchRobot", "parameters": {"name": "011"}}
                sock.sendall(json.dumps(error).encode() + b"\0")
            else:
                self._say(sock, {"robot": {"connected": True}}, more=False)

    def _say(self, sock: socket.socket, parameters: dict[str, object], *, more: bool = True) -> None:
        sock.sendall(json.dumps({"parameters": parameters, "continues": more}).encode() + b"\0")

    def happens(self, event: str, robot: str, **more: object) -> None:
        line = {"event": event, "priority": 6, "message": "x", "fields": {"ROBOT": robot}}
        for sock in self._watching:
            self._say(sock, {"event": line, **more})

    def hang_up(self) -> None:
        for sock in self._watching:
            sock.close()
        self._watching.clear()

    def __enter__(self) -> "FakeServer":
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        self.hang_up()


def test_who_waits_watches_and_does_not_ask_again(tunnel: Tunnel) -> None:
    with FakeServer(tunnel.ldir) as server, start(tunnel, "wait", "011") as waiting:
        wait_for(lambda: server.calls["Describe"] == 1, "the first look")
        for _ in range(100):
            server.happens("robot-connected", "012")
            server.happens("robot-disconnected", "011")
        assert waiting.poll() is None
        server.happens("robot-connected", "011")
        assert waiting.communicate(timeout=DEADLINE) == (b"", b"")
        assert waiting.returncode == 0
        assert server.calls == {"Watch": 1, "Describe": 1}


def test_who_waits_looks_again_when_it_may_have_missed_something(tunnel: Tunnel) -> None:
    with FakeServer(tunnel.ldir) as server, start(tunnel, "wait", "011") as waiting:
        wait_for(lambda: server.calls["Describe"] == 1, "the first look")
        server.hang_up()
        wait_for(lambda: server.calls["Describe"] == 2, "a look after the server was lost")
        server.happens("server-joined", "")  # its robots come with it
        wait_for(lambda: server.calls["Describe"] == 3, "a look at those")
        server.connected = True
        server.happens("robot-connected", "012", lost=7)
        assert waiting.communicate(timeout=DEADLINE) == (b"", b"")
        assert (waiting.returncode, server.calls["Describe"]) == (0, 4)


def test_waiting_ends_in_time_whoever_does_not_answer(run: Run, tunnel: Tunnel) -> None:
    late = (69, "", "shadowctl: robot 011 has not come within 0.2 s\n")
    assert run("wait", "011", "--timeout=0.2") == late  # no server
    with FakeServer(tunnel.ldir) as server:
        assert run("wait", "011", "--timeout=0.2") == late
        assert server.calls == {"Watch": 1, "Describe": 1}
    (tunnel.ldir / "io.shadowtunnel.Server").unlink()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tunnel.ldir / "io.shadowtunnel.Server"))
        silent.listen()
        assert run("wait", "011", "--timeout=0.2") == late


def test_logs(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal with something in it is in the machine; here, how journalctl is called."""
    program = tmp_path / "bin" / "journalctl"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "<%s>" "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "shadow.cli.ctl", "logs", "011", "-f", "--since=today"],
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "<ROBOT=011><-f><--since=today>"
    for words in (["--json", "logs", "011"], ["logs", "--json", "011"], ["logs", "011", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "shadow.cli.ctl", *words],
            env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
            cwd=CHECKOUT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == "<ROBOT=011><--output=json>"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run("logs", "011")[::2] == (71, "shadowctl: cannot run journalctl: No such file or directory\n")


@pytest.mark.parametrize(
    "words", ["list", "status 011", "streams", "watch", "disconnect 011", "reload", "connect 011"]
)
def test_a_server_that_is_away(run: Run, tunnel: Tunnel, words: str) -> None:
    status, output, errors = run(*words.split())
    assert (status, output, errors.count("\n")) == (69, "", 1)
    assert str(tunnel.ldir) in errors or "is not connected" in errors


@pytest.mark.parametrize("command", parsers.subparsers("shadowctl"))
def test_the_help_of_each_command_has_examples_and_the_exit_statuses(command: str) -> None:
    text = parsers.subparsers("shadowctl")[command].format_help()
    assert "Exit status: 0 done, 2 usage error, 69 " in text
    assert "74 output\nerror" in text
    examples = re.findall(r"^  shadowctl (.*)$", text, re.M)
    assert examples
    for example in examples:
        words = shlex.split(example)
        assert words[0] == command
        assert callable(parsers.parser("shadowctl").parse_args(words).run)
