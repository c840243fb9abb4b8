"""Certificates that renew themselves: server, robot and signer, as processes.

They live for seconds here instead of years, and everything else is as it is.
"""

import asyncio
import datetime as dt
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from shadow import events
from shadow.ca import signer as signers
from shadow.client import renewal
from shadow.client.certificate_store import CertificateStore
from shadow.client.client import Client
from shadow.client.opening import Opener
from shadow.daemon.config import parse_client
from shadow.errors import HandshakeError, PeerError, Refused
from shadow.pki.certificates import Files, Purpose, load_certificates, validity
from shadow.pki.request import make_request
from shadow.relay.durable import DurableStreams
from shadow.relay.pool import Relay
from shadow.systemd.fdstore import Store
from shadow.transport.context import Settings
from tests.support import (
    CHECKOUT,
    DEADLINE,
    Authority,
    Daemon,
    Tunnel,
    echo,
    exchange,
    make_list,
    now,
    random_bytes,
    serving,
    wait_for,
)
from tests.support.log import Said
from tests.support.signer_socket import SignerSocket, ca_folder

DAY = 86400.0


@pytest.fixture
def signer(own: Authority, tmp_path: Path) -> Iterator[SignerSocket]:
    with SignerSocket(tmp_path / "signer.sock", ca_folder(own, tmp_path / "ca")) as listening:
        yield listening


@pytest.fixture
def tunnel(own: Authority, tmp_path: Path) -> Iterator[Tunnel]:
    with Tunnel(own, tmp_path) as made:
        yield made


def short_lived(own: Authority, seconds: float, age: float = 0.0) -> Path:
    """Give robot 011 a certificate that lives so long, and is so old."""
    crt, _key = own.robot("011", days=(-age / DAY, (seconds - age) / DAY))
    return crt


def start(tunnel: Tunnel, signer: SignerSocket, *more: str) -> tuple[Daemon, Daemon]:
    server = tunnel.start_server(f"--signer={signer.path}")
    return server, start_robot(tunnel, *more)


def start_robot(tunnel: Tunnel, *more: str) -> Daemon:
    return tunnel.start_client(f"--state={tunnel.folder / 'state'}", *more)


RENEWED = r"robot 011 has a new certificate, ([0-9a-f]{40}), valid until"


@pytest.mark.long
def test_a_certificate_renews_itself_again_and_again_under_a_running_stream(
    own: Authority, tunnel: Tunnel, signer: SignerSocket
) -> None:
    short_lived(own, 6)
    with serving(echo) as service:
        server, client = start(tunnel, signer, f"--lport={service.port}", "--lhost=127.0.0.1")
        data = random_bytes(2**20, 1)
        with tunnel.visit() as visitor:
            visitor.sendall(data[:1000])
            client.wait_for_log(RENEWED, 3)
            received = exchange(visitor, data[1000:])
        assert received == data
        with tunnel.visit() as another:
            assert exchange(another, b"still there") == b"still there"
        serials = re.findall(RENEWED, client.log)
        assert len(set(serials)) == len(serials)
        for serial in serials[:3]:
            server.wait_for_log(f"robot 011: new certificate {serial}, valid until")
            assert f"robot 011: certificate {serial} issued, valid until" in signer.log
            assert (signer.folder / "issued" / f"{serial}.pem").exists()
        assert "disconnected" not in server.log
        assert "no session" not in client.log


# What the signer is doing when it is killed: the name of a function, and whether that has returned.
STEPS = [
    ("shadow.cli.signer._read", False),
    ("shadow.cli.signer._read", True),
    ("shadow.ca.signer.load_authority", True),
    ("shadow.ca.applicant.check_proof", True),
    ("shadow.ca.signer.renew_robot", True),
    ("shadow.pki.files._stage", True),
    ("shadow.pki.files._name", True),
    ("shadow.pki.files._sync", True),
    ("shadow.ca.signer.write_files", True),
    ("shadow.cli.signer.encode", True),
]

KILLED = """
import importlib, os, signal, sys
name, after = sys.argv.pop(1), sys.argv.pop(1) == "True"
module, _, function = name.rpartition(".")
from shadow.cli import signer
module = importlib.import_module(module)
real = getattr(module, function)
def killed(*arguments, **options):
    if after:
        real(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(module, function, killed)
raise SystemExit(signer.main())
"""


