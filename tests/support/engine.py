"""An etcd of some members on loopback, with TLS and client certificates from a CA of its own."""

import asyncio
import base64
import contextlib
import ipaddress
import json
import os
import shutil
import signal
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bench.processes import free_port
from shadow.fleet.credentials import Identity, load_identity
from shadow.fleet.etcd import Engine
from shadow.net.address import Endpoint
from shadow.pki.certificates import Files, Purpose
from tests.support import DEADLINE, Authority, now, wait_for

HOST = "127.0.0.1"


def b64(data: bytes) -> str:
    """As the gateway wants keys and values."""
    return base64.b64encode(data).decode()


ETCD = shutil.which("etcd") or "/usr/bin/etcd"


@cache
def _cheap_disk() -> tuple[str, ...]:
    """What spares the members their waits for the disk; Debian 12's cannot be told."""
    told = subprocess.run([ETCD, "--help"], capture_output=True, text=True, check=False)
    return ("--unsafe-no-fsync",) if "--unsafe-no-fsync" in told.stdout + told.stderr else ()


def member_certificate(authority: Authority, hosts: Sequence[str] = (HOST,)) -> tuple[Path, Path]:
    """What a member shows to clients, to other members, and to itself: its gateway is a client, too."""
    crt, key_file = authority.folder / "member.crt", authority.folder / "member.key"
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "etcd")])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    addresses = map(ipaddress.ip_address, hosts)
    names = [x509.DNSName("localhost"), *map(x509.IPAddress, addresses)]
    made = (
        authority._builder(subject, key.public_key(), (-1, 30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    crt.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    key_file.chmod(0o600)
    return crt, key_file


class Member:
    """One member: a process that can be started again on what it has written."""

    def __init__(self, name: str, folder: Path, tls: list[str], host: str = HOST) -> None:
        self.name, self.folder, self.host = name, folder, host
        self.client, self.peer = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._tls = tls

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.host, self.client)

    @property
    def peer_url(self) -> str:
        return f"https://{self.host}:{self.peer}"

    def start(self, cluster: str, *more: str) -> None:
        """As part of a cluster, ``NAME=URL,…``."""
        client = f"https://{self.endpoint}"
        log = (self.folder / f"{self.name}.log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [
                    ETCD, f"--name={self.name}", f"--data-dir={self.folder / self.name}",
                    f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
                    f"--listen-peer-urls={self.peer_url}", f"--initial-advertise-peer-urls={self.peer_url}",
                    f"--initial-cluster={cluster}", *self._tls, *_cheap_disk(), *more,
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            )  # fmt: skip

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """As a power cut does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It hangs: the kernel goes on accepting connections to it."""
        self.signal(signal.SIGSTOP)
        # Each of its threads stops for itself; until the last has, it may still answer.
        wait_for(self._stands_still, f"member {self.name} to stand still")
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def _stands_still(self) -> bool:
        """See proc_pid_stat(5): the state is behind the name, which is in parentheses."""
        assert self.process is not None
        threads = Path(f"/proc/{self.process.pid}/task").glob("*/stat")
        return all(thread.read_text().rpartition(")")[2].split()[0] == "T" for thread in threads)


class Members:
    """An etcd. A context manager: ends with the block.

    Attributes:
        authority: its CA.
        members: its members.
    """

    def __init__(self, folder: Path, count: int = 3, *options: str, hosts: Sequence[str] = ()) -> None:
        """On loopback, or at addresses of their own."""
        hosts = hosts or [HOST] * count
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.authority = Authority(folder / "ca", "Engine CA")
        crt, key = member_certificate(self.authority, sorted(set(hosts)))
        ca = self.authority.ca
        tls = [
            f"--cert-file={crt}", f"--key-file={key}", f"--trusted-ca-file={ca}", "--client-cert-auth",
            f"--peer-cert-file={crt}", f"--peer-key-file={key}", f"--peer-trusted-ca-file={ca}",
            "--peer-client-cert-auth",
        ]  # fmt: skip
        self.members = [Member(f"n{number}", folder, tls, host) for number, host in enumerate(hosts, 1)]
        self._options = options

    @property
    def endpoints(self) -> list[Endpoint]:
        return [member.endpoint for member in self.members]

    @property
    def cluster(self) -> str:
        return ",".join(f"{member.name}={member.peer_url}" for member in self.members)

    def start(self, member: Member, *more: str) -> None:
        member.start(self.cluster, *self._options, *more)

    def __enter__(self) -> Self:
        for member in self.members:
            self.start(member)
        try:
            wait_for(lambda: all(map(self.is_up, self.members)), "the engine")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self.members:
            if member.process is not None and member.process.poll() is None:
                member.process.kill()
                member.process.wait(DEADLINE)

    def files(self, stem: str = "client", common_name: str = "server-a") -> Files:
        """What one of its clients needs."""
        crt, key = self.authority.folder / f"{stem}.crt", self.authority.folder / f"{stem}.key"
        if not crt.exists():
            self.authority.issue(stem, common_name, Purpose.ROBOT)
        return Files(self.authority.ca, crt, key)

    def identity(self, stem: str = "client", common_name: str = "server-a") -> Identity:
        """The same, read."""
        return load_identity(self.files(stem, common_name), None, [], now())

    @property
    def tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority.ca))
        files = self.files("nobody", "")  # without a name: the gateway takes it even when there are users
        context.load_cert_chain(files.crt, files.key)
        return context

    def ask(self, member: Member, path: str, body: dict[str, Any], **headers: str) -> Any:
        """A request of its API; a test's own way in."""
        url = f"https://{member.endpoint}/v3/{path}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=10, context=self.tls) as answer:  # noqa: S310
            return json.loads(answer.read())

    def is_up(self, member: Member) -> bool:
        """Whether it answers, knowing its leader."""
        assert member.process is not None
        if member.process.poll() is not None:
            raise AssertionError((self.folder / f"{member.name}.log").read_text(errors="replace"))
        try:
            return int(self.ask(member, "maintenance/status", {}).get("leader", 0)) > 0
        except OSError:
            return False

    @property
    def leader(self) -> Member:
        """The one that the others follow."""

        def found() -> Member | None:
            for member in self.members:
                with contextlib.suppress(OSError):
                    said = self.ask(member, "maintenance/status", {})
                    if said["header"]["member_id"] == said.get("leader"):
                        return member
            return None

        leader: Member = wait_for(found, "a leader")
        return leader


async def end(engine: Engine) -> None:
    """Close a client, and wait until its connections have said good-bye, as TLS wants it."""
    await engine.close()
    open_ones = asyncio.get_running_loop()._selector.get_map()  # type: ignore[attr-defined]
    async with asyncio.timeout(DEADLINE):
        while len(open_ones) > 1:  # what wakes the loop up
            await asyncio.sleep(0.001)
