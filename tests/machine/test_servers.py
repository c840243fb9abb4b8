"""Two servers of a fleet as units of one machine, with a real engine: streams cross both, over kernel TLS."""

import json
from collections.abc import Iterator

import pytest

from .fleet import OPERATOR, Fleet
from .qemu import Background

ONE, TWO, CLIENT = "shadow-server.service", "shadow-server-two.service", "shadow-client@011.service"
SOCKET = "/run/shadow-tunnel-two/011.sock"  # at the second server
SERVICE_PORT = 7000
MIB = 2**20
HOLD = "/run/hold"  # until it is there, the visitor stops reading half-way
_KEPT = "/srv/servers"

_COMMON: dict[str, object] = {"fleet": "test", "engine": "https://127.0.0.1:2379", "keepalive": 10}
_OF_TWO = {**_COMMON, "server_id": "two", "peer": "localhost:2224", "peer_crt": "/etc/shadow-tunnel/two.crt"}


@pytest.fixture
def servers(fleet: Fleet) -> Iterator[Fleet]:
    """Both run; the robot is at the first, and its service exchanges bytes."""
    run, etc = fleet.machine.run, "/etc/shadow-tunnel"
    run(f"modprobe tls; rm -f {HOLD}")
    for what in ("files", "engine", "units"):
        run(f"bash /srv/guest/servers.sh {what}")
    run(
        f"cd {_KEPT} && cp ca.crt {etc}/engine-ca.crt && cp client.crt {etc}/engine.crt && "
        f"cp client.key {etc}/engine.key && cp one.crt {etc}/peer.crt && cp one.key {etc}/peer.key && "
        f"cp two.crt two.key {etc}/"
    )
    fleet.settings("server", **_COMMON, server_id="one", peer="localhost:2223")
    fleet.settings("two", **_OF_TWO)
    fleet.settings("client@011", service=f"data=127.0.0.1:{SERVICE_PORT}")
    try:
        run("systemctl enable shadow-server-peer.socket")
        run(
            "systemctl start shadow-server-peer.socket shadow-server-two.socket shadow-server-two-peer.socket"
        )
        run(f"systemctl start {TWO}")
        fleet.start("011")
        fleet.machine.wait_until(f"[[ -S {SOCKET} ]]")
        yield fleet
    finally:
        run("systemctl stop 'shadow-server-two*'", check=False)
        run("systemctl disable --now shadow-server-peer.socket shadow-server-gate.socket", check=False)
        run(
            "systemctl stop etcd-test 'shadow-client@*'; rm -f /etc/systemd/system/shadow-server-two*",
            check=False,
        )


def kill(fleet: Fleet, unit: str) -> None:
    before = fleet.pid(unit)
    fleet.machine.run(f"kill -KILL {before}")
    fleet.machine.wait_until(f"[[ $(systemctl show --value -p MainPID {unit}) != @(0|{before}) ]]")
    fleet.wait_for(unit, "ActiveState", "^active$")


def restart(fleet: Fleet, unit: str) -> None:
    fleet.machine.run(["systemctl", "restart", unit])


def visitor(fleet: Fleet, size: int, *options: object) -> Background:
    socket = "/run/shadow-tunnel-two/data@011.sock"
    words = ["python3", "/srv/guest/traffic.py", "visit", socket, str(size), *map(str, options)]
    return fleet.machine.background(words, user=OPERATOR)


def test_who_visits_at_one_server_reaches_a_robot_at_another(servers: Fleet) -> None:
    """With ssh, as README has it; both logs say who it was, and the kernel encrypts all the way."""
    cursor = servers.machine.cursor()
    ssh = servers.ssh("id -un; cat").replace("/run/shadow-tunnel/", "/run/shadow-tunnel-two/")
    with servers.machine.background(ssh, user=OPERATOR) as session:
        assert session.ask(b"hello\n") == f"{OPERATOR}\n".encode()
        uid = servers.machine.run(["id", "-u", OPERATOR]).stdout.strip()
        for unit in (TWO, ONE):
            servers.wait_for_event(cursor, "stream .* started", "-u", unit)
            (said,) = [event for event in servers.events(cursor, "-u", unit) if "STREAM" in event]
            assert (said["VISITOR_UID"], said["VISITOR_USER"]) == (uid, OPERATOR)
            assert (said["VISITOR_HOST"], said["KTLS"], said["ROBOT"]) == ("two", "yes", "011")
            assert int(said["VISITOR_PID"]) > 1
        assert session.finish()[0] == 0


def test_a_stream_across_both_outlives_restarts_and_crashes_of_either(servers: Fleet) -> None:
    """Full buffers both ways all the while; to the byte."""
    cursor = servers.machine.cursor()
    size = 8 * MIB
    serve = ["python3", "/srv/guest/traffic.py", "serve", str(SERVICE_PORT), str(size)]
    with servers.machine.background(serve) as service:
        servers.machine.wait_until(f"ss -tlnH 'sport = {SERVICE_PORT}' | grep .")
        with visitor(servers, size, "--hold", HOLD) as visiting:
            for unit in (ONE, TWO, CLIENT):
                servers.wait_for(unit, "NFileDescriptorStore", "^2$")  # the stream, and the progress table
            restart(servers, ONE)
            restart(servers, TWO)
            kill(servers, TWO)
            kill(servers, ONE)
            servers.machine.run(["systemctl", "restart", ONE, TWO])
            servers.machine.run(f"touch {HOLD}")
            status, output, errors = visiting.finish(600)
        assert status == 0, errors
        here = json.loads(output)
        assert service.process.stdout is not None
        there = json.loads(service.process.stdout.readline())
    for name in ("received", "received_sha256"):
        assert here[name] == there[name.replace("received", "sent")]
        assert there[name] == here[name.replace("received", "sent")]
    assert here["received"] == size
    for unit in (ONE, TWO):
        servers.wait_for_event(cursor, f"ended: {size} bytes to the robot, {size} bytes from it", "-u", unit)
        servers.wait_for(unit, "NFileDescriptorStore", "^1$")


@pytest.mark.slow
def test_a_restart_of_the_visitors_server_keeps_who_waits_and_the_socket(servers: Fleet) -> None:
    """The robot is nowhere for the moment: whoever waits for it is served when it comes back."""
    inode = servers.machine.run(["stat", "-c", "%i", SOCKET]).stdout
    servers.settings("two", **_OF_TWO, start_timeout=600)
    restart(servers, TWO)
    servers.machine.run(["systemctl", "stop", CLIENT])
    line = servers.ssh("echo here").replace("/run/shadow-tunnel/", "/run/shadow-tunnel-two/")
    with servers.machine.background(line, user=OPERATOR) as waiting:
        servers.machine.wait_until(f"ss -xpH state established | grep -F {SOCKET}")
        restart(servers, TWO)
        assert servers.machine.run(["stat", "-c", "%i", SOCKET]).stdout == inode
        servers.machine.run(["systemctl", "start", CLIENT])
        status, output, errors = waiting.finish()
    assert (status, output) == (0, b"here\n"), errors
