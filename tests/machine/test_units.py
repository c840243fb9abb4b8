"""The units on a real systemd: how they start, fail, come back, and are locked up."""

import re
import time

import pytest

from .fleet import PORT, ROBOTS, Fleet
from .qemu import Machine

SERVER, CLIENT = "shadow-server.service", "shadow-client@011.service"
ETC = "/etc/shadow-tunnel"


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


@pytest.mark.parametrize("unit", [SERVER, pytest.param(CLIENT, marks=pytest.mark.slow)])
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


@pytest.mark.parametrize("unit", [SERVER, pytest.param(CLIENT, marks=pytest.mark.slow)])
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


def test_it_comes_back_for_ever_and_no_more_slowly(fleet: Fleet, release: str) -> None:
    fleet.drop_in(CLIENT, "[Service]\nExecStart=\nExecStart=/bin/false\nRestartSec=100ms\n")
    fleet.machine.run("systemctl start --no-block shadow-client@011")
    fleet.wait_for(CLIENT, "NRestarts", "^([89]|[0-9]{2,})$")  # the limit of systemd is 5 in 10 s
    assert fleet.show(CLIENT, "ActiveState") == "activating"
    if release != "bookworm":  # systemd 254
        assert fleet.show(CLIENT, "RestartUSecNext") == "100ms"


@pytest.mark.parametrize(
    ("values", "status", "words"),
    [
        ({"rhost": "localhost", "rport": 99999}, 78, "SHADOW_RPORT in the environment"),
        ({}, 2, "SHADOW_RHOST and SHADOW_RPORT are missing in /etc/shadow-tunnel/client.env"),
    ],
)
def test_a_wrong_setting_is_said_once_and_a_robot_stays_down(
    fleet: Fleet, values: dict[str, object], status: int, words: str
) -> None:
    fleet.settings("client", **values)
    cursor = fleet.machine.cursor()
    fleet.machine.run(["systemctl", "start", CLIENT], check=False)
    fleet.wait_for(CLIENT, "ActiveState", "^failed$")
    assert fleet.show(CLIENT, "ExecMainStatus") == str(status)
    assert restarts(fleet, CLIENT) == 0
    fleet.wait_for_event(cursor, words, "-u", CLIENT)


@pytest.mark.parametrize(("unit", "name"), [(SERVER, "server"), (CLIENT, "011")])
def test_no_files_yet_and_the_daemon_says_which(fleet: Fleet, unit: str, name: str) -> None:
    fleet.machine.run("rm /etc/shadow-tunnel/*.crt /etc/shadow-tunnel/*.key")
    cursor = fleet.machine.cursor()
    assert fleet.machine.run(["systemctl", "start", unit], check=False).returncode != 0
    fleet.wait_for_event(
        cursor,
        f"CA certificate {ETC}/ca.crt, certificate {ETC}/{name}.crt and private key {ETC}/{name}.key .*: "
        "No such file or directory; `shadow-ca init` and `shadow-ca (robot NAME|server HOST)` make them",
        "-u", unit, "-p", "err",
    )  # fmt: skip
    assert "status=78" in fleet.machine.run(["journalctl", "-q", f"--cursor={cursor}", "_PID=1"]).stdout
    if unit == CLIENT:
        assert fleet.show(CLIENT, "ActiveState") == "failed"


def test_who_cannot_read_a_certificate_is_said(fleet: Fleet) -> None:
    fleet.machine.run("chmod 600 /etc/shadow-tunnel/*.crt")
    cursor = fleet.machine.cursor()
    assert fleet.machine.run(["systemctl", "start", CLIENT], check=False).returncode != 0
    text = f"CA certificate {ETC}/ca.crt: Permission denied for user shadow-tunnel"
    fleet.wait_for_event(cursor, text, "-u", CLIENT)


# A server that cannot start, while robots dial.


def attempts(fleet: Fleet, cursor: str) -> int:
    """How often systemd has started the server since then."""
    said = fleet.machine.run(["journalctl", "-q", "-o", "cat", f"--cursor={cursor}", f"UNIT={SERVER}"]).stdout
    return len(re.findall(r"^Starting ", said, re.MULTILINE))


