"""Robots whose certificates are revoked, on a server that runs: cut off at the reload, and refused."""

import asyncio
import re
import shlex
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from shadow.ca.folder import index_file
from shadow.cli import ca as cas
from shadow.daemon.config import parse_server
from shadow.errors import Refused
from shadow.pki.certificates import Purpose, host_names, load_certificates, load_credentials
from shadow.pki.files import write_files
from shadow.relay.durable import DurableStreams
from shadow.relay.pool import Relay
from shadow.server.server import Server
from shadow.systemd.fdstore import Store
from shadow.transport.link import KernelLink
from tests.support import Authority, Daemon, Tunnel, echo, make_list, now, serving, wait_for
from tests.support.peer import PING, PONG, REFUSED, WELCOME, Peer, client_context
from tests.support.signer_socket import ca_folder


@pytest.fixture
def crl(own: Authority) -> Path:
    return make_list(own)


def serial(own: Authority, robot: str) -> int:
    return load_certificates(own.robot(robot)[0], "robot")[0].serial_number


def reload(server: Daemon, pattern: str = "reloaded", count: int = 1) -> None:
    server.process.send_signal(signal.SIGHUP)
    server.wait_for_log(pattern, count)


def test_a_robot_that_is_revoked_loses_everything_it_has(own: Authority, crl: Path, tmp_path: Path) -> None:
    with Tunnel(own, tmp_path) as tunnel, serving(echo) as service:
        server = tunnel.start_server(f"--crl={crl}")
        words = f"--lport={service.port}", "--lhost=127.0.0.1"
        client = tunnel.start_client(*words, robot="011")
        tunnel.start_client(*words, robot="012")
        with tunnel.visit("011") as visitor, tunnel.visit("012") as other:
            for sock in (visitor, other):
                sock.sendall(b"x")
                assert sock.recv(1) == b"x"
            make_list(own, serial(own, "011"), number=2)
            reload(server)
            assert visitor.recv(1) == b""
            wait_for(lambda: not tunnel.socket_path("011").exists(), "the socket to vanish")
            other.sendall(b"y")
            assert other.recv(1) == b"y"
            why = rf"certificate {serial(own, '011'):040x} was revoked on {now():%Y-%m-%d} "
            server.wait_for_log(f"robot 011 disconnected: {why}")
            server.wait_for_log(r"stream 1 cut off \(the robot's certificate was revoked\)")
            server.wait_for_log("cut off robots with revoked certificates: 2 sessions and streams ended")
            client.wait_for_log(rf"no session with .*: refused \(revoked\): {why}")
            server.wait_for_log(rf"robot '011' from .* refused \(revoked\): {why}")
            assert client.process.poll() is None  # a mistake can be mended without a visit
        assert "012 disconnected" not in server.log


def test_what_is_about_to_be_connected(own: Authority, crl: Path, tmp_path: Path) -> None:
    """A standby, a visitor who waits, and one whose START has no answer yet."""
    with Tunnel(own, tmp_path) as tunnel:
        server = tunnel.start_server(f"--crl={crl}")
        context = client_context(own, own.robot())
        with Peer(tunnel.port, context) as control:
            session = control.hello()[1]["session"]
            with Peer(tunnel.port, context) as first, Peer(tunnel.port, context) as second:
                for data in (first, second):
                    assert data.hello(role="data", session=session)[0] == WELCOME
                starting = tunnel.visit()
                make_list(own, serial(own, "011"), number=2)
                reload(server)
                assert control.receive()[0] == REFUSED
                assert control.closed()
                with starting:
                    assert starting.recv(1) == b""
                server.wait_for_log("visitor with uid .* turned away: the robot disconnected")
                # One heard START, one nothing; both end.
                for data in (first, second):
                    assert data.closed()


def test_an_old_certificate_of_a_robot_that_has_a_new_one(own: Authority, crl: Path, tmp_path: Path) -> None:
    """Only what came with the old one ends: its standby does, the session of the new one goes on."""
    with Tunnel(own, tmp_path) as tunnel:
        server = tunnel.start_server(f"--crl={crl}")
        old = client_context(own, own.robot())
        number = serial(own, "011")
        own.issue("new", "011", Purpose.ROBOT)
        new = client_context(own, (own.folder / "new.crt", own.folder / "new.key"))
        with Peer(tunnel.port, new) as control:
            session = control.hello()[1]["session"]
            with Peer(tunnel.port, old) as standby:
                assert standby.hello(role="data", session=session)[0] == WELCOME
                make_list(own, number, number=2)
                reload(server)
                assert standby.closed()
                control.send(PING, stamp=1)
                assert control.receive()[0] == PONG


