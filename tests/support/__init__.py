"""What several test files need: a CA of our own, daemons as processes, and waiting for conditions."""

import asyncio
import contextlib
import datetime as dt
import ipaddress
import os
import random
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL

from bench.processes import free_port
from shadow.errors import CertificateRefused
from shadow.pki.certificates import Purpose, load_credentials
from shadow.relay.ends import Plain
from shadow.relay.flow import Pump
from shadow.relay.pool import OnEnd, Relay
from shadow.transport import context as contexts
from shadow.transport import handshake
from shadow.transport.context import make_context
from shadow.transport.link import Link, UserspaceLink

DEADLINE = 30.0  # seconds a condition may take on a busy machine before a test gives up
CHECKOUT = Path(__file__).parents[2]

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def wait_for(condition: Callable[[], object], what: str, deadline: float = DEADLINE) -> Any:
    """Poll until ``condition`` is true; return what it returned."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline:g} s in vain for {what}")
        time.sleep(0.01)


PLENTY: Any = SimpleNamespace(ran_out=lambda _error: None, for_caller=lambda: True)
"""Descriptors that do not run out, for who tells when they do."""


class Authority:
    """A CA that makes good and, where tests want them, bad certificates; independent of ``ca.authority``.

    One with an ``issuer`` is an intermediate.
    """

    def __init__(self, folder: Path, name: str = "Test CA", issuer: "Authority | None" = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        signer = issuer or self
        self.certificate = (
            signer._builder(self.name, self.key.public_key(), (-1, 3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(signer.key, hashes.SHA256())
        )
        self.key_pem = _pem(self.key)
        self.ca = folder / "ca.crt"
        self.ca.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        self._rsa: rsa.RSAPrivateKey | None = None

    def _builder(
        self, subject: x509.Name, public_key: Any, days: tuple[float, float]
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .issuer_name(self.name)
            .subject_name(subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() + dt.timedelta(days=days[0]))
            .not_valid_after(now() + dt.timedelta(days=days[1]))
        )

    def issue(
        self,
        stem: str,
        common_name: str,
        purpose: Purpose | None,
        *,
        days: tuple[float, float] = (-1, 30),
        hosts: tuple[str, ...] | None = None,
        key_kind: str = "ec",
        key: PrivateKey | None = None,
    ) -> tuple[Path, Path]:
        """Write ``stem.crt`` and ``stem.key``; valid from and to so many days from now."""
        if key is None and key_kind == "rsa":
            key = self._rsa = self._rsa or rsa.generate_private_key(65537, 2048)
        key = key or ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
        subject = x509.Name(attributes)
        builder = self._builder(subject, key.public_key(), days)
        if hosts is None:
            hosts = ("localhost", "127.0.0.1", "::1") if purpose is Purpose.SERVER else ()
        if hosts:
            names = [_general_name(host) for host in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if purpose is not None:
            usages = {
                Purpose.SERVER: [ExtendedKeyUsageOID.SERVER_AUTH],
                Purpose.ROBOT: [ExtendedKeyUsageOID.CLIENT_AUTH],
                Purpose.PEER: [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
            }[purpose]
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        crt, key_file = self.folder / f"{stem}.crt", self.folder / f"{stem}.key"
        crt.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(_pem(key))
        key_file.chmod(0o600)
        return crt, key_file

    def server(self, stem: str = "server", **options: Any) -> tuple[Path, Path]:
        return self._once(stem, "server", Purpose.SERVER, options)

    def robot(self, name: str = "011", **options: Any) -> tuple[Path, Path]:
        return self._once(name, name, Purpose.ROBOT, options)

    def peer(self, server: str = "a", **options: Any) -> tuple[Path, Path]:
        return self._once(f"peer-{server}", f"peer:{server}", Purpose.PEER, options)

    def _once(self, stem: str, name: str, purpose: Purpose, options: dict[str, Any]) -> tuple[Path, Path]:
        crt, key = self.folder / f"{stem}.crt", self.folder / f"{stem}.key"
        return (crt, key) if crt.exists() else self.issue(stem, name, purpose, **options)

    def context(self, purpose: Purpose, *, key_kind: str = "ec") -> SSL.Context:
        """A context as the daemons make it."""
        name = {Purpose.SERVER: "server", Purpose.ROBOT: "011", Purpose.PEER: "peer:a"}[purpose]
        stem = f"context-{name}-{key_kind}"
        crt, key = self._once(stem, name, purpose, {"key_kind": key_kind})
        return make_context(load_credentials(self.ca, crt, key, purpose, now()))


def _pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def openssl_key(path: Path, *genpkey: str) -> Any:
    """A key as only openssl makes them; written to ``path``, too."""
    made = subprocess.run(["openssl", "genpkey", *genpkey], check=True, capture_output=True)
    path.write_bytes(made.stdout)
    return serialization.load_pem_private_key(made.stdout, None)


def make_list(
    authority: Authority,
    *serials: int,
    number: int = 1,
    age: float = 0,
    days: float = 30,
    when: dt.datetime | None = None,
) -> Path:
    """A file with a list of revoked certificates, ``age`` days old, the next one due in ``days``."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.name)
        .last_update(now() - dt.timedelta(days=max(age, 2 - days)))
        .next_update(now() + dt.timedelta(days=days))
    )
    if number:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when or now())
        builder = builder.add_revoked_certificate(entry.build())
    path = authority.folder / "ca.crl"
    path.write_bytes(builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return path


def _general_name(host: str) -> x509.GeneralName:
    if host.startswith("DNS:"):  # whatever it looks like
        return x509.DNSName(host.removeprefix("DNS:"))
    try:
        return x509.IPAddress(ipaddress.ip_address(host.removeprefix("IP:")))
    except ValueError:
        return x509.DNSName(host)


_HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_FDNAMES": sys.argv[2], "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""


def _limit_descriptors(number: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))