@pytest.mark.parametrize(
    "what",
    ["server.key", *(pytest.param(one, marks=pytest.mark.slow) for one in ("server.crt", "setting"))],
)
def test_a_server_that_cannot_start_takes_its_time_and_comes_back(fleet: Fleet, what: str) -> None:
    run, cursor = fleet.machine.run, fleet.machine.cursor()
    if what == "setting":
        fleet.settings("server", keepalive="never")
    else:
        run(f"mv {ETC}/{what} /srv/away")
    run("systemctl start shadow-server.socket shadow-client@{011,012,013}")  # they knock all the time
    fleet.wait_for(SERVER, "StatusText", "^Cannot start: ", timeout=300)
    begun, began = attempts(fleet, cursor), time.monotonic()
    # The socket's limit is 20 in 2 s. By now it would have been started again and again.
    run("for _ in {1..30}; do timeout 1 bash -c 'exec 3<>/dev/tcp/localhost/2222; echo >&3'; sleep 0.3; done")
    assert begun == 2
    half_minutes = (time.monotonic() - began) / 30
    assert attempts(fleet, cursor) <= begun + half_minutes + 1
    assert fleet.show("shadow-server.socket", "ActiveState") == "active"
    # Whoever asks for a start is told at once, and the next start is a first one.
    again = fleet.machine.cursor()
    assert run("systemctl restart shadow-server", check=False).returncode != 0
    fleet.wait_for_event(again, "No such file|SHADOW_KEEPALIVE in the environment", "-u", SERVER, "-p", "err")
    if what == "setting":
        fleet.settings("server", keepalive=1)
    else:
        run(f"mv /srv/away {ETC}/{what}")
    fleet.wait_for(SERVER, "ActiveState", "^active$")  # by itself
    for robot in ROBOTS:
        fleet.wait_for_robot(robot)


def test_streams_outlive_a_server_that_cannot_start(fleet: Fleet) -> None:
    fleet.start("011")
    with fleet.machine.background(fleet.ssh("cat"), user="alice") as session:
        assert session.ask(b"before\n") == b"before\n"
        fleet.machine.run(f"mv {ETC}/server.crt /srv/away; systemctl kill --signal=KILL shadow-server")
        fleet.wait_for(SERVER, "StatusText", "^Cannot start: ")
        fleet.machine.run(f"mv /srv/away {ETC}/server.crt")
        assert session.ask(b"after\n") == b"after\n"
    assert fleet.machine.run(fleet.ssh("id -un"), user="alice").stdout == "alice\n"


@pytest.mark.slow
def test_a_key_that_cannot_be_decrypted_does_not_close_the_port(fleet: Fleet) -> None:
    """systemd's own failure, before there is a daemon."""
    fleet.drop_in(
        SERVER, f"[Service]\nLoadCredential=\nLoadCredentialEncrypted=server.key:{ETC}/server.key\n"
    )
    fleet.machine.run("systemctl start shadow-server.socket shadow-client@{011,012}")
    fleet.wait_for(SERVER, "NRestarts", "^([3-9]|[0-9]{2,})$")
    fleet.wait_for(SERVER, "ExecMainStatus", "^243$")  # 0 while it is started once more
    # The socket's limit is 20 in 2 s.
    fleet.wait_for(SERVER, "NRestarts", "^([3-9][0-9]|[0-9]{3,})$", timeout=300)
    assert fleet.show("shadow-server.socket", "ActiveState") == "active"
    fleet.machine.run(f"rm /etc/systemd/system/{SERVER}.d/test.conf; systemctl daemon-reload")
    for robot in ("011", "012"):
        fleet.wait_for_robot(robot)


# Renewed keys.


def seen_by(fleet: Fleet, unit: str, command: str) -> str:
    """What a command says in a unit's view of the file system, as its user."""
    enter = (
        f"nsenter --mount=/proc/{fleet.pid(unit)}/ns/mnt setpriv --reuid=shadow-tunnel --regid=shadow-tunnel"
    )
    done = fleet.machine.run(f"{enter} --clear-groups {command} 2>&1", check=False)
    return done.stdout.strip()


def test_a_robot_sees_its_own_keys_and_no_others(fleet: Fleet) -> None:
    state = "/var/lib/shadow-tunnel"
    fleet.start("011", "012")
    assert seen_by(fleet, CLIENT, f"ls {state}") == "011"
    assert seen_by(fleet, CLIENT, f"touch {state}/011/pair.pem") == ""
    assert fleet.machine.run(f"stat -c '%a %U' {state}/011").stdout == "700 shadow-tunnel\n"
    assert "Read-only file system" in seen_by(fleet, CLIENT, f"mkdir {state}/012")
    assert "Permission denied" in fleet.machine.run(f"ls {state}/012 2>&1", user="alice", check=False).stdout
    # Nor by way of another robot's process, locked up as the daemon is.
    fleet.machine.run(f"echo secret >{state}/012/pair.pem && chown shadow-tunnel {state}/012/pair.pem")
    search = f"cat {state}/012/pair.pem /proc/[0-9]*/root{state}/012/pair.pem; echo looked everywhere"
    fleet.drop_in(CLIENT, f"[Service]\nExecStartPost=-/bin/sh -c '{search}'\n")
    cursor = fleet.machine.cursor()
    fleet.machine.run("systemctl restart shadow-client@011")
    fleet.wait_for_event(cursor, "^looked everywhere$", "-u", CLIENT)
    assert not fleet.events(cursor, "MESSAGE=secret")
    assert seen_by(fleet, "shadow-client@012.service", f"cat {state}/012/pair.pem") == "secret"
    fleet.machine.run(f"rm {state}/*/pair.pem")