def test_revoked_before_the_start(own: Authority, tmp_path: Path) -> None:
    crl = make_list(own, serial(own, "011"))
    with Tunnel(own, tmp_path) as tunnel:
        tunnel.start_server(f"--crl={crl}")
        with Peer(tunnel.port, client_context(own, own.robot())) as peer:
            kind, body = peer.hello()
            assert (kind, body["code"]) == (REFUSED, "revoked")
        with Peer(tunnel.port, client_context(own, own.robot("012"))) as peer:
            assert peer.hello("012")[0] == WELCOME


def with_middle(own: Authority) -> tuple[Authority, Path]:
    """An intermediate that no robot shows, and the server's file of CAs, which has it."""
    middle, ca = Authority(own.folder / "middle", "Middle", own), own.folder / "both.crt"
    ca.write_bytes(own.ca.read_bytes() + middle.ca.read_bytes())
    return middle, ca


def test_a_revoked_intermediate_that_no_robot_shows(own: Authority, crl: Path, tmp_path: Path) -> None:
    middle, ca = with_middle(own)
    context = client_context(own, middle.robot())
    with Tunnel(own, tmp_path) as tunnel:
        server = tunnel.start_server(f"--crl={crl}", f"--ca={ca}")
        with Peer(tunnel.port, context) as peer:
            assert peer.hello()[0] == WELCOME
            make_list(own, middle.certificate.serial_number, number=2)
            reload(server)
            kind, body = peer.receive()
            assert (kind, body["code"]) == (REFUSED, "revoked")
            assert f"{middle.certificate.serial_number:040x}" in body["text"]
        with Peer(tunnel.port, context) as peer:
            kind, body = peer.hello()
            assert (kind, body["code"]) == (REFUSED, "revoked")


@pytest.mark.parametrize("shown", ["leaf", "both"])
def test_a_revoked_intermediate_of_what_is_resumed(own: Authority, tmp_path: Path, shown: str) -> None:
    """The daemon before this one may have noted down less than what was verified."""
    middle, ca = with_middle(own)
    crt, _key = middle.robot()
    words = f"--ca={ca}", f"--ldir={tmp_path}", f"--crl={make_list(own, middle.certificate.serial_number)}"
    pair = own.server()
    config = parse_server([*words, f"--crt={pair[0]}", f"--key={pair[1]}", "--lport=1"], {})
    left = KernelLink(socket.socket(), "suite", load_certificates(crt, "robot"))
    if shown == "both":
        left.chain = [*left.chain, middle.certificate]

    async def run() -> None:
        relay = Relay()
        try:
            Server(config, DurableStreams(relay, Store()))._admission.readmit(left)
        finally:
            relay.stop()
            left.sock.close()

    with pytest.raises(Refused, match="revoked"):
        asyncio.run(run())


def test_a_broken_list_changes_nothing(own: Authority, tmp_path: Path) -> None:
    crl = make_list(own, serial(own, "011"))
    with Tunnel(own, tmp_path) as tunnel:
        server = tunnel.start_server(f"--crl={crl}")
        crl.write_text("broken")
        reload(server, rf"reload failed, the old files stay in use: revocation list {re.escape(str(crl))}")
        crl.unlink()
        crl.symlink_to("nowhere")
        reload(server, f"reload failed.*{re.escape(str(crl))}: No such file")
        with Peer(tunnel.port, client_context(own, own.robot())) as peer:
            assert peer.hello()[0] == REFUSED


def test_an_older_list_lets_nobody_in_again(own: Authority, tmp_path: Path) -> None:
    old = make_list(own).read_bytes()
    crl = make_list(own, serial(own, "011"), number=2)
    with Tunnel(own, tmp_path) as tunnel:
        server = tunnel.start_server(f"--crl={crl}")
        crl.write_bytes(old)
        reload(server, "has an older one, or none, of a CA that is trusted: list 2 of '[^']+' stays in use")
        server.wait_for_log("reloaded")
        with Peer(tunnel.port, client_context(own, own.robot())) as peer:
            assert peer.hello()[0] == REFUSED


def test_a_list_that_has_vanished_lets_nobody_in_again(own: Authority, tmp_path: Path) -> None:
    crl = make_list(own, serial(own, "011"), number=2)
    with Tunnel(own, tmp_path) as tunnel:
        server = tunnel.start_server(f"--crl={crl}")
        server.wait_for_log(f"sockets in .*; 1 certificate revoked by list 2 in {re.escape(str(crl))}\n")
        crl.unlink()
        reload(
            server,
            f"WARNING: revocation list {re.escape(str(crl))} has vanished; the one in use stays in use",
        )
        server.wait_for_log("reloaded: .*; 1 certificate revoked by list 2 in ")
        with Peer(tunnel.port, client_context(own, own.robot())) as peer:
            assert peer.hello()[0] == REFUSED


