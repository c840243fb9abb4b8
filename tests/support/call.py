"""A caller of the API that is not ours: sockets and JSON, from https://varlink.org."""

import json
import socket
from pathlib import Path
from typing import Any, Self

from tests.support import DEADLINE

INTERFACE = "io.shadowtunnel.Server"


class Call:
    """A connection to the API."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE)
        self._rest = b""
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def say(self, method: str, parameters: Any = None, **more: Any) -> None:
        full = method if method.startswith("org.") else f"{INTERFACE}.{method}"
        call = {"method": full, **({} if parameters is None else {"parameters": parameters}), **more}
        self.sock.sendall(json.dumps(call).encode() + b"\0")

    def hear(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self._rest += data
        message, _zero, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def ask(self, method: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
        self.say(method, parameters, **more)
        return self.hear()

    def get(self, method: str, parameters: Any = None) -> dict[str, Any]:
        """The parameters of the only reply."""
        answer = self.ask(method, parameters)
        assert set(answer) == {"parameters"}, answer
        parameters = answer["parameters"]
        assert isinstance(parameters, dict)
        return parameters

    def ended(self) -> bool:
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True
