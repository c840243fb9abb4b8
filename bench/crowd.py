"""Robots by the thousand in one process: the very client of shadow-client, many times.

    crowd.py FIRST COUNT STANDBY KTLS SERVER_PORT SERVICE_PORT FOLDER

Robot n connects to 127.0.0.(1 + n % 16): between two addresses there are ports for 28,000 connections only.
FOLDER has ca.crt, ca.key, and client.key, which is every robot's key. The robots are switched on at the first
line of input; at each other line it says in a line of JSON how many are connected.
"""

import asyncio
import datetime as dt
import json
import logging
import sys
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


def make_client(number: int, standby: int, ktls: Ktls, ports: tuple[int, int], folder: Path) -> ClientConfig:
    """The settings of one robot."""
    return ClientConfig(
        rhost=(f"127.0.0.{1 + number % ADDRESSES}",),
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
    clients = [Client(make_client(number, standby, ktls, ports, folder), durable) for number in numbers]
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    print("ready", flush=True)
    await reader.readline()
    for start in range(0, count, _AT_ONCE):
        for client in clients[start : start + _AT_ONCE]:
            await client.start()
    while await reader.readline():
        connected = sum(client.status.startswith("Connected") for client in clients)
        print(json.dumps({"connected": connected}), flush=True)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)  # what thousands of robots say would be read by nobody
    raise_descriptor_limit()
    asyncio.run(main())
