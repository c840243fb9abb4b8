"""Asking a server that is not there, is another one, or says no."""

import json
import socket
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO, Self

import pytest

from shadow.ctl.connect import NotConnected
from shadow.ctl.query import Answers
from shadow.errors import LocalError, NotPermitted, PeerError, ShadowError, Unreachable
from tests.support import Tunnel
from tests.support.call import INTERFACE


def serve_once(path: Path, answer: bytes) -> threading.Thread:
    """Somebody who gives everybody the same answer, and hangs up."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()

    def run() -> None:
        with listening:
            connection, _address = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_it_answers(tunnel: Tunnel) -> None:
    tunnel.start_server_with_api()
    with Answers(tunnel.ldir) as answers:
        assert answers.call("GetStatus")["robots"] == 0
        assert list(answers.more("List")) == [{"robots": []}]
        with pytest.raises(Unreachable, match=r"robot '011' is not connected$"):
            answers.call("Describe", name="011")
        with pytest.raises(Unreachable, match="there is no stream '1f'"):
            answers.call("Disconnect", stream="1f")


def test_a_robot_at_another_server_is_to_be_asked_for_there(tmp_path: Path) -> None:
    where = b'{"name": "011", "server": "s2"}'
    error = b'{"error": "io.shadowtunnel.Server.NoSuchRobot", "parameters": %s}\0' % where
    thread = serve_once(tmp_path / INTERFACE, error)
    with Answers(tmp_path) as answers, pytest.raises(NotConnected) as caught:
        answers.call("Disconnect", robot="011")
    assert str(caught.value) == "robot '011' is connected to server s2, not to this one: ask there"
    thread.join()


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        ({"error": "NoSuchServer", "parameters": {"server": "s\x1b3"}}, 69,
         r"server 's\x1b3' is not one of the fleet"),
        ({"error": "NoAnswer", "parameters": {"server": "s3", "reason": "server s3\x1b is away"}}, 69,
         "server s3? is away"),
        ({"error": "DrainFailed", "parameters": {"reason": "nobody else"}}, 71,
         "nothing has changed: nobody else"),
        ({"error": "org.varlink.service.InvalidParameter", "parameters": {"parameter": "server"}}, 76,
         "this server is of another version, and passes no orders on: give them there"),
    ],
)  # fmt: skip
def test_orders_to_another_server_that_come_to_nothing(
    tmp_path: Path, error: dict[str, Any], status: int, text: str
) -> None:
    kind = error["error"]
    error["error"] = kind if "." in kind else f"{INTERFACE}.{kind}"
    thread = serve_once(tmp_path / INTERFACE, json.dumps(error).encode() + b"\0")
    with Answers(tmp_path) as answers, pytest.raises(ShadowError) as caught:
        answers.call("Drain", draining=True, server="s3")
    assert (caught.value.exit_status, str(caught.value)) == (status, text)
    thread.join()


class Old:
    """A server of before there were fleets: it refuses parameters that it does not know."""

    def __init__(self, path: Path) -> None:
        self.heard: list[dict[str, Any]] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        connection, _address = self._listening.accept()
        with connection, connection.makefile("rb") as heard:
            for message in iter(lambda: _message(heard), b""):
                call = json.loads(message)
                self.heard.append(call.get("parameters", {}))
                answer: dict[str, Any] = {"parameters": {"robots": []}}
                if "fleet" in self.heard[-1]:
                    name = "org.varlink.service.InvalidParameter"
                    answer = {"error": name, "parameters": {"parameter": "fleet"}}
                connection.sendall(json.dumps(answer).encode() + b"\0")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._listening.close()


def _message(heard: BinaryIO) -> bytes:
    """The next one, without its end."""
    return b"".join(iter(lambda: heard.read(1).rstrip(b"\0"), b""))


def test_a_server_of_before_there_were_fleets(tmp_path: Path) -> None:
    with Old(tmp_path / INTERFACE) as old, Answers(tmp_path) as answers:
        assert list(answers.more("List", fleet=True)) == [{"robots": []}]
        assert answers.call("Describe", name="011", fleet=True) == {"robots": []}
        answers.close()
    assert old.heard == [{"fleet": True}, {}, {"name": "011", "fleet": True}, {"name": "011"}]


def test_another_wrong_parameter_is_no_matter_of_fleets(tmp_path: Path) -> None:
    thread = serve_once(
        tmp_path / INTERFACE, b'{"error": "org.varlink.service.InvalidParameter", "parameters": {}}\0'
    )
    with Answers(tmp_path) as answers, pytest.raises(PeerError, match="InvalidParameter"):
        list(answers.more("ListStreams"))
    thread.join()


def test_it_hangs_up(tunnel: Tunnel) -> None:
    server = tunnel.start_server_with_api()
    with Answers(tunnel.ldir) as answers:
        watching = answers.more("Watch")
        assert next(watching) == {"ready": True}
        server.stop()
        with pytest.raises(Unreachable, match="the server hung up; its log says why"):
            list(watching)


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"No such file or directory; is shadow-server-api.socket active\?"):
        Answers(tmp_path)
    with pytest.raises(Unreachable, match="No such file or directory; shadow-server does not run here"):
        Answers(tmp_path / "away")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / INTERFACE))
    with pytest.raises(Unreachable, match="Connection refused"):
        Answers(tmp_path)


def test_not_permitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(NotPermitted, match="permission denied; you need to be in the group shadow-tunnel"):
        Answers(tmp_path)


def test_somebody_else_who_speaks_varlink(tmp_path: Path) -> None:
    thread = serve_once(
        tmp_path / INTERFACE, b'{"error": "org.varlink.service.InterfaceNotFound", "parameters": {}}\0'
    )
    with (
        Answers(tmp_path) as answers,
        pytest.raises(PeerError, match=r"another version: .*InterfaceNotFound"),
    ):
        answers.call("GetStatus")
    thread.join()


@pytest.mark.parametrize("answer", [b"", b"nonsense\0", b"[]\0"])
def test_somebody_who_does_not(tmp_path: Path, answer: bytes) -> None:
    thread = serve_once(tmp_path / INTERFACE, answer)
    with Answers(tmp_path) as answers, pytest.raises((Unreachable, PeerError)) as caught:
        answers.call("GetStatus")
    assert str(tmp_path / INTERFACE) in str(caught.value)
    thread.join()


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "varlink", None)
    with pytest.raises(LocalError, match="the Python library varlink is missing"):
        Answers(tmp_path)
