"""The units on a real systemd: how they start, fail, come back, and are locked up."""

import re

import pytest

from .fleet import PORT, ROBOTS, Fleet
from .qemu import Machine

SERVER, CLIENT = "shadow-server.service", "shadow-client@011.service"


def restarts(fleet: Fleet, unit: str) -> int:
    return int(fleet.show(unit, "NRestarts"))


def test_the_first_robot_starts_the_server_by_its_socket(fleet: Fleet) -> None:
    fleet.machine.run("systemctl enable --now shadow-server.socket")
    assert fleet.show(SERVER, "ActiveState") == "inactive"
    fleet.machine.run("systemctl enable --now shadow-client@011")
    fleet.wait_for_robot()
    assert fleet.show(SERVER, "ActiveState") == "active"
    fleet.wait_for(CLIENT, "StatusText", "^Connected to ")
    fleet.wait_for(SERVER, "StatusText", "^1 robot,")
    assert fleet.show(CLIENT, "ActiveState") == "active"


def test_what_the_issue_types_and_ssh_for_members_of_the_group_only(fleet: Fleet) -> None:
    fleet.machine.run("systemctl enable --now shadow-server.socket shadow-client@011")
    fleet.wait_for_robot()
    said = fleet.machine.run(fleet.ssh("id -un; hostname"), user="alice").stdout
    assert said == "alice\nshadow-machine\n"
    refused = fleet.machine.run(fleet.ssh("id -un", user="mallory"), user="mallory", check=False)
    assert refused.returncode != 0
    assert refused.stdout == ""
    assert "Permission denied" in refused.stderr
    assert fleet.machine.run("stat -c '%A %U:%G' /run/shadow-tunnel").stdout.strip() == (
        "drwxr-x--- shadow-tunnel:shadow-tunnel"
    )
    hidden = fleet.machine.run("ls /run/shadow-tunnel", user="mallory", check=False)
    assert hidden.returncode != 0


def test_several_robots_on_one_machine(fleet: Fleet) -> None:
    fleet.machine.run("systemctl enable --now shadow-server.socket shadow-client@{011,012,013}")
    for robot in ROBOTS:
        fleet.wait_for_robot(robot)
    fleet.settings("client@012", robot="012", service="where=localhost:22")
    fleet.machine.run("systemctl restart shadow-client@012")
    fleet.machine.wait_until("[[ -S /run/shadow-tunnel/where@012.sock ]]")
    fleet.machine.run("systemctl stop shadow-client@013")
    fleet.machine.wait_until("[[ ! -e /run/shadow-tunnel/013.sock ]]")
    for robot in ("011", "012"):
        assert fleet.machine.run(fleet.ssh("id -un", robot=robot), user="alice").stdout == "alice\n"
    assert len({fleet.pid(f"shadow-client@{robot}") for robot in ROBOTS[:2]} - {0}) == 2


def test_both_daemons_run_as_nobody_special(fleet: Fleet) -> None:
    fleet.start("011")
    for unit in (SERVER, CLIENT):
        status = fleet.machine.read(f"/proc/{fleet.pid(unit)}/status").decode()
        uid = fleet.machine.run("id -u shadow-tunnel").stdout.strip()
        assert re.search(rf"^Uid:\t{uid}\t{uid}\t{uid}\t{uid}$", status, re.MULTILINE), status
        assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE), status
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE), status
        assert re.search(r"^Seccomp:\t2$", status, re.MULTILINE), status


def test_keys_are_roots_alone_and_reach_the_daemons_as_credentials(fleet: Fleet) -> None:
    fleet.machine.run("chmod 644 /etc/shadow-tunnel/*.key && systemd-tmpfiles --create shadow-tunnel.conf")
    modes = fleet.machine.run("stat -c '%a %U:%G' /etc/shadow-tunnel/*.key").stdout.splitlines()
    assert set(modes) == {"600 root:root"}
    fleet.start("011")
    for unit in (SERVER, CLIENT):
        words = fleet.machine.read(f"/proc/{fleet.pid(unit)}/cmdline")
        assert b"PRIVATE" not in words
        assert b"key" not in words


