"""Operating a fleet: shadowctl and its API with real users and groups, ssh by name, revoked certificates."""

import contextlib
import json
import re
import shlex
from collections.abc import Iterator

import pytest

from .fleet import OPERATOR, STRANGER, Fleet
from .qemu import Background

SERVER, CLIENT = "shadow-server.service", "shadow-client@011.service"
API = "/run/shadow-tunnel/io.shadowtunnel.Server"
INTERFACE = "io.shadowtunnel.Server"
ADMINISTRATORS = "shadow-tunnel-admin"
CA = "/srv/ca"  # a copy: what is revoked there is good again in the next test
SSH = "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR"


@pytest.fixture
def ca(fleet: Fleet) -> Iterator[str]:
    """The command shadow-ca, with a list of nobody in place on the server."""
    fleet.machine.run(f"rm -rf {CA} && cp -r /srv/fleet {CA} && shadow-ca --dir {CA} crl")
    fleet.machine.run(f"cp {CA}/ca.crl /etc/shadow-tunnel/")
    yield f"shadow-ca --dir {CA}"
    fleet.machine.run(f"rm -rf {CA}")


def ctl(fleet: Fleet, words: str, *, user: str = OPERATOR) -> str:
    return fleet.machine.run(f"shadowctl {words}", user=user).stdout