@pytest.mark.long
@pytest.mark.parametrize(("step", "after"), STEPS)
def test_a_signer_that_is_killed_at_any_step(
    own: Authority, tunnel: Tunnel, signer: SignerSocket, step: str, *, after: bool
) -> None:
    """The robot is told, asks again for the same key, and gets one certificate in the end."""
    short_lived(own, 60, 42)
    works = signer.command
    signer.command = [sys.executable, "-c", KILLED, step, str(after), f"--dir={signer.folder}"]
    server, client = start(tunnel, signer, "--lport=9")
    client.wait_for_log(
        r"certificate of robot 011 not renewed: refused \(no-signer\): the signer (failed|cannot)"
    )
    server.wait_for_log(r"robot 011: certificate not renewed \('no-signer'\)")
    wait_for(lambda: signer.statuses, "the signer's status")  # known a moment after its connection's end
    assert signer.statuses[0] == -signal.SIGKILL
    signer.command = works
    client.wait_for_log(RENEWED)
    assert len(list((signer.folder / "issued").glob("*.pem"))) == 1


ROBOT_STEPS = [
    "shadow.client.certificate_store.CertificateStore.key_to_ask_for",
    "shadow.client.session.Session.renew",
    "shadow.client.certificate_store.CertificateStore.add",
    "shadow.client.session.Session.close",
    "shadow.client.certificate_store.CertificateStore.accepted",
]

ROBOT_KILLED = """
import importlib, inspect, os, signal, sys
name = sys.argv.pop(1)
module, kind, function = name.rsplit(".", 2)
kind = getattr(importlib.import_module(module), kind)
real = getattr(kind, function)
def killed(*arguments):
    done = real(*arguments)
    new = function == "accepted" and arguments[1].crt.name == "next.crt"
    if done is not None or new or function == "close":
        os.kill(os.getpid(), signal.SIGKILL)
async def killed_later(*arguments):
    await real(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(kind, function, killed_later if inspect.iscoroutinefunction(real) else killed)
from shadow.cli import client
raise SystemExit(client.main())
"""


@pytest.mark.long
@pytest.mark.parametrize("step", ROBOT_STEPS)
def test_a_robot_that_is_killed_behind_any_step(
    own: Authority, tunnel: Tunnel, signer: SignerSocket, step: str
) -> None:
    short_lived(own, 60, 42)
    server = tunnel.start_server(f"--signer={signer.path}")
    words = "--lport=9", f"--state={tunnel.folder / 'state'}"
    (tunnel.folder / "killed.py").write_text(ROBOT_KILLED)
    arguments = ["killed", step, *tunnel.client_arguments(*words)[1:]]
    killed = tunnel.daemon(arguments, {"PYTHONPATH": str(tunnel.folder)})
    assert killed.wait() == -signal.SIGKILL
    client = start_robot(tunnel, "--lport=9")
    serial = issued(signer)
    if "has a new certificate" not in killed.log:
        client.wait_for_log(rf"robot 011 has a new certificate, {serial}")
    wait_for(lambda: stored(tunnel) == {"pair.pem"}, "the pair to be stored")
    assert issued(signer) == serial
    server.wait_for_log("robot 011 connected", 3 if "has a new certificate" not in killed.log else 2)


def issued(signer: SignerSocket) -> str:
    """The serial number of the one certificate that was issued."""
    wait_for(lambda: list((signer.folder / "issued").glob("*.pem")), "a certificate")
    (path,) = (signer.folder / "issued").glob("*.pem")
    return path.stem


def stored(tunnel: Tunnel) -> set[str]:
    return {path.name for path in (tunnel.folder / "state").iterdir()}


@pytest.mark.long
def test_a_server_without_a_signer_is_not_asked(own: Authority, tunnel: Tunnel) -> None:
    short_lived(own, 30, 25)
    server = tunnel.start_server("--keepalive=0.2")
    client = start_robot(tunnel, "--lport=9")
    client.wait_for_log("expires within a day")
    client.wait_for_log("HAS EXPIRED")  # some looks at the clock later
    assert "renewed" not in server.log + client.log
    assert not (tunnel.folder / "state").exists()