@pytest.mark.parametrize("unit", [SERVER, "shadow-client@011.service"])
def test_exposure(installed: Machine, unit: str) -> None:
    said = installed.run(["systemd-analyze", "security", "--no-pager", unit]).stdout
    match = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert match is not None, said
    assert float(match[1]) <= 1.2, said


def test_the_socket_unit(fleet: Fleet) -> None:
    fleet.start()
    said = fleet.machine.run(["ss", "-tlnH", f"sport = {PORT}"]).stdout
    assert said.split()[3] == f"*:{PORT}"  # both stacks
    names = ("FileDescriptorName", "Backlog", "KeepAlive", "DeferAcceptUSec", "NoDelay", "BindIPv6Only")
    shown = {name: fleet.show("shadow-server.socket", name) for name in names}
    assert shown == {
        "FileDescriptorName": "shadow-server",
        "Backlog": "4096",
        "KeepAlive": "yes",
        "DeferAcceptUSec": "10s",
        "NoDelay": "yes",
        "BindIPv6Only": "both",
    }


def test_whoever_says_nothing_does_not_start_the_server(fleet: Fleet) -> None:
    fleet.start()
    with fleet.machine.background(f"socat -u TCP:localhost:{PORT} -"):
        fleet.machine.wait_until(f"ss -tnH state established 'dport = {PORT}' | grep .")
        assert fleet.show(SERVER, "ActiveState") == "inactive"
    fleet.start("011")  # and those who speak are heard


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_ipv4_and_ipv6(fleet: Fleet, host: str) -> None:
    fleet.settings("client", rhost=host, rport=PORT, server_name="localhost")
    fleet.start("011")
    assert fleet.machine.run(fleet.ssh("id -un"), user="alice").stdout == "alice\n"


@pytest.mark.parametrize("unit", [SERVER, CLIENT])
def test_a_daemon_that_hangs_is_shot_by_the_watchdog_and_cuts_nobody(fleet: Fleet, unit: str) -> None:
    fleet.drop_in(unit, "[Service]\nWatchdogSec=5\n")
    fleet.start("011")
    before, cursor = fleet.pid(unit), fleet.machine.cursor()
    with fleet.machine.background(fleet.ssh("cat"), user="alice") as session:
        assert session.ask(b"before\n") == b"before\n"
        fleet.machine.run(f"kill -STOP {before}")
        fleet.wait_for_event(cursor, "Failed with result 'watchdog'", f"UNIT={unit}")
        fleet.machine.wait_until(f"[[ $(systemctl show --value -p MainPID {unit}) != @(0|{before}) ]]")
        assert session.ask(b"after\n") == b"after\n"
    fleet.wait_for(unit, "ActiveState", "^active$")
    fleet.wait_for(CLIENT, "StatusText", "^Connected to ")
    fleet.wait_for_robot()
    assert fleet.machine.run(fleet.ssh("id -un"), user="alice").stdout == "alice\n"


@pytest.mark.parametrize("unit", [SERVER, CLIENT])
def test_a_daemon_that_is_killed_comes_back(fleet: Fleet, unit: str) -> None:
    fleet.start("011")
    for _ in range(3):
        before = fleet.pid(unit)
        fleet.machine.run(f"kill -KILL {before}")
        fleet.machine.wait_until(f"[[ $(systemctl show --value -p MainPID {unit}) != @(0|{before}) ]]")
        fleet.wait_for(CLIENT, "StatusText", "^Connected to ")
        fleet.wait_for(SERVER, "StatusText", "^1 robot,")
    assert fleet.machine.run(fleet.ssh("id -un"), user="alice").stdout == "alice\n"
    assert restarts(fleet, unit) == 3


def test_it_comes_back_for_ever_and_ever_more_slowly(fleet: Fleet, release: str) -> None:
    fleet.drop_in(
        CLIENT, "[Service]\nExecStart=\nExecStart=/bin/false\nRestartSec=100ms\nRestartMaxDelaySec=2\n"
    )
    fleet.machine.run("systemctl start --no-block shadow-client@011")
    fleet.wait_for(CLIENT, "NRestarts", "^([89]|[0-9]{2,})$")  # the limit of systemd is 5 in 10 s
    assert fleet.show(CLIENT, "ActiveState") == "activating"
    if release != "bookworm":  # systemd 254
        assert fleet.show(CLIENT, "RestartUSecNext") == "2s"


