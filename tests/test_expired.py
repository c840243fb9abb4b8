"""Certificates that expire while their robots are connected: who is told, and what may still be done."""

import asyncio
import contextlib
import datetime as dt
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shadow.ctl.tables import robot as paragraph
from shadow.ctl.tables import robots as table
from shadow.daemon.config import parse_server
from shadow.errors import IdentityError
from shadow.pki.certificates import Purpose, load_certificates, load_credentials, validity
from shadow.pki.grace import renewable_until
from shadow.pki.keys import new_key
from shadow.pki.request import make_request
from shadow.relay.durable import DurableStreams
from shadow.relay.pool import Relay
from shadow.server.server import Server
from shadow.systemd.fdstore import Store
from shadow.transport.link import KernelLink
from shadow.wire.codec import encode
from tests.support import Authority, Tunnel, now, wait_for
from tests.support.call import Call
from tests.support.peer import PING, PONG, REFUSED, WELCOME, Peer, client_context
from tests.support.signer_socket import SignerSocket, ca_folder

DAY = 86400.0  # seconds
SIGNED = 11


@pytest.fixture
def signer(own: Authority, tmp_path: Path) -> Iterator[SignerSocket]:
    with SignerSocket(tmp_path / "signer.sock", ca_folder(own, tmp_path / "ca")) as made:
        yield made


def ending(own: Authority, life: float, left: float) -> tuple[Path, Path]:
    """A certificate of robot 011 that lives so many seconds, of which so many are left."""
    return own.issue("ending", "011", Purpose.ROBOT, days=((left - life) / DAY, left / DAY))


def say_ping(peer: Peer) -> tuple[int, dict[str, Any]]:
    """A sign of life, a few times in a second; what the server answers."""
    time.sleep(0.1)
    with contextlib.suppress(OSError):  # it may have hung up, and its last words are there to be read
        peer.send(PING, stamp=1)
    return peer.receive()


def keep_talking(peer: Peer, until: dt.datetime) -> None:
    while now() <= until:
        assert say_ping(peer)[0] == PONG


def hear_refusal(peer: Peer) -> dict[str, Any]:
    answer = wait_for(lambda: (heard := say_ping(peer))[0] != PONG and heard, "the server to end the session")
    assert answer[0] == REFUSED
    refusal: dict[str, Any] = answer[1]
    return refusal


@pytest.mark.long
def test_without_a_signer_the_session_ends_with_the_certificate(own: Authority, tunnel: Tunnel) -> None:
    tunnel.authority = own
    server = tunnel.start_server("--keepalive=0.5")
    pair = ending(own, 60, 5)
    with Peer(tunnel.port, client_context(own, pair)) as peer:
        assert peer.hello()[0] == WELCOME
        end = validity(load_certificates(pair[0], "robot")[0])[1]
        why = f"its certificate expired on {end:%Y-%m-%d %H:%M:%S} UTC"
        keep_talking(peer, end - dt.timedelta(seconds=1))
        body = hear_refusal(peer)
        assert (body["code"], body["text"]) == ("expired", why)
        server.wait_for_log(f"robot 011 disconnected: {why}")
    assert now() >= end
    wait_for(lambda: not tunnel.socket_path().exists(), "the socket to vanish")


@pytest.mark.long
def test_with_a_signer_it_may_be_renewed_for_a_while(
    own: Authority, tunnel: Tunnel, signer: SignerSocket
) -> None:
    tunnel.authority = own
    server = tunnel.start_server_with_api("--keepalive=0.5", f"--signer={signer.path}")
    pair = ending(own, 120, 5)  # so it may be renewed for 40 s more
    credentials = load_credentials(own.ca, *pair, Purpose.ROBOT, now())
    end = validity(credentials.chain[0])[1]
    with Peer(tunnel.port, client_context(own, pair)) as peer:
        assert peer.hello()[0] == WELCOME
        keep_talking(peer, end)
        with tunnel.visit() as visitor:
            assert visitor.recv(1) == b""  # at once, and not after the patience for a robot that dials
        server.wait_for_log(r"visitor .* turned away: the robot's certificate expired on ")
        with Call(tunnel.ldir / "io.shadowtunnel.Server") as call:
            facts = call.get("Describe", {"name": "011"})
        assert "kernel, certificate EXPIRED" in table([facts["robot"] | {"kernelTls": True}])
        assert "EXPIRED: no visitor gets through" in paragraph(facts)
        keep_talking(peer, now() + dt.timedelta(seconds=2))
        server.wait_for_log(
            r"ERROR: robot 011 is connected, but its certificate expired on .*may have it renewed"
        )
        peer.sock.sendall(encode(make_request("011", new_key(), credentials)))
        while (answer := peer.receive())[0] == PONG:
            pass
        assert answer[0] == SIGNED
    assert server.log.count("is connected, but its certificate expired") == 1


@pytest.mark.long
def test_the_while_is_over_some_day(own: Authority, tunnel: Tunnel, signer: SignerSocket) -> None:
    tunnel.authority = own
    server = tunnel.start_server("--keepalive=0.5", f"--signer={signer.path}")
    pair = ending(own, 9, 4)
    last = renewable_until(load_certificates(pair[0], "robot")[0])
    with Peer(tunnel.port, client_context(own, pair)) as peer:
        assert peer.hello()[0] == WELCOME
        keep_talking(peer, last - dt.timedelta(seconds=1))
        body = hear_refusal(peer)
        assert body["code"] == "expired"
        assert body["text"].startswith("its certificate expired on ")
        server.wait_for_log("robot 011 disconnected: its certificate expired on ")
    assert now() >= last


@pytest.mark.parametrize(
    ("late", "renews", "good"), [(0.5, True, True), (0.5, False, False), (1.5, True, False)], ids=str
)
def test_the_while_outlives_a_restart_of_the_server(
    own: Authority, tmp_path: Path, *, late: float, renews: bool, good: bool
) -> None:
    """The daemon before has left a robot whose certificate, of three days, expired so many days ago."""
    crt, _key = own.issue("late", "011", Purpose.ROBOT, days=(-3 - late, -late))
    pair = own.server()
    words = [f"--ca={own.ca}", f"--crt={pair[0]}", f"--key={pair[1]}", f"--ldir={tmp_path}", "--lport=1"]
    words += [f"--signer={tmp_path / 'signer.sock'}"] if renews else []
    left = KernelLink(socket.socket(), "suite", load_certificates(crt, "robot"))

    async def admit() -> str:
        relay = Relay()
        try:
            return (
                Server(parse_server(words, {}), DurableStreams(relay, Store()))._admission.readmit(left).name
            )
        finally:
            relay.stop()
            left.sock.close()

    with contextlib.nullcontext() if good else pytest.raises(IdentityError, match="expired"):
        assert asyncio.run(admit()) == "011"
