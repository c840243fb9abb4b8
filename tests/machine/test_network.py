"""A robot behind NAT, on a network as robots have it: slow, lossy, gone, and back with another address."""

from collections.abc import Iterator

import pytest

from . import nat
from .fleet import OPERATOR, PORT, Fleet

SERVER, CLIENT = "shadow-server.service", "shadow-client@011.service"


@pytest.fixture
def behind_nat(fleet: Fleet) -> Iterator[Fleet]:
    """Robot 011 is behind NAT, and connected."""
    with nat.network(fleet):
        fleet.settings("client@011", rhost=nat.OUTSIDE, rport=PORT, server_name="localhost")
        fleet.drop_in(CLIENT, nat.DROP_IN)
        fleet.start("011")
        yield fleet


def cut(fleet: Fleet) -> None:
    """The link is dead and nobody is told: no carrier is lost, packets just do not arrive."""
    fleet.machine.run("tc -n nat qdisc change dev wan root netem loss 100%")
    fleet.machine.run("tc qdisc change dev uplink root netem loss 100%")


def mend(fleet: Fleet, *, address: str) -> None:
    """The link is back, with another address: what the old one had is forgotten."""
    fleet.machine.run(f"ip -n nat addr flush dev wan && ip -n nat addr add {address}/24 dev wan")
    fleet.machine.run("tc -n nat qdisc change dev wan root netem delay 25ms 5ms loss 1%")
    fleet.machine.run("tc qdisc change dev uplink root netem delay 25ms 5ms loss 1%")


def assert_reachable(fleet: Fleet) -> None:
    """Over ssh, and it really is the robot's side of the NAT."""
    said = fleet.machine.run(
        fleet.ssh("id -un; hostname -I 2>/dev/null || ip -br addr"), user=OPERATOR
    ).stdout
    assert said.startswith("alice\n")
    assert nat.INSIDE in said


def test_ssh_through_nat_delay_and_loss(behind_nat: Fleet) -> None:
    assert_reachable(behind_nat)
    line = f"head -c 2M /dev/urandom >data; sha256sum <data; {behind_nat.ssh('sha256sum')} <data"
    sums = behind_nat.machine.run(f"cd ~ && {line}", user=OPERATOR).stdout.split()
    assert sums[0] == sums[2]


@pytest.mark.slow
def test_the_robot_returns_by_itself_from_another_address(behind_nat: Fleet) -> None:
    fleet = behind_nat
    client, cursor = fleet.pid(CLIENT), fleet.machine.cursor()
    cut(fleet)
    fleet.wait_for_event(cursor, "^robot 011 disconnected: nothing heard", "-u", SERVER)
    fleet.wait_for_event(cursor, "nothing heard|next try", "-u", CLIENT)
    fleet.machine.wait_until("[[ ! -e /run/shadow-tunnel/011.sock ]]")
    mend(fleet, address="10.77.0.3")
    fleet.wait_for_event(cursor, r"^robot 011 connected from .*10\.77\.0\.3", "-u", SERVER)
    fleet.wait_for_robot()
    assert_reachable(fleet)
    assert fleet.pid(CLIENT) == client


def test_a_robot_that_lost_power_takes_its_name_over(behind_nat: Fleet) -> None:
    fleet = behind_nat
    fleet.settings("server", keepalive=60)  # the server believes in the old session for minutes
    cursor = fleet.machine.cursor()
    # A restart would keep the session, with what it was told.
    fleet.machine.run(f"systemctl stop {SERVER}; systemctl start {SERVER}")
    fleet.wait_for_event(cursor, "^robot 011 connected to", "-u", CLIENT)
    cut(fleet)
    fleet.machine.run(f"systemctl kill --signal=KILL {CLIENT}")
    mend(fleet, address="10.77.0.4")
    fleet.wait_for_event(cursor, r"^robot 011 connected from .*10\.77\.0\.4", "-u", SERVER)
    assert "came back from" in "".join(event["MESSAGE"] for event in fleet.events(cursor, "ROBOT=011"))
    assert_reachable(fleet)


@pytest.mark.slow
@pytest.mark.parametrize("unit", [SERVER, pytest.param(CLIENT, marks=pytest.mark.slow)])
def test_a_peer_that_loses_power_in_the_gap_of_a_restart(behind_nat: Fleet, unit: str) -> None:
    """Sessions and streams go on at first, and are found dead as they would be without a restart."""
    fleet = behind_nat
    where = "NetworkNamespacePath=/run/netns/robot\n" if unit == CLIENT else ""
    fleet.drop_in(unit, f"[Service]\n{where}ExecStartPre=/bin/sleep 3\n")
    with fleet.machine.background(fleet.ssh("cat"), user=OPERATOR) as visitor:
        assert visitor.ask(b"before\n") == b"before\n"
        cursor = fleet.machine.cursor()
        fleet.machine.run(["systemctl", "--no-block", "restart", unit])
        fleet.wait_for(unit, "SubState", "^start-pre$")
        cut(fleet)
        fleet.wait_for_event(cursor, "^resumed 1 stream of", "-u", unit)
        for daemon in (SERVER, CLIENT):
            fleet.wait_for_event(cursor, "stream .* cut off by the", "ROBOT=011", "-u", daemon)
        assert visitor.wait() != 0
        fleet.wait_for_event(cursor, "^robot 011 disconnected: ", "-u", SERVER)
        fleet.wait_for_event(cursor, "^no session with", "-u", CLIENT)
    for daemon in (SERVER, CLIENT):
        fleet.wait_for(daemon, "NFileDescriptorStore", "^1$")


@pytest.mark.parametrize(
    "kind", ["idle", *(pytest.param(one, marks=pytest.mark.slow) for one in ("sending", "receiving"))]
)
def test_no_visitor_hangs_when_the_link_is_dead(behind_nat: Fleet, kind: str) -> None:
    fleet = behind_nat
    began = "/tmp/began"
    command = (
        f"touch {began}; " + {"idle": "cat", "sending": "cat >/dev/null", "receiving": "cat /dev/zero"}[kind]
    )
    line = {"idle": "sleep 1000 | ", "sending": "cat /dev/zero | ", "receiving": ""}[kind]
    with fleet.machine.background(f"{line}{fleet.ssh(command)} >/dev/null", user=OPERATOR) as visitor:
        cursor = fleet.machine.cursor()
        fleet.machine.wait_until(f"rm {began}")
        cut(fleet)
        fleet.wait_for_event(cursor, "stream .* cut off by the", "ROBOT=011", "-u", SERVER)
        fleet.wait_for_event(cursor, "stream .* cut off by the", "ROBOT=011", "-u", CLIENT)
        fleet.machine.wait_until("! ss -xH src '*/011.sock' | grep ESTAB")
        if kind != "idle":  # sleep, at the other end of the pipe, does not care
            assert visitor.wait() != 0
    for unit in (SERVER, CLIENT):
        fleet.machine.wait_until(f"! ss -tnpH state established | grep -F pid={fleet.pid(unit)},")