@pytest.mark.parametrize(
    ("of", "values", "status", "words"),
    [
        ("client", {"rhost": "localhost", "rport": 99999}, 78, "SHADOW_RPORT in the environment"),
        ("client", {}, 2, "--rhost is missing (or SHADOW_RHOST in the environment)"),
        ("server", {"keepalive": "never"}, 78, "SHADOW_KEEPALIVE in the environment"),
    ],
)
def test_a_wrong_setting_is_said_once_and_not_tried_again(
    fleet: Fleet, of: str, values: dict[str, object], status: int, words: str
) -> None:
    unit = {"client": CLIENT, "server": SERVER}[of]
    fleet.settings(of, **values)
    cursor = fleet.machine.cursor()
    fleet.machine.run(["systemctl", "start", unit], check=False)
    fleet.wait_for(unit, "ActiveState", "^failed$")
    assert fleet.show(unit, "ExecMainStatus") == str(status)
    assert restarts(fleet, unit) == 0
    fleet.wait_for_event(cursor, words.replace("(", "\\(").replace(")", "\\)"), "-u", unit)


def test_a_missing_certificate_is_a_configuration_error(fleet: Fleet) -> None:
    fleet.machine.run("rm /etc/shadow-tunnel/011.crt")
    cursor = fleet.machine.cursor()
    fleet.machine.run("systemctl start shadow-client@011", check=False)
    fleet.wait_for(CLIENT, "ActiveState", "^failed$")
    assert fleet.show(CLIENT, "ExecMainStatus") == "78"
    fleet.wait_for_event(cursor, "/etc/shadow-tunnel/011.crt", "-u", CLIENT)


def test_reload_reads_certificates_again_and_cuts_nobody(fleet: Fleet) -> None:
    fleet.start("011")
    before, cursor = fleet.pid(SERVER), fleet.machine.cursor()
    with fleet.machine.background(fleet.ssh("cat"), user="alice") as visitor:
        assert visitor.ask(b"before\n") == b"before\n"
        fleet.machine.run(["systemctl", "reload", SERVER, CLIENT])
        fleet.wait_for_event(cursor, "^reloaded: ", "-u", SERVER)
        assert visitor.ask(b"after\n") == b"after\n"
    assert fleet.pid(SERVER) == before


def test_an_encrypted_key_by_a_drop_in(fleet: Fleet) -> None:
    here = "/etc/shadow-tunnel"
    fleet.machine.run(
        f"systemd-creds encrypt --with-key=host --name=client.key {here}/011.key {here}/011.key.cred"
    )
    fleet.machine.run(f"shred -u {here}/011.key")
    fleet.drop_in(
        CLIENT,
        f"[Service]\nLoadCredential=\nLoadCredentialEncrypted=client.key:{here}/011.key.cred\n",
    )
    fleet.start("011")
    assert fleet.machine.run(fleet.ssh("id -un"), user="alice").stdout == "alice\n"


def test_another_port_by_a_drop_in(fleet: Fleet) -> None:
    fleet.drop_in("shadow-server.socket", "[Socket]\nListenStream=\nListenStream=443\n")
    fleet.settings("client", rhost="localhost", rport=443)
    fleet.start("011")
    assert fleet.machine.run(["ss", "-tlnH", f"sport = {PORT}"]).stdout == ""


@pytest.mark.parametrize("how", [pytest.param("reboot", marks=pytest.mark.slow), "reset"])
def test_everything_is_back_after_a_reboot_or_a_power_cut(fleet: Fleet, machine: Machine, how: str) -> None:
    fleet.start("011", "012")
    machine.run("sync")
    getattr(machine, how)()
    for robot in ("011", "012"):
        fleet.wait_for_robot(robot)
        assert machine.run(fleet.ssh("id -un", robot=robot), user="alice").stdout == "alice\n"
    assert machine.run("systemctl --failed --plain --no-legend").stdout == ""
