"""What has to be right before a server joins its fleet, and the port that it takes for the other servers."""

import asyncio
import datetime as dt
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench.processes import free_port
from shadow.daemon.config import parse_server
from shadow.errors import ConfigError, LocalError, ShadowError
from shadow.fleet.joining import Member
from shadow.fleet.peering import Peering
from shadow.pki.certificates import Purpose
from shadow.pki.presence import NOT_THERE
from shadow.relay.durable import DurableStreams
from shadow.relay.pool import Relay
from shadow.server import handover
from shadow.server.server import Server
from shadow.systemd.fdstore import Store
from tests.support import Authority, Tunnel


class Setup:
    """Server a of a fleet, whose files may be wrong; nobody asks its engine."""

    def __init__(self, own: Authority, folder: Path) -> None:
        self.own, self.tunnel, self.port = own, Tunnel(own, folder), free_port()
        self.engine = Authority(folder / "engine", "Engine CA")
        self.crt, self.key = folder / "peer.crt", folder / "peer.key"
        self.install(*own.peer("a"))

    def install(self, crt: Path, key: Path) -> None:
        shutil.copy(crt, self.crt)
        shutil.copy(key, self.key)

    def issue(self, name: str, purpose: Purpose, days: tuple[float, float] = (-1, 30)) -> None:
        self.install(*self.own.issue("other", name, purpose, days=days))

    def member(self) -> tuple[Any, Member]:
        crt, key = self.engine.robot("a")
        config = parse_server(
            [
                *self.tunnel.server_arguments()[1:], "--fleet=f", "--server-id=a", "--engine=https://a:2379",
                f"--engine-ca={self.engine.ca}", f"--engine-crt={crt}", f"--engine-key={key}",
                f"--peer=a.example:{self.port}", f"--peer-crt={self.crt}", f"--peer-key={self.key}",
            ],
            {},
        )  # fmt: skip
        assert config.membership is not None
        return config, Member(config.membership, config)

    def refuses(self, why: str) -> None:
        with pytest.raises(ConfigError, match=why) as caught:
            self.member()
        assert "\n" not in str(caught.value)
        assert caught.value.exit_status == 78


@pytest.fixture
def setup(own: Authority, tmp_path: Path) -> Setup:
    return Setup(own, tmp_path)


def ends(member: Member) -> list[int]:
    """In how many days what we show to the other servers ends."""
    found = [term for term in member.terms if "peer.crt" in term.what]
    assert [term.advice for term in found] == ["make a new one with `shadow-ca peer a --renew`"]
    return [round((term.until - dt.datetime.now(dt.UTC)) / dt.timedelta(days=1)) for term in found]


def test_who_has_nothing_to_show_the_other_servers(setup: Setup) -> None:
    setup.crt.unlink()
    setup.key.unlink()
    setup.refuses(
        r"certificate .*peer\.crt and private key .*peer\.key: No such file .* `shadow-ca peer NAME`"
    )


def test_a_key_that_the_service_manager_has_not_found(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.key.write_bytes(NOT_THERE)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(setup.key.parent))
    setup.refuses(r"private key .*peer\.key \(or what LoadCredential= of the unit names\): No such file")


@pytest.mark.parametrize(
    ("name", "purpose", "why"),
    [
        (
            "peer:b",
            Purpose.PEER,
            "the certificate of server b for its peers, and this is a: `shadow-ca peer a`",
        ),
        ("a", Purpose.ROBOT, "is a robot's certificate; a peer needs one made by `shadow-ca peer NAME`"),
        ("a", Purpose.SERVER, "is a server's certificate; a peer needs one made by `shadow-ca peer NAME`"),
    ],
)
def test_what_is_not_for_the_other_servers(setup: Setup, name: str, purpose: Purpose, why: str) -> None:
    setup.issue(name, purpose)
    setup.refuses(rf"peer\.crt .*{why}")


