"""A planned restart: robots stay connected, who visits waits for a moment, and nobody notices."""

import pytest

from .fleet import OPERATOR, PORT, Fleet

SERVER, CLIENT = "shadow-server.service", "shadow-client@011.service"
PER_ROBOT = 3  # connections: control, and two standing by
UNREST = "connected from|disconnected|came back|no session with|cannot go on|ends with this daemon"


def connections(fleet: Fleet) -> set[str]:
    """Both ends of each connection between robots and server."""
    said = fleet.machine.run(f"ss -tnH state established 'sport = {PORT}'").stdout
    return {" ".join(line.split()[-2:]) for line in said.splitlines()}


def settled(fleet: Fleet, *robots: str) -> Fleet:
    """These robots are connected, and all their channels stand by."""
    # A machine under load is slow to start a daemon: nobody's patience is to end meanwhile.
    fleet.settings("server", keepalive=10, start_timeout=120)
    fleet.start(*robots)
    count = PER_ROBOT * len(robots)
    fleet.machine.wait_until(f"(($(ss -tnH state established 'sport = {PORT}' | wc -l) == {count}))")
    return fleet


def restart(fleet: Fleet, unit: str) -> None:
    before = fleet.pid(unit)
    fleet.machine.run(["systemctl", "restart", unit])
    assert fleet.pid(unit) not in {0, before}


def unrest(fleet: Fleet, cursor: str) -> list[str]:
    """What the journal says that it would not if nobody had noticed."""
    said = fleet.machine.run(
        f"journalctl -q -o cat --cursor='{cursor}' -u 'shadow-*' | grep -E '{UNREST}' || true"
    )
    return said.stdout.splitlines()


@pytest.mark.parametrize("unit", [SERVER, CLIENT])
def test_nobody_notices(fleet: Fleet, unit: str) -> None:
    settled(fleet, "011", "012")
    inodes = fleet.machine.run("stat -c '%n %i' /run/shadow-tunnel/*.sock").stdout
    before = connections(fleet)
    assert len(before) == 2 * PER_ROBOT
    cursor = fleet.machine.cursor()
    for _ in range(3):
        restart(fleet, unit)
        assert (
            fleet.show(unit, "NFileDescriptorStore") == "1"
        )  # the progress table: what was left has been taken up
    assert connections(fleet) == before
    assert unrest(fleet, cursor) == []
    assert fleet.machine.run("stat -c '%n %i' /run/shadow-tunnel/*.sock").stdout == inodes
    for robot in ("011", "012"):
        said = fleet.machine.run(fleet.ssh("echo from $SSH_CONNECTION", robot=robot), user=OPERATOR).stdout
        assert said.startswith("from "), said
    status = fleet.show(unit, "StatusText")
    assert status.startswith("2 robots" if unit == SERVER else "Connected to "), status


@pytest.mark.slow
def test_both_at_once(fleet: Fleet) -> None:
    settled(fleet, "011")
    before = connections(fleet)
    cursor = fleet.machine.cursor()
    fleet.machine.run(["systemctl", "restart", SERVER, CLIENT])
    assert connections(fleet) == before
    assert unrest(fleet, cursor) == []
    assert fleet.machine.run(fleet.ssh("echo here"), user=OPERATOR).stdout == "here\n"


@pytest.mark.parametrize("unit", [SERVER, pytest.param(CLIENT, marks=pytest.mark.slow)])
def test_who_comes_in_the_gap_waits(fleet: Fleet, unit: str) -> None:
    settled(fleet, "011")
    fleet.drop_in(unit, "[Service]\nExecStartPre=/bin/sleep 3\n")
    before = connections(fleet)
    fleet.machine.run(["systemctl", "--no-block", "restart", unit])
    fleet.wait_for(unit, "SubState", "^start-pre$")
    assert fleet.machine.run(fleet.ssh("echo here"), user=OPERATOR).stdout == "here\n"
    fleet.wait_for(unit, "ActiveState", "^active$")
    control = {pair for pair in connections(fleet) if pair in before}
    assert len(control) >= PER_ROBOT - 1  # one has carried the visit


def test_stop_is_an_end(fleet: Fleet) -> None:
    settled(fleet, "011")
    cursor = fleet.machine.cursor()
    fleet.machine.run("systemctl stop shadow-server.socket shadow-server.service")
    assert fleet.show(SERVER, "NFileDescriptorStore") == "0"
    fleet.wait_for_event(cursor, "^no session with localhost:2222: connection (lost|cut off)", "-u", CLIENT)
    assert fleet.machine.run("ls /run/shadow-tunnel || true").stdout == ""
    assert not connections(fleet)
    fleet.start("011")
    assert fleet.machine.run(fleet.ssh("echo here"), user=OPERATOR).stdout == "here\n"


@pytest.mark.slow
def test_changed_services_begin_a_session_anew(fleet: Fleet) -> None:
    settled(fleet, "011")
    fleet.settings("client@011", service="web=127.0.0.1:80")
    cursor = fleet.machine.cursor()
    restart(fleet, CLIENT)
    fleet.wait_for_event(cursor, "robot 011 connects again: the settings have changed", "-u", CLIENT)
    fleet.machine.wait_until("[[ -S /run/shadow-tunnel/web@011.sock ]]")


@pytest.mark.slow
def test_a_robot_that_is_not_trusted_any_more_is_not_kept(fleet: Fleet) -> None:
    """The end of a roll-over: the server has a certificate of the new CA, and the old one is taken out."""
    ca, etc = "shadow-ca --dir .", "/etc/shadow-tunnel"
    fleet.machine.run(
        f"cd $(mktemp -d) && {ca} init && {ca} server localhost && cp server.* {etc}/ && "
        f"cat ca.crt >>{etc}/ca.crt && cp ca.crt {etc}/new.crt"
    )
    settled(fleet, "011")
    cursor = fleet.machine.cursor()
    fleet.machine.run(f"mv {etc}/new.crt {etc}/ca.crt")
    restart(fleet, SERVER)
    fleet.wait_for_event(cursor, "a session of the daemon .* ends: its certificate is not good", "-u", SERVER)
    fleet.machine.wait_until("! [[ -e /run/shadow-tunnel/011.sock ]]")


def test_a_new_certificate_of_the_server_is_shown_to_all(fleet: Fleet) -> None:
    settled(fleet, "011")
    cursor = fleet.machine.cursor()
    fleet.machine.run(
        "cp -r /srv/fleet $(mktemp -d)/ca && cd $_ && shadow-ca --dir . server localhost --force && "
        "cp server.* /etc/shadow-tunnel/"
    )
    restart(fleet, SERVER)
    fleet.wait_for_event(
        cursor, "^1 robot to connect again: the server has another certificate", "-u", SERVER
    )
    fleet.wait_for_event(cursor, "^robot 011 connected from", "-u", SERVER)