def test_no_list_yet_and_then_one(own: Authority, tmp_path: Path) -> None:
    """As a server is set up: the list is named before there is one."""
    crl = own.folder / "it.crl"
    with Tunnel(own, tmp_path) as tunnel:
        server = tunnel.start_server(f"--crl={crl}")
        server.wait_for_log(f"accepting robots .*; nobody is revoked: there is no {re.escape(str(crl))}\n")
        reload(server, f"reloaded: .*; nobody is revoked: there is no {re.escape(str(crl))}\n")
        with Peer(tunnel.port, client_context(own, own.robot())) as peer:
            assert peer.hello()[0] == WELCOME
            make_list(own, serial(own, "011"), number=2).rename(crl)
            reload(server, f"reloaded: .*; 1 certificate revoked by list 2 in {re.escape(str(crl))}\n")
            assert peer.receive()[0] == REFUSED
            assert peer.closed()
        assert "WARNING: revocation list" not in server.log


def test_without_the_option_a_reload_says_so(own: Authority, tmp_path: Path) -> None:
    with Tunnel(own, tmp_path) as tunnel:
        reload(tunnel.start_server(), "reloaded: .*; nobody is revoked: no --crl\n")


def unreadable(crl: Path) -> None:
    crl.mkdir()


def of_another_ca(crl: Path) -> None:
    shutil.copy(make_list(Authority(crl.parent / "other", "Other CA")), crl)


def a_link_to_nowhere(crl: Path) -> None:
    crl.symlink_to("nowhere")


def in_no_folder(crl: Path) -> None:
    crl.parent.rmdir()


@pytest.mark.parametrize("how", [unreadable, of_another_ca, a_link_to_nowhere, in_no_folder])
def test_no_start_with_a_list_that_cannot_be_read(
    own: Authority, tmp_path: Path, how: Callable[[Path], None]
) -> None:
    crl = tmp_path / "lists" / "it.crl"
    crl.parent.mkdir()
    how(crl)
    with Tunnel(own, tmp_path) as tunnel:
        server = tunnel.daemon(tunnel.server_arguments(f"--crl={crl}"))
        assert server.wait() == 78
        assert f"shadow-server: revocation list {crl}" in server.log


def test_the_commands_that_are_advised_do_what_they_should(own: Authority, tmp_path: Path) -> None:
    """Also where the certificate that ends lies in the CA's folder: nobody is to need --force."""
    folder = ca_folder(own, tmp_path / "ca")
    for crt, _key in (own.server(days=(-100, 3.5)), own.robot("011", days=(-100, 29.5))):
        write_files([index_file(folder, load_certificates(crt, "it")[0])], force=False)
    with Tunnel(own, tmp_path) as tunnel:
        server = tunnel.start_server(f"--crl={make_list(own, days=-1)}")
        client = tunnel.start_client("--lport=9")
        advice = [
            daemon.wait_for_log(pattern + ".*make a new one with `shadow-ca (.*)`")[1]
            for daemon, pattern in (
                (server, "certificate .*server.crt expires"),
                (client, "certificate .*011.crt expires"),
                (server, "revocation list .* HAS EXPIRED"),
            )
        ]
    assert [words.split()[0] for words in advice] == ["server", "robot", "crl"]
    for _twice in range(2):
        for words in advice:
            assert cas.main([f"--dir={folder}", *shlex.split(words)]) == 0
    before = load_certificates(own.server()[0], "server")[0]
    new = load_credentials(own.ca, folder / "server.crt", folder / "server.key", Purpose.SERVER, now())
    assert host_names(new.chain[0]) == host_names(before)
    load_credentials(own.ca, folder / "011.crt", folder / "011.key", Purpose.ROBOT, now())


def test_an_overdue_list_and_a_certificate_near_its_end_are_warned_of(own: Authority, tmp_path: Path) -> None:
    crl = make_list(own, serial(own, "011"), days=-1)
    own.server(days=(-100, 3.5))
    own.robot("012", days=(-100, 29.5))
    with Tunnel(own, tmp_path) as tunnel:
        server = tunnel.start_server(f"--crl={crl}")
        server.wait_for_log(
            rf"ERROR: revocation list {crl} HAS EXPIRED \(.*\): make a new one with `shadow-ca"
        )
        server.wait_for_log(r"WARNING: certificate .*server.crt expires in 3 days")
        client = tunnel.daemon(tunnel.client_arguments("--lport=9", robot="012"))
        client.wait_for_log("robot 012 dials")
        client.wait_for_log(
            r"WARNING: certificate .*012.crt expires in 29 days .*`shadow-ca robot 012 --renew`"
        )
        with Peer(tunnel.port, client_context(own, own.robot())) as peer:
            assert peer.hello()[0] == REFUSED