class Daemon:
    """A daemon as a process of its own, with its log in a file; ``passed`` as systemd passes a socket."""

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        environment: dict[str, str] | None = None,
        passed: tuple[str, socket.socket] | None = None,
        limit: int | None = None,
    ) -> None:
        self.log_file = log
        command, descriptors = ["-m", *arguments], []
        if passed is not None:
            descriptors = [passed[1].fileno()]
            command = ["-c", _HAND_OVER, str(descriptors[0]), passed[0], *command]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=CHECKOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                preexec_fn=None if limit is None else lambda: _limit_descriptors(limit),  # noqa: PLW1509
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_for_log(self, pattern: str, count: int = 1) -> re.Match[str]:
        """Wait until the log has ``count`` matches; the last of them."""

        def found() -> list[re.Match[str]] | None:
            matches = list(re.finditer(pattern, self.log))
            if len(matches) < count and self.process.poll() is not None:
                raise AssertionError(f"exited with {self.process.returncode}; its log:\n{self.log}")
            return matches if len(matches) >= count else None

        try:
            matches: list[re.Match[str]] = wait_for(found, f"{pattern!r} in the log")
        except AssertionError as error:
            raise AssertionError(f"{error}\nlog:\n{self.log}") from None
        return matches[-1]

    def wait(self) -> int:
        """Wait for its exit; the status."""
        return self.process.wait(DEADLINE)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop and wait until it has."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"did not stop; its log:\n{self.log}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if value is not None:
            sys.stderr.write(f"--- {self.log_file.name} ---\n{self.log}")