@pytest.mark.long
def test_a_new_ca_takes_over_from_the_old_one(own: Authority, tunnel: Tunnel, tmp_path: Path) -> None:
    """CA ROLL-OVER in shadow-ca(1): both are trusted, the new one signs, and nobody is visited.

    The server comes last here, so its robot's new certificate is refused at first.
    """
    new = Authority(tmp_path / "new", "New CA")
    both = own.ca.read_bytes() + new.ca.read_bytes()
    folder = ca_folder(new, tmp_path / "ca")
    (folder / "ca.crt").write_bytes(new.ca.read_bytes() + own.ca.read_bytes())
    short_lived(own, 60, 42)
    (tmp_path / "robots-ca.crt").write_bytes(both)
    with SignerSocket(tmp_path / "signer.sock", folder) as signer:
        server = tunnel.start_server(f"--signer={signer.path}")
        client = start_robot(tunnel, "--lport=9", f"--ca={tmp_path / 'robots-ca.crt'}")
        client.wait_for_log("not renewed: the peer refused our certificate: unknown_ca")
        assert "disconnected" not in server.log  # the old one is good, and stays
        own.ca.write_bytes(both)
        server.process.send_signal(signal.SIGHUP)
        serial = client.wait_for_log(RENEWED)[1]
        assert issued(signer) == serial
        wait_for(lambda: stored(tunnel) == {"pair.pem"}, "the pair to be stored")
        certificate = load_certificates(tunnel.folder / "state" / "pair.pem", "pair")[0]
        assert certificate.issuer == new.name
        # The old CA goes; so do connections that were made with its certificates, and no robot is lost.
        own.ca.write_bytes(new.ca.read_bytes())
        crt, key = new.server()
        for ours, theirs in zip(own.server(), (crt, key), strict=True):
            ours.write_bytes(theirs.read_bytes())
        server.stop()
        server = tunnel.start_server()
        server.wait_for_log("robot 011 connected")


@pytest.mark.long
def test_a_renewed_certificate_is_used_after_a_restart(
    own: Authority, tunnel: Tunnel, signer: SignerSocket
) -> None:
    crt = short_lived(own, 20, 14)
    server, client = start(tunnel, signer, "--lport=9")
    client.wait_for_log(RENEWED)
    client.stop()
    end = validity(load_certificates(crt, "the first one")[0])[1]
    wait_for(lambda: now() > end, "the first certificate to expire")
    start_robot(tunnel, "--lport=9")
    server.wait_for_log("robot 011 connected", 3)


@pytest.mark.long
def test_a_signer_on_another_machine_is_reached_through_the_tunnel_itself(
    own: Authority, tunnel: Tunnel, signer: SignerSocket
) -> None:
    """It listens on a port, and a client offers that as a robot; see shadow-ca-signer.socket(8)."""

    def forward(connection: socket.socket) -> None:
        stdin = connection.fileno()
        subprocess.run(signer.command, stdin=stdin, cwd=CHECKOUT, check=True, timeout=DEADLINE)

    short_lived(own, 60, 42)
    tunnel.start_server(f"--signer={tunnel.socket_path('signer')}")
    with serving(forward) as port:
        tunnel.start_client(f"--lport={port.port}", "--lhost=127.0.0.1", robot="signer")
        serial = start_robot(tunnel, "--lport=9").wait_for_log(RENEWED)[1]
        assert issued(signer) == serial


def test_a_robot_that_is_revoked_cannot_renew(own: Authority, tunnel: Tunnel, signer: SignerSocket) -> None:
    """Not even where the server does not know it yet."""
    crt = short_lived(own, 60, 42)
    serial = load_certificates(crt, "robot")[0].serial_number
    (signer.folder / "ca.crl").write_bytes(make_list(own, serial).read_bytes())
    _server, client = start(tunnel, signer, "--lport=9")
    client.wait_for_log(r"not renewed: refused \(revoked\): certificate [0-9a-f]{40} was revoked")
    assert not (signer.folder / "issued").exists()


