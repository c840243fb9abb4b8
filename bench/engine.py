"""The engine of a fleet: an etcd of three members on loopback, with TLS, as docs/FLEET.md sets it up.

Its files are on a disk, and it waits for that disk, as it would on three machines.
"""

import contextlib
import datetime as dt
import ipaddress
import json
import shutil
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .processes import DEADLINE, BenchError, cpu_of, free_port

HOST = "127.0.0.1"
_MEMBERS = 3


class Member:
    """One of them."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.client, self.peer = free_port(), free_port()
        self.url, self.peer_url = f"https://{HOST}:{self.client}", f"https://{HOST}:{self.peer}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, cluster: str) -> None:
        """As one of a cluster, ``NAME=URL,…``."""
        etcd = shutil.which("etcd")
        if etcd is None:
            raise BenchError("etcd is not installed (Debian: etcd-server)")
        ca, crt, key = (self._folder / name for name in ("ca.crt", "member.crt", "member.key"))
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    etcd, f"--name={self.name}", f"--data-dir={self._folder / self.name}",
                    f"--listen-client-urls={self.url}", f"--advertise-client-urls={self.url}",
                    f"--listen-peer-urls={self.peer_url}", f"--initial-advertise-peer-urls={self.peer_url}",
                    f"--initial-cluster={cluster}", "--client-cert-auth", "--peer-client-cert-auth",
                    f"--cert-file={crt}", f"--key-file={key}", f"--trusted-ca-file={ca}",
                    f"--peer-cert-file={crt}", f"--peer-key-file={key}", f"--peer-trusted-ca-file={ca}",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Of its process; 0: it does not run."""
        return 0 if self._process is None else self._process.pid

    def kill(self) -> None:
        """As a power cut does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class Engine:
    """All of them. A context manager: they end with the block."""

    def __init__(self, folder: Path) -> None:
        """Make their certificates.

        Args:
            folder: for these, and for what they write.
        """
        folder.mkdir(parents=True)
        _write_certificates(folder)
        self.folder = folder
        self.members = [Member(f"n{number}", folder) for number in range(1, _MEMBERS + 1)]
        self._tls = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        self._tls.load_cert_chain(folder / "client.crt", folder / "client.key")

    def __enter__(self) -> Self:
        for member in self.members:
            self.start(member)
        with contextlib.ExitStack() as stack:
            stack.callback(self.close)
            self.wait_for_leader()
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all that run."""
        for member in self.members:
            member.kill()

    @property
    def cpu(self) -> float:
        """Seconds of CPU time, of all that run."""
        return sum(cpu_of(member.pid) for member in self.members)

    def start(self, member: Member) -> None:
        """Start one, for the first time or again."""
        member.start(",".join(f"{one.name}={one.peer_url}" for one in self.members))

    @property
    def options(self) -> list[str]:
        """Where a server finds it, and who it is there."""
        urls = ",".join(member.url for member in self.members)
        files = (("ca", "ca.crt"), ("crt", "client.crt"), ("key", "client.key"))
        return [f"--engine={urls}", *(f"--engine-{what}={self.folder / name}" for what, name in files)]

    def wait_for_leader(self) -> Member:
        """The member that the others follow."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            for member in self.members:
                said = self._status(member)
                if said.get("leader") and said["leader"] == said["header"]["member_id"]:
                    return member
            time.sleep(0.05)
        raise BenchError(f"etcd has no leader, see {self.folder}")

    def _status(self, member: Member) -> dict[str, Any]:
        url = f"{member.url}/v3/maintenance/status"
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(url, b"{}", timeout=2, context=self._tls) as answer,  # noqa: S310
        ):
            said: dict[str, Any] = json.loads(answer.read())
            return said
        return {}


def _write_certificates(folder: Path) -> None:
    """A CA of the engine's own, a certificate for all members, and one for all servers."""
    ca_key = _write_key(folder / "ca.key")
    ca = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Engine CA")])
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    root = _builder(ca, ca, ca_key).add_extension(constraints, critical=True)
    _write(folder / "ca.crt", root.sign(ca_key, hashes.SHA256()))
    # A member is a client, too: of the others, and its gateway of itself.
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))])
    for stem, name, usages in (("member", "etcd", uses), ("client", "server", uses[1:])):
        key = _write_key(folder / f"{stem}.key")
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = _builder(subject, ca, key).add_extension(here, critical=False)
        made = made.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        _write(folder / f"{stem}.crt", made.sign(ca_key, hashes.SHA256()))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=90))
    )


def _write_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    forms = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.touch(0o600)
    path.write_bytes(key.private_bytes(*forms))
    return key


def _write(path: Path, certificate: x509.Certificate) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
