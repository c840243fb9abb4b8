"""Robots by the thousand in one process: the very client of shadow-client, many times.

    crowd.py FIRST COUNT STANDBY KTLS SERVER_PORT SERVICE_PORT FOLDER [HOST ...]

Robot n connects to one of the hosts, or to 127.0.0.(1 + n % 16): between two addresses there are ports for
28,000 connections only.
FOLDER has ca.crt, ca.key, and client.key, which is every robot's key. The robots are switched on at the first
line of input: ``start``, and perhaps how many may be on their way at once. At each other line it says in JSON
how many are connected.
"""

import asyncio
import datetime as dt
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shadow.client.client import Client
from shadow.daemon.config import ClientConfig
from shadow.daemon.life import raise_descriptor_limit
from shadow.relay.durable import DurableStreams
from shadow.relay.pool import Relay
from shadow.systemd.fdstore import Store
from shadow.transport.context import Ktls

ADDRESSES = 16
_AT_ONCE = 50  # robots that are switched on in one go
_LOOK = 0.1  # seconds


def name(number: int) -> str:
    """A robot's name."""
    return f"r{number:05}"


def write_certificates(folder: Path, numbers: range) -> None:
    """A certificate for each robot, all of one key."""
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    ca_key, key = _key(folder / "ca.key"), _key(folder / "client.key")
    now = dt.datetime.now(dt.UTC)
    for number in numbers:
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name(number))]))
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        (folder / f"{name(number)}.crt").write_bytes(pem)


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    return cast("ec.EllipticCurvePrivateKey", serialization.load_pem_private_key(path.read_bytes(), None))


def make_client(
    number: int, standby: int, ktls: Ktls, ports: tuple[int, int], folder: Path, hosts: tuple[str, ...]
) -> ClientConfig:
    """The settings of one robot."""
    return ClientConfig(
        rhost=hosts or (f"127.0.0.{1 + number % ADDRESSES}",),
        rport=ports[0],
        server_name="localhost",
        robot=name(number),
        ca=folder / "ca.crt",
        crt=folder / f"{name(number)}.crt",
        key=folder / "client.key",
        lhost="127.0.0.1",
        lport=ports[1],
        ktls=ktls,
        standby=standby,
        connect_timeout=30.0,
    )


async def main() -> None:
    """Do what the command line says."""
    first, count, standby = map(int, sys.argv[1:4])
    ktls, ports, folder = Ktls(sys.argv[4]), (int(sys.argv[5]), int(sys.argv[6])), Path(sys.argv[7])
    numbers = range(first, first + count)
    await asyncio.to_thread(write_certificates, folder, numbers)
    durable = DurableStreams(Relay(1), Store())
    hosts = tuple(sys.argv[8:])
    settings = [make_client(number, standby, ktls, ports, folder, hosts) for number in numbers]
    clients = [Client(one, durable) for one in settings]
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print("ready", flush=True)
    _start, *most = (await reader.readline()).split()
    switching_on = asyncio.create_task(_switch_on(clients, int(most[0]) if most else count))
    while await reader.readline():
        print(json.dumps({"connected": _connected(clients)}), flush=True)
    switching_on.cancel()


async def _switch_on(clients: Sequence[Client], most: int) -> None:
    """All of them, of which so many at most may be on their way at once."""
    some = min(_AT_ONCE, most)
    for start in range(0, len(clients), some):
        while start - _connected(clients[:start]) + some > most:  # noqa: ASYNC110 - no client tells us
            await asyncio.sleep(_LOOK)
        for client in clients[start : start + some]:
            await client.start()


def _connected(clients: Sequence[Client]) -> int:
    return sum(client.status.startswith("Connected") for client in clients)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # what thousands of robots say would be read by nobody
    raise_descriptor_limit()
    asyncio.run(main())