@pytest.mark.long
def test_a_robot_that_comes_late_renews_over_the_session_that_it_has(
    own: Authority, tunnel: Tunnel, signer: SignerSocket
) -> None:
    """The signer was away until after the end: nobody need visit the robot."""
    works, signer.command = signer.command, [sys.executable, "-c", "raise SystemExit(1)"]
    server = tunnel.start_server(f"--signer={signer.path}", "--keepalive=0.5")
    short_lived(own, 90, 80)
    with serving(echo) as service:
        client = start_robot(tunnel, f"--lport={service.port}", "--lhost=127.0.0.1", "--standby=0")
        server.wait_for_log("ERROR: robot 011 is connected, but its certificate expired")
        signer.command = works
        client.wait_for_log(RENEWED)
        server.wait_for_log("robot 011 came back")
        with tunnel.visit() as visitor:
            visitor.sendall(b"x")
            assert visitor.recv(1) == b"x"


@pytest.mark.long
def test_another_certificate_is_chosen_when_the_one_in_use_has_ended(own: Authority, tunnel: Tunnel) -> None:
    """At the next connection, without a reload: nobody is there to do one."""
    short_lived(own, 8)
    server = tunnel.start_server()
    client = start_robot(tunnel, "--lport=9")
    crt, key = own.issue("later", "011", Purpose.ROBOT, days=(-1 / DAY, 1))
    (tunnel.folder / "state").mkdir(mode=0o700)
    (tunnel.folder / "state" / "pair.pem").write_bytes(crt.read_bytes() + key.read_bytes())
    client.wait_for_log("HAS EXPIRED")
    ended = now()
    wait_for(lambda: now() > ended + dt.timedelta(seconds=2), "every clock to agree")  # they count seconds
    server.stop()
    tunnel.start_server().wait_for_log("robot 011 connected")


class Opened:
    """A session as the client that has it sees it."""

    agreed = SimpleNamespace(renews=True, interval=30.0, target="", since="")

    def __init__(self, settings: Settings) -> None:
        self.certificate = settings.fingerprint
        self.lost: asyncio.Future[PeerError] = asyncio.get_running_loop().create_future()
        self.unwanted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed = False
        self.used = settings

    def use(self, settings: Settings) -> None:
        self.used = settings

    def close(self) -> None:
        self.closed = True


class Trial:
    """A robot that is connected, and a certificate that it has been given and not tried."""

    def __init__(self, own: Authority, tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch) -> None:
        crt, key = own.robot("011", days=(-0.8, 0.2))
        state = tunnel.folder / "state"
        store = CertificateStore(Files(own.ca, crt, key), state, "011")
        request = make_request("011", store.key_to_ask_for(), store.load(now()).credentials)
        self.following = signers.renew(ca_folder(own, tunnel.folder / "ca"), request, now())
        store.add(self.following.public_bytes(Encoding.DER), now())
        self.opened: list[Opened] = []
        self._arguments = tunnel.client_arguments("--lport=9", f"--state={state}")[1:]
        self._patch = monkeypatch
        self.client: Client
        monkeypatch.setattr(renewal, "_LOOK", 0.01)

    def run(self, welcome: Callable[[Opened], Awaitable[None]], until: Callable[[Client], object]) -> Client:
        """Have the client live until a condition holds; ``welcome`` answers each session after the first."""

        async def open_one(_opener: Opener, settings: Settings, _reach: float = 0.0) -> Opened:
            session = Opened(settings)
            self.opened.append(session)
            if len(self.opened) > 1:
                await welcome(session)
            return session

        async def live() -> Client:
            relay = Relay()
            client = self.client = Client(parse_client(self._arguments, {}), DurableStreams(relay, Store()))
            try:
                await client.start()
                while not until(client):
                    await asyncio.sleep(0.005)
            finally:
                await client.stop()
                relay.stop()
            return client

        self._patch.setattr(Opener, "open", open_one)
        return asyncio.run(asyncio.wait_for(live(), DEADLINE))


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (Refused("revoked", "why"), False),
        (HandshakeError("unknown_ca"), False),
        (PeerError("connection lost"), True),
    ],
    ids=["refused", "handshake", "lost"],
)
def test_what_becomes_of_a_certificate_that_the_server_does_not_take(
    own: Authority,
    tunnel: Tunnel,
    monkeypatch: pytest.MonkeyPatch,
    said: Said,
    error: Exception,
    *,
    stays: bool,
) -> None:
    """One that it refuses is asked for anew: the signer may have another CA by then."""
    trial = Trial(own, tunnel, monkeypatch)

    async def refuse(_session: Opened) -> None:
        raise error

    client = trial.run(refuse, lambda _client: any(event is events.RenewalFailed for event, _text in said))
    first, second = trial.opened
    assert second.certificate == trial.following.fingerprint(hashes.SHA256()).hex()
    assert (client._trust.certificates.next is not None) is stays
    assert client._trust.certificates.current is not None
    assert client._trust.certificates.current.credentials.fingerprint == first.certificate
    assert not [text for event, text in said if event is events.SessionLost], "the first one went on"