def test_one_of_another_ca_or_out_of_date(setup: Setup) -> None:
    setup.issue("peer:a", Purpose.PEER, days=(-2, -1))
    setup.refuses(r"peer\.crt.* expired")
    setup.install(*setup.engine.peer("a"))
    setup.refuses(r"peer\.crt was not issued by")


def test_a_reload_reads_it_again_or_changes_nothing(setup: Setup) -> None:
    _, member = setup.member()
    assert ends(member) == [30]
    setup.issue("peer:a", Purpose.PEER, days=(-1, 50))
    member.reload()
    assert ends(member) == [50]
    for name, days in ("peer:b", 60), ("peer:a", -1):
        setup.issue(name, Purpose.PEER, days=(-2, days))
        with pytest.raises(ConfigError, match=r"peer\.crt"):
            member.reload()
        assert ends(member) == [50]


def test_the_port_is_open_until_we_leave(setup: Setup) -> None:
    _, member = setup.member()
    settings, robots = SimpleNamespace(ca=[]), SimpleNamespace()
    trust = SimpleNamespace(revocation=lambda _link: None, settings=settings)
    durable = SimpleNamespace(store=Store())
    server: Any = SimpleNamespace(durable=durable, trust=trust, robots=robots)
    member.prepare(server)
    socket.create_connection(("127.0.0.1", setup.port), 30).close()
    asyncio.run(member.close())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", setup.port), 30)


def test_the_gate_closes_last(setup: Setup) -> None:
    """Who comes by it while we leave the fleet waits for the next daemon, as at a robot's socket."""
    closed: list[str] = []

    async def leave(*, leaving: bool) -> None:
        closed.append(f"fleet, leaving: {leaving}")

    _, member = setup.member()
    parts: dict[str, Any] = {
        "_gate": SimpleNamespace(close=lambda: closed.append("gate")),
        "_fleet": SimpleNamespace(close=leave),
        "_server": SimpleNamespace(durable=SimpleNamespace(store=Store())),
    }
    vars(member).update(parts)
    asyncio.run(member.close())
    assert closed == ["fleet, leaving: True", "gate"]


@pytest.mark.parametrize(
    ("names", "error", "why"),
    [
        (["shadow-peer"], ConfigError, "socket 'shadow-peer' from systemd does not listen"),
        (["shadow-gate"], ConfigError, "socket 'shadow-gate' from systemd does not listen"),
        ([], LocalError, "Address already in use; is another server running"),
    ],
)
def test_a_port_of_no_use_costs_no_robot_its_session(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, names: list[str], error: type[ShadowError], why: str
) -> None:
    """What the daemon before us has left waits for one that can start."""
    taken_up: list[str] = []
    monkeypatch.setattr(handover, "resume", lambda *_: taken_up.append("sessions"))
    monkeypatch.setattr(DurableStreams, "resume", lambda *_: taken_up.append("streams"))

    async def body() -> None:
        config, member = setup.member()
        ours, theirs = socket.socketpair()
        store = Store()
        store._passed = [(theirs.detach(), name) for name in names]
        relay = Relay()
        try:
            server = Server(config, DurableStreams(relay, store), [member])
            with pytest.raises(error, match=why):
                await server.start()
            await server.stop()
        finally:
            relay.stop()
            ours.close()
            theirs.close()

    with socket.create_server(("", setup.port)):
        asyncio.run(body())
    assert taken_up == []


def test_the_port_is_closed_when_nobody_accepts_there_any_more(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the loop listens to whatever gets the descriptor's number next."""
    watched: list[bool] = []
    really = Peering.close

    def close(peering: Peering) -> None:
        watched.extend(map(asyncio.get_running_loop().remove_reader, peering._sockets))
        really(peering)

    monkeypatch.setattr(Peering, "close", close)

    async def body() -> None:
        config, member = setup.member()
        relay = Relay()
        try:
            server = Server(config, DurableStreams(relay, Store()), [member])
            await server.start()
            await server.stop()
        finally:
            relay.stop()

    asyncio.run(body())
    assert watched
    assert not any(watched)