class Tunnel:
    """A server and its robots, as processes on loopback, with everything they need."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        self.authority = authority
        self.folder = folder
        self.ldir = folder / "sockets"
        self.ldir.mkdir()
        self.port = free_port()
        self._stack = contextlib.ExitStack()
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, value, trace)

    def socket_path(self, name: str = "011") -> Path:
        return self.ldir / f"{name}.sock"

    def daemon(
        self,
        arguments: list[str],
        environment: dict[str, str] | None = None,
        passed: tuple[str, socket.socket] | None = None,
        limit: int | None = None,
    ) -> Daemon:
        self._count += 1
        kind = arguments[0].rpartition(".")[2]
        log = self.folder / f"{kind}-{self._count}.log"
        return self._stack.enter_context(Daemon(arguments, log, environment, passed, limit))

    def server_arguments(self, *more: str) -> list[str]:
        crt, key = self.authority.server()
        return [
            "shadow.cli.server", f"--lport={self.port}", f"--ldir={self.ldir}", f"--ca={self.authority.ca}",
            f"--crt={crt}", f"--key={key}", *more,
        ]  # fmt: skip

    def client_arguments(self, *more: str, robot: str = "011", rhost: str = "localhost") -> list[str]:
        crt, key = self.authority.robot(robot)
        return [
            "shadow.cli.client", f"--rport={self.port}", f"--rhost={rhost}", f"--ca={self.authority.ca}",
            f"--crt={crt}", f"--key={key}", f"--robot={robot}", *more,
        ]  # fmt: skip

    def start_server(self, *more: str, environment: dict[str, str] | None = None) -> Daemon:
        daemon = self.daemon(self.server_arguments(*more), environment)
        daemon.wait_for_log("accepting robots")
        return daemon

    def start_server_with_api(
        self, *more: str, environment: dict[str, str] | None = None, limit: int | None = None
    ) -> Daemon:
        """The API's socket is among those of the robots."""
        return self._start_server_with("io.shadowtunnel.Server", "shadow-api", more, environment, limit)

    def start_server_with_gate(self, *more: str) -> Daemon:
        """The gate's socket is among those of the robots; for a server of a fleet."""
        return self._start_server_with("gate", "shadow-gate", more, None, None)

    def _start_server_with(
        self,
        file: str,
        name: str,
        more: Sequence[str],
        environment: dict[str, str] | None,
        limit: int | None,
    ) -> Daemon:
        path = self.ldir / file
        path.unlink(missing_ok=True)  # as systemd does
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
            sock.listen()
            daemon = self.daemon(self.server_arguments(*more), environment, (name, sock), limit)
        daemon.wait_for_log("accepting robots")
        return daemon

    def start_client(
        self,
        *more: str,
        robot: str = "011",
        rhost: str = "localhost",
        environment: dict[str, str] | None = None,
    ) -> Daemon:
        """Start a robot and wait until its default socket is there."""
        daemon = self.daemon(self.client_arguments(*more, robot=robot, rhost=rhost), environment)
        daemon.wait_for_log(f"robot {re.escape(robot)} connected")
        wait_for(self.socket_path(robot).exists, f"{robot}.sock")
        return daemon

    def visit(self, name: str = "011") -> socket.socket:
        """Connect to a robot's socket."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(DEADLINE)
        try:
            sock.connect(str(self.socket_path(name)))
        except OSError:
            sock.close()
            raise
        return sock


Handler = Callable[[socket.socket], None]


class Service:
    """A local TCP service: calls ``handler`` in a thread for each connection."""

    def __init__(self, handler: Handler, host: str = "127.0.0.1", port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host, port))
        self._listener.listen(256)
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self._handler = handler
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def accepted(self) -> int:
        return len(self._connections)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _address = self._listener.accept()
                connection.settimeout(DEADLINE)
                self._connections.append(connection)
                threading.Thread(target=self._handle, args=(connection,), daemon=True).start()

    def _handle(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            self._handler(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads it
            connection.close()
        self._thread.join(DEADLINE)


def echo(connection: socket.socket) -> None:
    """A service: sends back what it gets, and the end of file."""
    while data := connection.recv(65536):
        connection.sendall(data)


def shout(connection: socket.socket) -> None:
    """A service: answers only after the end of the question, in capitals."""
    question = read_all(connection)
    connection.sendall(question.upper())


def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while part := sock.recv(65536):
        data += part
    return bytes(data)


def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Send ``data`` and the end of file while reading everything that comes back."""

    def send() -> None:
        with contextlib.suppress(OSError):
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return read_all(sock)
    finally:
        sender.join()


def random_bytes(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)  # noqa: S311 - repeatable on purpose


