"""Who is let in as a robot, and what those hear who are not."""

import pytest

from shadow.pki.certificates import Purpose
from tests.support import Daemon, Tunnel
from tests.support.peer import HELLO, REFUSED, WELCOME, Peer, client_context, connect


@pytest.fixture
def server(tunnel: Tunnel) -> Daemon:
    return tunnel.start_server()


def test_a_robot_for_which_there_is_no_room_is_told_when_to_come_back(tunnel: Tunnel) -> None:
    tunnel.start_server("--max-robots=1")
    authority = tunnel.authority
    with Peer(tunnel.port, client_context(authority, authority.robot())) as first:
        assert first.hello()[0] == WELCOME
        client = tunnel.daemon(tunnel.client_arguments("--lport=9", robot="012"))
        wait = client.wait_for_log(r"refused \(limit\): 1 robots are connected .*next try in ([\d.]+) s")
        assert 60 <= float(wait[1]) <= 90


def test_a_robot_cannot_claim_anothers_name(tunnel: Tunnel, server: Daemon) -> None:
    with connect(tunnel, "012") as impostor:
        kind, answer = impostor.hello("011")
        assert (kind, answer["code"]) == (REFUSED, "name-mismatch")
        assert impostor.closed()
    assert not list(tunnel.ldir.iterdir())
    server.wait_for_log("robot '011' from .* refused .name-mismatch.: the certificate is for '012'")


@pytest.mark.parametrize("name", ["../011", "a/b", "..", "x" * 65, ""])
def test_names_in_certificates_are_checked_too(tunnel: Tunnel, server: Daemon, name: str) -> None:
    stem = "odd" + name.replace("/", "_").replace(".", "-")
    try:
        pair = tunnel.authority.issue(stem[:40], name, Purpose.ROBOT)
    except ValueError:
        return  # X.520 does not allow such a common name either: nobody can have it
    with Peer(tunnel.port, client_context(tunnel.authority, pair)) as peer:
        kind, answer = peer.hello(name)
        assert kind == REFUSED
        assert answer["code"] == "bad-name"
    assert not list(tunnel.ldir.iterdir())
    server.wait_for_log("refused .bad-name.: ")


@pytest.mark.parametrize("claimed", ["peer:a", "a", "011"])
def test_a_server_among_its_peers_is_no_robot(tunnel: Tunnel, server: Daemon, claimed: str) -> None:
    """Its certificate is good for a client of TLS."""
    with Peer(tunnel.port, client_context(tunnel.authority, tunnel.authority.peer("a"))) as peer:
        kind, answer = peer.hello(claimed)
        assert (kind, answer["code"]) == (REFUSED, "bad-name")
        assert "'peer:a'" in str(answer)
        assert peer.closed()
    assert not list(tunnel.ldir.iterdir())
    server.wait_for_log("refused .bad-name.: robot name 'peer:a' is not allowed")


def test_a_robot_of_a_later_version(tunnel: Tunnel, server: Daemon) -> None:
    with connect(tunnel) as peer:
        peer.send(HELLO, version=2, role="control", robot="011", services=[""])
        kind, answer = peer.receive()
        assert (kind, answer["code"]) == (REFUSED, "version")


def test_data_channels_need_a_session_of_the_same_robot(tunnel: Tunnel, server: Daemon) -> None:
    with connect(tunnel) as control:
        session = control.hello()[1]["session"]
        for robot, claimed in (("011", "wrong"), ("011", ""), ("012", session)):
            with connect(tunnel, robot) as data:
                kind, answer = data.hello(robot, role="data", session=claimed)
                assert (kind, answer["code"]) == (REFUSED, "no-session")


def test_the_limit_of_robots(tunnel: Tunnel) -> None:
    server = tunnel.start_server("--max-robots=1")
    with connect(tunnel) as first, connect(tunnel, "012") as second:
        assert first.hello()[0] == WELCOME
        kind, answer = second.hello("012")
        assert (kind, answer["code"]) == (REFUSED, "limit")
    server.wait_for_log("robot 011 disconnected")
    with connect(tunnel, "012") as second:
        assert second.hello("012")[0] == WELCOME


def test_refused_robots_do_not_count_against_the_limit(tunnel: Tunnel) -> None:
    tunnel.start_server("--max-robots=1")
    with connect(tunnel, "012") as refused:
        assert refused.hello("012", services=["a/b"])[0] == REFUSED
    with connect(tunnel) as peer:
        assert peer.hello()[0] == WELCOME