@pytest.mark.parametrize("folder", ["there", "not there"])
def test_a_robot_starts_on_a_read_only_disk(fleet: Fleet, folder: str) -> None:
    state = "/var/lib/shadow-tunnel"
    made = f"install -d -m 700 -o shadow-tunnel {state}/011" if folder == "there" else "true"
    fleet.machine.run(f"mount -t tmpfs tmpfs {state} && {made} && mount -o remount,ro {state}")
    try:
        fleet.start("011")
        assert "Read-only file system" in seen_by(fleet, CLIENT, f"mkdir -p {state}/011/x")
        fleet.machine.run("systemctl stop shadow-client@011")
    finally:
        fleet.machine.run(f"umount -l {state}")


def test_reload_reads_certificates_again_and_cuts_nobody(fleet: Fleet) -> None:
    fleet.start("011")
    before, cursor = fleet.pid(SERVER), fleet.machine.cursor()
    with fleet.machine.background(fleet.ssh("cat"), user="alice") as visitor:
        assert visitor.ask(b"before\n") == b"before\n"
        fleet.machine.run(["systemctl", "reload", SERVER, CLIENT])
        fleet.wait_for_event(cursor, "^reloaded: ", "-u", SERVER)
        assert visitor.ask(b"after\n") == b"after\n"
    assert fleet.pid(SERVER) == before


def test_a_reload_names_the_settings_that_it_does_not_take(fleet: Fleet) -> None:
    fleet.start("011")
    cursor = fleet.machine.cursor()
    fleet.machine.run(["systemctl", "reload", SERVER, CLIENT])
    for unit in (SERVER, CLIENT):
        fleet.wait_for_event(cursor, "^reloaded", "-u", unit)
    assert "a reload does not take" not in fleet.machine.run(f"journalctl --cursor='{cursor}'").stdout
    fleet.machine.run("echo SHADOW_KEEPALIVE=7 >>/etc/shadow-tunnel/server.env")
    fleet.settings("client@011", standby=3, stanbdy=4)
    fleet.machine.run(["systemctl", "reload", SERVER, CLIENT])
    fleet.wait_for_event(cursor, "a reload does not take SHADOW_KEEPALIVE, changed", "-u", SERVER)
    fleet.wait_for_event(
        cursor, "a reload does not take SHADOW_STANBDY, SHADOW_STANDBY, changed", "-u", CLIENT
    )
    fleet.wait_for_event(
        cursor, "'SHADOW_STANBDY' in the environment is no setting; did you mean", "-u", CLIENT
    )


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


@pytest.mark.slow
@pytest.mark.parametrize("how", [pytest.param("reboot", marks=pytest.mark.slow), "reset"])
def test_everything_is_back_after_a_reboot_or_a_power_cut(fleet: Fleet, machine: Machine, how: str) -> None:
    fleet.start("011", "012")
    machine.run("sync")
    getattr(machine, how)()
    for robot in ("011", "012"):
        fleet.wait_for_robot(robot)
        assert machine.run(fleet.ssh("id -un", robot=robot), user="alice").stdout == "alice\n"
    assert machine.run("systemctl --failed --plain --no-legend").stdout == ""


def test_too_few_tasks_are_an_error_of_one_line(fleet: Fleet) -> None:
    """With one, the service manager itself cannot hand over the key: it needs a process for that."""
    fleet.drop_in(CLIENT, "[Service]\nTasksMax=2\n")
    cursor = fleet.machine.cursor()
    fleet.machine.run(["systemctl", "start", "--no-block", CLIENT])
    fleet.wait_for_event(cursor, "cannot start .*TasksMax=", "-u", CLIENT)
    fleet.wait_for(CLIENT, "ExecMainStatus", "^71$")
    assert "Traceback" not in "".join(event["MESSAGE"] for event in fleet.events(cursor, "-u", CLIENT))


@pytest.mark.api
def test_the_apis_socket_does_not_come_back_alone_and_nobody_else_notices(fleet: Fleet) -> None:
    """systemd makes no socket for a service that runs (socket_start, src/core/socket.c)."""
    fleet.settings("server", keepalive=10)
    fleet.start("011")
    server, cursor = fleet.pid(SERVER), fleet.machine.cursor()
    assert fleet.machine.run("systemctl restart shadow-server-api.socket", check=False).returncode != 0
    assert fleet.pid(SERVER) == server
    assert fleet.machine.run("shadowctl list", check=False).returncode != 0
    assert fleet.machine.run(fleet.ssh("true"), user="alice").returncode == 0
    fleet.machine.run(["systemctl", "restart", SERVER])
    assert "011" in fleet.machine.run("shadowctl list").stdout
    ended = [event for event in fleet.events(cursor, "-u", SERVER) if "disconnected" in event["MESSAGE"]]
    assert ended == []