def test_what_the_server_welcomes_stays(
    own: Authority, tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    trial = Trial(own, tunnel, monkeypatch)

    async def welcome(_session: Opened) -> None:
        assert not trial.opened[0].closed, "the new one comes first"
        assert stored(tunnel) == {"next.crt", "next.key"}, "nothing is certain before WELCOME"

    trial.run(welcome, lambda _client: any(event is events.Renewed for event, _text in said))
    assert trial.opened[0].closed
    assert stored(tunnel) == {"pair.pem"}


def test_nothing_else_is_dialled_for_while_a_certificate_is_tried_out(
    own: Authority, tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    """The server may end the old session for the new one's sake before that is there: two would fight."""
    trial = Trial(own, tunnel, monkeypatch)
    under_way: list[int] = []

    async def welcome(_session: Opened) -> None:
        trial.opened[0].lost.set_result(PeerError("another one came"))
        for _ in range(50):
            await asyncio.sleep(0.01)
            under_way.append(len(trial.opened))

    trial.run(welcome, lambda _client: any(event is events.Renewed for event, _text in said))
    assert set(under_way) == {2}
    assert len(trial.opened) == 2
    assert not [text for event, text in said if event is events.SessionLost]


def test_a_reload_while_a_certificate_is_tried_out_is_not_undone(
    own: Authority, tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    trial = Trial(own, tunnel, monkeypatch)
    read: list[Settings | None] = []

    async def welcome(_session: Opened) -> None:
        trial.client.reload()
        read.append(trial.client._trust.settings)

    client = trial.run(welcome, lambda _client: any(event is events.Renewed for event, _text in said))
    assert client._trust.settings is read[0] is trial.opened[1].used


def test_what_was_tried_out_is_used_from_then_on(
    own: Authority, tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    trial = Trial(own, tunnel, monkeypatch)

    async def welcome(_session: Opened) -> None:
        pass

    client = trial.run(welcome, lambda _client: any(event is events.Renewed for event, _text in said))
    assert client._trust.settings is trial.opened[1].used


def test_a_reload_while_a_session_is_opened_is_for_it_too(
    own: Authority, tunnel: Tunnel, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    trial = Trial(own, tunnel, monkeypatch)
    monkeypatch.setattr(renewal, "_LOOK", 1000.0)

    async def welcome(_session: Opened) -> None:
        trial.client.reload()

    def until(client: Client) -> bool:
        if len(trial.opened) == 1 and not trial.opened[0].lost.done():
            trial.opened[0].lost.set_result(PeerError("the server hung up"))
        return len(trial.opened) == 2 and client._session is trial.opened[1]  # type: ignore[comparison-overlap]

    client = trial.run(welcome, until)
    assert said
    assert client._trust.settings is trial.opened[1].used


def test_what_fell_due_during_an_outage_is_spread(own: Authority, tmp_path: Path) -> None:
    """Or a whole fleet would ask for its certificates the moment it is back."""
    crt, key = own.robot("011")
    store = CertificateStore(Files(own.ca, crt, key), tmp_path / "state", "011")
    store.load(now())

    async def patience() -> float:
        renewer = renewal.Renewer(store, "011")
        renewer._due -= 3600.0  # an hour ago
        assert renewer.patience == 0
        renewer.connected()
        return renewer.patience or 0.0

    found = [asyncio.run(patience()) for _ in range(20)]
    assert 0 <= min(found) < max(found) <= 60
    assert max(found) > 20