def refused(fleet: Fleet, words: str, *, user: str = OPERATOR) -> tuple[int, str]:
    done = fleet.machine.run(f"shadowctl {words}", user=user, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


# Looking and steering.


@pytest.mark.api
def test_an_operator_looks(fleet: Fleet) -> None:
    fleet.settings("client@012", service="where=localhost:22")
    fleet.start("011", "012")
    fleet.machine.wait_until("[[ -S /run/shadow-tunnel/where@012.sock ]]")
    lines = ctl(fleet, "list").splitlines()
    assert re.match(r"011 +\S+:\d+ +\d+s +default +0 +kernel$", lines[1]), lines
    assert re.match(r"012 +\S+:\d+ +\d+s +default,where +0 +kernel$", lines[2]), lines
    with fleet.machine.background(fleet.ssh("cat"), user=OPERATOR) as session:
        assert session.ask(b"hello\n") == b"hello\n"
        assert re.search(r"^\S+ +011 +default +alice .* kernel, kept$", ctl(fleet, "streams"), re.MULTILINE)
        status = ctl(fleet, "status 011")
        assert status.startswith("● 011 - connected from ")
        assert "by the kernel" in status
    assert "1 stream" in status
    server = ctl(fleet, "status")
    assert "2 robots, " in server
    assert "certificate /etc/shadow-tunnel/server.crt" in server
    assert [robot["name"] for robot in json.loads(ctl(fleet, "list --json"))] == ["011", "012"]
    assert refused(fleet, "status 0111") == (
        69,
        "shadowctl: robot '0111' is not connected; did you mean 011?\n",
    )


def test_logs_are_those_of_the_robot(fleet: Fleet) -> None:
    fleet.start("011", "012")
    said = ctl(fleet, "logs 011 -o cat --no-pager", user="root")
    assert "robot 011 connected" in said
    assert "012" not in said


@pytest.mark.api
def test_who_may_look_and_who_may_steer(fleet: Fleet) -> None:
    fleet.start("011")
    for words in ("list", "connect 011"):
        status, said = refused(fleet, words, user=STRANGER)
        assert status == 77
        assert "you need to be in the group shadow-tunnel" in said
    for words in ("disconnect 011", "reload"):
        assert refused(fleet, words) == (
            77, "shadowctl: only root and members of the group shadow-tunnel-admin may do that\n",
        )  # fmt: skip
    fleet.machine.run(f"usermod --append --groups {ADMINISTRATORS} {OPERATOR}")
    try:
        cursor = fleet.machine.cursor()
        uid = fleet.machine.run(f"id -u {OPERATOR}").stdout.strip()
        assert ctl(fleet, "disconnect 011") == "robot 011: 1 connection ended\n"
        fleet.wait_for_event(cursor, f"robot 011 disconnected: uid {uid} has ended it", "-u", SERVER)
        fleet.wait_for_event(cursor, "refused .disconnected.*next try in", "-u", CLIENT)
        assert ctl(fleet, "wait 011 --timeout 60") == ""
        assert ctl(fleet, "reload") == ""
        fleet.wait_for_event(cursor, "^reloaded", "-u", SERVER)
        fleet.machine.run("mv /etc/shadow-tunnel/ca.crt /etc/shadow-tunnel/away")
        status, said = refused(fleet, "reload")
        fleet.machine.run("mv /etc/shadow-tunnel/away /etc/shadow-tunnel/ca.crt")
        assert status == 78
        assert "nothing has changed: CA certificate /etc/shadow-tunnel/ca.crt: No such file" in said
    finally:
        fleet.machine.run(f"gpasswd --delete {OPERATOR} {ADMINISTRATORS}")
    assert refused(fleet, "reload")[0] == 77
    assert ctl(fleet, "reload", user="root") == ""


@pytest.mark.api
def test_systemds_own_tool_explores_and_calls(fleet: Fleet) -> None:
    fleet.start("011")
    told = fleet.machine.run(f"varlinkctl introspect {API} {INTERFACE}", user=OPERATOR).stdout
    assert f"interface {INTERFACE}" in told
    assert "method Describe" in told
    assert "Shadow" in fleet.machine.run(f"varlinkctl info {API}", user=OPERATOR).stdout
    call = f"varlinkctl call --json=short {API} {INTERFACE}."
    said = fleet.machine.run(call + shlex.join(["Describe", '{"name": "011"}']), user=OPERATOR).stdout
    assert json.loads(said)["robot"]["connected"] is True
    said = fleet.machine.run(f"{call}List '{{}}' --more", user=OPERATOR).stdout
    assert [robot["name"] for robot in json.loads(said.lstrip("\x1e"))["robots"]] == ["011"]
    wrong = fleet.machine.run(f"{call}Reload '{{}}'", user=OPERATOR, check=False)
    assert wrong.returncode != 0
    assert "PermissionDenied" in wrong.stderr


@pytest.mark.api
def test_a_watch_sees_a_robot_come(fleet: Fleet) -> None:
    fleet.start("011")
    with fleet.machine.background("shadowctl watch 012 >/tmp/seen", user="root"):
        # It says nothing when it begins: a robot that comes and goes is seen once it has begun.
        again = "systemctl stop shadow-client@012; systemctl start shadow-client@012; shadowctl wait 012"
        fleet.machine.wait_until(f"{again}; grep 'robot 012 connected' /tmp/seen")
    assert "011" not in fleet.machine.run("cat /tmp/seen").stdout
    fleet.machine.run("rm /tmp/seen")


@pytest.mark.slow
@pytest.mark.api
def test_the_api_lives_as_long_as_the_server(fleet: Fleet) -> None:
    fleet.start("011")
    assert fleet.machine.run(f"stat -c '%a %G' {API}").stdout == "660 shadow-tunnel\n"
    for action in ("restart shadow-server", "kill --signal=KILL shadow-server"):
        before = fleet.pid(SERVER)
        fleet.machine.run(f"systemctl {action}")
        fleet.machine.wait_until(f"(($(systemctl show --value -p MainPID {SERVER}) != {before}))")
        fleet.machine.wait_until("shadowctl status 011", timeout=60)
    fleet.machine.run("systemctl stop shadow-server.socket shadow-server.service")
    assert fleet.show("shadow-server-api.socket", "ActiveState") == "inactive"
    assert refused(fleet, "list", user="root") == (
        69, f"shadowctl: {API}: No such file or directory; shadow-server does not run here\n",
    )  # fmt: skip
    assert fleet.show(SERVER, "ActiveState") == "inactive"


def test_without_the_library_everything_else_works(fleet: Fleet, release: str) -> None:
    """On Debian 12 it is not there; on 13 it is taken away."""
    folder = "/usr/lib/python3/dist-packages"
    if release != "bookworm":
        fleet.machine.run(f"mv {folder}/varlink {folder}/away")
    try:
        cursor = fleet.machine.cursor()
        fleet.start("011")
        fleet.wait_for_event(
            cursor, "shadowctl cannot ask this server: the Python library varlink", "-u", SERVER
        )
        status, said = refused(fleet, "list")
        assert (status, said.startswith("shadowctl: the Python library varlink is missing")) == (71, True)
        assert fleet.machine.run(f"{SSH} {OPERATOR}@011.robot id -un", user=OPERATOR).stdout == "alice\n"
    finally:
        if release != "bookworm":
            fleet.machine.run(f"mv {folder}/away {folder}/varlink")


@pytest.mark.slow
def test_metrics_are_off_until_they_are_enabled(fleet: Fleet) -> None:
    fleet.start("011")
    scrape = "curl -sS --max-time 30 http://127.0.0.1:9722/metrics"
    assert fleet.machine.run(scrape, check=False).returncode == 7  # nobody there
    fleet.machine.run("systemctl enable shadow-server-metrics.socket && systemctl restart shadow-server")
    try:
        fleet.wait_for_robot()
        figures = fleet.machine.run(scrape).stdout
        assert "\nshadow_robots_connected 1.0\n" in figures
        assert "\nshadow_sessions_resumed_total 1.0\n" in figures
        with fleet.machine.background(fleet.ssh("cat"), user=OPERATOR) as session:
            assert session.ask(b"hello\n") == b"hello\n"
            figures = fleet.machine.run(scrape).stdout
        assert '\nshadow_streams{tls="kernel"} 1.0\n' in figures
        assert "\nshadow_streams_protected 1.0\n" in figures
    finally:
        fleet.machine.run(
            "systemctl disable --now shadow-server-metrics.socket; systemctl restart shadow-server"
        )
    assert fleet.machine.run(scrape, check=False).returncode == 7


# ssh by name.


def test_ssh_and_its_relatives_find_a_robot_by_name(fleet: Fleet) -> None:
    fleet.start("011", "012")
    run = fleet.machine.run
    run("cd ~; rm -f .ssh/known_hosts; head -c 3M /dev/urandom >data", user=OPERATOR)
    with fleet.machine.background(f"{SSH} {OPERATOR}@011.robot cat", user=OPERATOR) as session:
        assert session.ask(b"hello\n") == b"hello\n"
        assert run("pgrep -x shadowctl || true").stdout == ""  # nobody stands in between
    copy = "cmp data copy && rm -rf copy"
    run(f"cd ~; scp -q data {OPERATOR}@011.robot:copy && {copy}", user=OPERATOR)
    run(f"cd ~; echo put data copy | sftp -q -b - {OPERATOR}@011.robot && {copy}", user=OPERATOR)
    run(f"cd ~; rsync data {OPERATOR}@011.robot:copy && {copy}", user=OPERATOR)
    run(f"{SSH} {OPERATOR}@012.robot true", user=OPERATOR)
    ping = run(f"ansible all -i 011.robot,012.robot, -u {OPERATOR} -m ping", user=OPERATOR).stdout
    assert ping.count('"ping": "pong"') == 2
    # Debian hashes the names in it.
    assert len(run("cat ~/.ssh/known_hosts", user=OPERATOR).stdout.splitlines()) == 2
    assert "found: line 1" in run("ssh-keygen -F 011.robot", user=OPERATOR).stdout
    run("rm -r ~/data ~/.ansible", user=OPERATOR)


def test_a_robot_with_another_host_key_is_refused(fleet: Fleet) -> None:
    fleet.start("011")
    false = "ssh-keygen -q -t ed25519 -N '' -f /tmp/false"
    known = "(printf '011.robot '; cut -d' ' -f1,2 /tmp/false.pub) >~/.ssh/known_hosts; rm /tmp/false*"
    fleet.machine.run(f"{false} && {known}", user=OPERATOR)
    done = fleet.machine.run(f"ssh -o BatchMode=yes {OPERATOR}@011.robot true", user=OPERATOR, check=False)
    assert done.returncode == 255
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in done.stderr
    fleet.machine.run("rm ~/.ssh/known_hosts", user=OPERATOR)


def test_ssh_says_why_it_cannot(fleet: Fleet) -> None:
    fleet.start("011")
    done = fleet.machine.run(f"{SSH} {OPERATOR}@0111.robot true", user=OPERATOR, check=False)
    assert done.returncode == 255
    assert "shadowctl: robot '0111' is not connected; did you mean 011?" in done.stderr


# Revoked certificates.


@contextlib.contextmanager
def visits(fleet: Fleet) -> Iterator[tuple[Background, Background]]:
    """Somebody visits robot 011, and robot 012."""
    with (
        fleet.machine.background(fleet.ssh("cat"), user=OPERATOR) as session,
        fleet.machine.background(fleet.ssh("cat", robot="012"), user=OPERATOR) as other,
    ):
        for one in (session, other):
            assert one.ask(b"hello\n") == b"hello\n"
        yield session, other


def test_a_robot_is_revoked_while_somebody_visits_it(fleet: Fleet, ca: str) -> None:
    fleet.start("011", "012")
    cursor = fleet.machine.cursor()
    with visits(fleet) as (session, other):
        fleet.machine.run(f"{ca} revoke 011 && cp {CA}/ca.crl /etc/shadow-tunnel/")
        fleet.machine.run("systemctl reload shadow-server")
        assert session.wait() == 255
        assert other.ask(b"still here\n") == b"still here\n"
    fleet.machine.wait_until("[[ ! -e /run/shadow-tunnel/011.sock ]]")
    for text in (
        "robot 011 disconnected: certificate .* was revoked on",
        r"robot 011: stream \S+ cut off .the robot's certificate was revoked.",
        "cut off robots with revoked certificates: 2 sessions and streams ended",
        "robot '011' from .* refused .revoked.: certificate .* was revoked on",
    ):
        fleet.wait_for_event(cursor, text, "-u", SERVER)
    fleet.wait_for_event(cursor, "refused .revoked.*next try in", "-u", CLIENT)
    assert fleet.show(SERVER, "StatusText").startswith("1 robot,")


@pytest.mark.slow
def test_a_robot_that_is_revoked_does_not_outlive_a_restart(fleet: Fleet, ca: str) -> None:
    """Its session and stream are kept by the service manager; the next server reads the list first."""
    fleet.start("011", "012")
    cursor = fleet.machine.cursor()
    with visits(fleet) as (session, other):
        fleet.machine.run(f"{ca} revoke 011 && cp {CA}/ca.crl /etc/shadow-tunnel/")
        fleet.machine.run("systemctl restart shadow-server")
        assert session.wait() == 255
        assert other.ask(b"still here\n") == b"still here\n"
    fleet.wait_for_event(cursor, "a stream of the daemon before .* ends: .*was revoked on", "-u", SERVER)
    fleet.wait_for_event(cursor, "robot 011: a session of .* ends: .*was revoked on", "-u", SERVER)


AGED = """
import datetime as dt, pathlib, sys
from shadow.ca import authority, folder as folders
from shadow.pki.files import write_files
folder, now = pathlib.Path(sys.argv[1]), dt.datetime.now(dt.UTC)
pair = authority.issue_robot(folders.load_authority(folder, now), "011", 66, now - dt.timedelta(days=60))
write_files(folders.leaf_files(folder, folder, "011", pair), force=True)
"""


def test_a_certificate_that_ends_soon_is_in_the_status(fleet: Fleet) -> None:
    fleet.machine.run(
        f"cp -r /srv/fleet {CA} && python3 -c {shlex.quote(AGED)} {CA}"
        f" && cp {CA}/011.crt {CA}/011.key /etc/shadow-tunnel/ && rm -r {CA}"
    )
    cursor = fleet.machine.cursor()
    fleet.start("011")
    fleet.wait_for(CLIENT, "StatusText", "; certificate /etc/shadow-tunnel/011.crt expires in 5 days")
    fleet.wait_for_event(
        cursor, "expires in 5 days .*`shadow-ca robot 011 --renew`", "-u", CLIENT, "-p", "warning"
    )
