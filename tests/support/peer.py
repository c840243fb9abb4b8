"""A peer that is not ours: Python's own ``ssl`` module, speaking the protocol by hand."""

import json
import socket
import ssl
import struct
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support import DEADLINE, Authority, Tunnel, wait_for

HELLO, WELCOME, REFUSED, PING, PONG, DIAL, START, STARTED, FAILED = range(1, 10)


def frame(kind: int, **body: Any) -> bytes:
    """A frame written down from docs/PROTOCOL.md, without our codec."""
    text = json.dumps(body).encode()
    return struct.pack(">BBH", kind, 0, len(text)) + text


class Peer:
    """A robot's connection made by hand."""

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext,
        host: str = "127.0.0.1",
        source: str | None = None,
        header: bytes = b"",
    ) -> None:
        """Connect, from ``source``; say ``header`` before TLS begins."""
        where = None if source is None else (source, 0)
        raw = socket.create_connection((host, port), timeout=DEADLINE, source_address=where)
        try:
            raw.sendall(header)
            self.sock = context.wrap_socket(raw, server_hostname="localhost")
        except BaseException:
            raw.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sock.close()

    def send(self, kind: int, **body: Any) -> None:
        self.sock.sendall(frame(kind, **body))

    def hello(self, robot: str = "011", role: str = "control", **more: Any) -> tuple[int, dict[str, Any]]:
        """Say HELLO and return the answer."""
        self.send(HELLO, version=1, role=role, robot=robot, **({"services": [""]} | more))
        return self.receive()

    def receive(self) -> tuple[int, dict[str, Any]]:
        kind, zero, length = struct.unpack(">BBH", self._exactly(4))
        assert zero == 0
        return kind, json.loads(self._exactly(length))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.sock.recv(size - len(data))
            if not part:
                raise EOFError(f"the peer hung up after {data!r}")
            data += part
        return data

    def closed(self) -> bool:
        """Read until the other side hangs up."""
        try:
            while self.sock.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True


def client_context(authority: Authority, pair: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """TLS 1.2 with a robot's certificate, or with none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(authority.ca)
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


def server_context(authority: Authority, pair: tuple[Path, Path]) -> ssl.SSLContext:
    """A server that wants a client's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(authority.ca)
    context.load_cert_chain(*pair)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def connect(tunnel: Tunnel, robot: str = "011") -> Peer:
    """A connection with a robot's certificate, to the server of a tunnel."""
    return Peer(tunnel.port, client_context(tunnel.authority, tunnel.authority.robot(robot)))


def stand_by(tunnel: Tunnel, session: str, robot: str = "011") -> Peer:
    """A data channel that has been welcomed."""
    data = connect(tunnel, robot)
    assert data.hello(robot, role="data", session=session)[0] == WELCOME
    return data


def still_works(tunnel: Tunnel) -> None:
    """A robot in good standing is served, whatever happened before."""
    with connect(tunnel, "099") as peer:
        assert peer.hello("099")[0] == WELCOME
        wait_for(tunnel.socket_path("099").exists, "099.sock")