@contextlib.contextmanager
def serving(handler: Handler, host: str = "127.0.0.1") -> Iterator[Service]:
    with Service(handler, host) as service:
        yield service


def open_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection over loopback: who was dialled, and who dialled."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _address = listener.accept()
    return near, far


async def try_hands(server: contexts.Settings, client: contexts.Settings) -> list[Link | BaseException]:
    """Do a handshake over loopback; what the server and the robot have of it: a link, or why not."""
    theirs, ours = tcp_pair()

    async def one(sock: socket.socket, its_settings: contexts.Settings) -> Link:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            return await handshake.handshake(sock, its_settings)
        except BaseException:
            sock.close()
            raise

    return list(await asyncio.gather(one(theirs, server), one(ours, client), return_exceptions=True))


async def shake_hands(server: contexts.Settings, client: contexts.Settings) -> tuple[Link, Link]:
    """Do a handshake over loopback; raise what the side raises that finds fault with the other."""
    ends = await try_hands(server, client)
    errors = [end for end in ends if isinstance(end, BaseException)]
    links = [end for end in ends if isinstance(end, Link)]
    if errors:
        for link in links:
            link.sock.close()
        raise min(errors, key=_was_told)
    return links[0], links[1]


def _was_told(error: BaseException) -> bool:
    told = isinstance(error, CertificateRefused | OSError)
    return told or "refused us" in str(error) or "hung up" in str(error)


def settings(
    authority: Authority, purpose: Purpose, mode: contexts.Ktls = contexts.Ktls.AUTO
) -> contexts.Settings:
    """How one side does its handshakes in tests."""
    return contexts.Settings(authority.context(purpose), purpose, mode, ("localhost",))


async def linked(authority: Authority, mode: contexts.Ktls = contexts.Ktls.AUTO) -> tuple[Link, Link]:
    """Both ends of a fresh TLS connection over loopback: the server's and the robot's."""
    return await shake_hands(
        settings(authority, Purpose.SERVER, mode), settings(authority, Purpose.ROBOT, mode)
    )


def userspace_linked(authority: Authority) -> tuple[UserspaceLink, UserspaceLink]:
    """The same, encrypted by OpenSSL in any case."""
    server, robot = asyncio.run(linked(authority, contexts.Ktls.OFF))
    assert isinstance(server, UserspaceLink)
    assert isinstance(robot, UserspaceLink)
    return server, robot


def read_some(link: Link, size: int = 65536) -> bytes:
    """Wait for plaintext on a link that nobody else reads."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        try:
            return link.read(size)
        except BlockingIOError:
            select.select([link.sock], [], [], 0.1)
    raise AssertionError("nothing came over the link")


def read_link(link: Link) -> bytes:
    """Everything until close_notify."""
    data = bytearray()
    while part := read_some(link):
        data += part
    return bytes(data)


def write_all(link: Link, data: bytes) -> None:
    """Write and wait until the socket has taken all of it."""
    link.write(data)
    end = time.monotonic() + DEADLINE
    while not link.flushed:
        assert time.monotonic() < end, "nobody reads what is written to the link"
        select.select([], [link.sock], [], 0.1)
        link.flush()


def exchange_link(link: Link, data: bytes) -> bytes:
    """Send ``data`` and close_notify while reading everything until the peer's close_notify."""
    received = bytearray()
    position, told = 0, False
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if link.flushed and position < len(data):
            link.write(data[position : position + 65536])
            position += 65536
        link.flush()
        if link.flushed and position >= len(data) and not told:
            link.send_close_notify()
            told = True
        with contextlib.suppress(BlockingIOError):
            part = link.read(65536)
            if not part:
                break
            received += part
    if not told:
        write_all(link, data[position:])
        link.send_close_notify()
    return bytes(received)


def begin(relay: Relay, near: socket.socket | Link, link: Link, on_end: OnEnd) -> Pump:
    """Have a relay move what comes, as for a stream that is not kept."""
    pump = relay.make(near if isinstance(near, Link) else Plain(near), link)
    relay.adopt(pump, on_end)
    return pump
