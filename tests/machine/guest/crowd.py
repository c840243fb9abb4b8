"""Thousands of robots in one process: they connect, and stay, and do nothing else.

    crowd.py COUNT PORT CA_FOLDER

Each has a certificate of its own, by the CA in CA_FOLDER, and does a real handshake; one key serves them all.
Says ``connected COUNT`` when all are welcomed. For each line ``ping`` of its input every robot says PING; the
answer is JSON: how many have heard PONG, and how many have lost their connection since the beginning.
"""

import asyncio
import datetime as dt
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shadow.errors import PeerError
from shadow.pki.certificates import Credentials, Purpose
from shadow.transport import context as contexts
from shadow.transport import handshake
from shadow.transport.channel import Channel
from shadow.wire.conversation import CONTROL, Party
from shadow.wire.frames import Frame, Hello, Ping, Pong, Welcome

_AT_ONCE = 16  # handshakes
_PATIENCE = 600.0  # seconds; whoever runs this gives up sooner


class Crowd:
    """All the robots."""

    def __init__(self, port: int, folder: Path) -> None:
        self.channels: list[Channel] = []
        self.lost = 0
        self.heard = 0
        self._port = port
        self._ca = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._ca_key = key
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def connect(self, name: str) -> None:
        """One robot more."""
        async with self._turns:
            credentials = Credentials([self._ca], [self._certificate(name)], self._key)
            context = contexts.make_context(credentials)
            settings = contexts.Settings(
                context, Purpose.ROBOT, contexts.Ktls.REQUIRE, ("localhost",), [self._ca]
            )
            sock = socket.socket()
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self._port))
            link = await handshake.handshake(sock, settings)
            welcomed = asyncio.get_running_loop().create_future()
            channel = Channel(link, Party.ROBOT, self._hears(welcomed), self._loses)
            channel.send(Hello(1, CONTROL, name, ("",), software="crowd"))
            await welcomed
            self.channels.append(channel)

    def _hears(self, welcomed: "asyncio.Future[None]") -> Callable[[Frame], None]:
        def hears(frame: Frame) -> None:
            if isinstance(frame, Welcome):
                welcomed.set_result(None)
            elif isinstance(frame, Pong):
                self.heard += 1

        return hears

    def _loses(self, _error: PeerError | None) -> None:
        self.lost += 1

    def _certificate(self, name: str) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._ca.subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self._ca_key, hashes.SHA256())
        )

    async def ping(self) -> dict[str, int]:
        """Every robot says PING; what has come of it."""
        self.heard = 0
        for channel in self.channels:
            channel.send(Ping(1.0))
        try:
            async with asyncio.timeout(_PATIENCE):
                while self.heard + self.lost < len(self.channels):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pass
        return {"heard": self.heard, "lost": self.lost}


async def main() -> None:
    """Do what the command line says."""
    count, port, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    crowd = Crowd(port, folder)
    await asyncio.gather(*(crowd.connect(f"r{number:04}") for number in range(count)))
    print("connected", len(crowd.channels), flush=True)
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        print(json.dumps(await crowd.ping()), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
