"""Robot 013 by hand sends records of length zero to a server with kernel TLS: prints what its visitor gets.

The frames are those of docs/PROTOCOL.md and the records those of RFC 5288, made here: neither OpenSSL nor the
kernel would send an empty one. Only the handshake and the key schedule are Shadow's.
"""

import asyncio
import datetime as dt
import json
import socket
import struct
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shadow.pki.certificates import Purpose, load_credentials
from shadow.transport import context, handshake, ktls
from shadow.transport.link import UserspaceLink

KEYS = Path("/srv/fleet")
HELLO, WELCOME, START, STARTED = 1, 2, 7, 8
ALERT, DATA = 21, 23


class Connection:
    """A connection to the server whose records are made here."""

    def __init__(self, settings: context.Settings) -> None:
        sock = socket.create_connection(("localhost", 2222))
        sock.setblocking(False)
        link = asyncio.run(handshake.handshake(sock, settings))
        assert isinstance(link, UserspaceLink)
        self._link = link
        link.sock.settimeout(60)
        master, client, server = link.ssl.master_key(), link.ssl.client_random(), link.ssl.server_random()
        assert master and client and server
        block = ktls.key_block(ktls.SUITES[link.suite], ktls.Secrets(master, client, server))
        self._cipher, self._salt = AESGCM(block.client_key), block.client_iv
        self._sequence = 1  # Finished was 0

    def record(self, kind: int, data: bytes) -> None:
        """Send one record of a type."""
        number = struct.pack(">Q", self._sequence)
        covered = number + struct.pack(">BHH", kind, 0x0303, len(data))
        sealed = number + self._cipher.encrypt(self._salt + number, data, covered)
        self._link.sock.sendall(struct.pack(">BHH", kind, 0x0303, len(sealed)) + sealed)
        self._sequence += 1

    def say(self, kind: int, **body: object) -> None:
        """Send a frame."""
        text = json.dumps(body).encode()
        self.record(DATA, struct.pack(">BBH", kind, 0, len(text)) + text)

    def hear(self, expected: int) -> dict[str, Any]:
        """Receive a frame."""
        kind, _zero, length = struct.unpack(">BBH", self._read(4))
        body: dict[str, Any] = json.loads(self._read(length))
        assert kind == expected, (kind, body)
        return body

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self._link.read(size - len(data))
        return data


def main() -> None:
    """Be a robot for one visitor, and be the visitor."""
    files = KEYS / "ca.crt", KEYS / "013.crt", KEYS / "013.key"
    credentials = load_credentials(*files, Purpose.ROBOT, dt.datetime.now(dt.UTC))
    settings = context.Settings(
        context.make_context(credentials), Purpose.ROBOT, context.Ktls.OFF, ("localhost",)
    )
    control, data = Connection(settings), Connection(settings)
    control.say(HELLO, version=1, role="control", robot="013", services=[""])
    session = control.hear(WELCOME)["session"]
    data.say(HELLO, version=1, role="data", robot="013", session=session)
    data.hear(WELCOME)
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.connect("/run/shadow-tunnel/013.sock")
        visitor.settimeout(60)
        data.hear(START)
        data.say(STARTED)
        for piece in (b"", b"one", b"", b"", b"two", b""):
            data.record(DATA, piece)
        data.record(ALERT, b"\x01\x00")
        received = b""
        while part := visitor.recv(100):
            received += part
    print(json.dumps(received.decode()))


if __name__ == "__main__":
    main()
