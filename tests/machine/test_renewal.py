"""Certificates that renew themselves, with the real units: a signer that is alone with the CA's key."""

import json
import re
import shlex
from collections.abc import Iterator

import pytest

from .fleet import OPERATOR, Fleet

SERVER, CLIENT = "shadow-server.service", "shadow-client@011.service"
SOCKET, SIGNER = "shadow-ca-signer.socket", "shadow-ca-signer@.service"
ASK = "/run/shadow-ca-signer.sock"
CA = "/var/lib/shadow-ca"
STATE = "/var/lib/shadow-tunnel/011"
AS_CA = f"runuser -u shadow-ca -- shadow-ca --dir {CA}"
RENEWED = "robot 011 has a new certificate, [0-9a-f]{40}, valid until"
STEPS = "/run/shadow-steps"


@pytest.fixture
def signer(fleet: Fleet) -> Iterator[Fleet]:
    """A CA on this machine, with a signer that the server knows."""
    fleet.machine.run(f"install -o shadow-ca -g shadow-ca -m 600 /srv/fleet/ca.key {CA}/")
    fleet.machine.run(f"install -o shadow-ca -g shadow-ca -m 644 /srv/fleet/ca.crt {CA}/")
    fleet.settings("server", keepalive=1, signer=ASK)
    fleet.machine.run(f"systemctl start {SOCKET}")
    yield fleet
    fleet.machine.run(f"systemctl stop {SOCKET}; rm -rf {STEPS}")


def short_lived(fleet: Fleet, seconds: int, age: int) -> None:
    """Give robot 011 a certificate for so many seconds, so old; more of both on a slow machine.

    What is left of it must do for all that a test does until the next one has come.
    """
    life, old = (number * fleet.machine.slowness for number in (seconds, age))
    fleet.machine.run(
        f"cd /srv/guest && python3 short_lived.py /srv/fleet 011 {life} {old} /etc/shadow-tunnel"
    )


def issued(fleet: Fleet) -> list[dict[str, str]]:
    listed: list[dict[str, str]] = json.loads(fleet.machine.run(f"{AS_CA} list --json").stdout)
    return listed


def test_a_robot_renews_its_certificate_while_somebody_visits_it(signer: Fleet) -> None:
    short_lived(signer, 600, 300)
    signer.start("011")
    cursor = signer.machine.cursor()
    with signer.machine.background(signer.ssh("cat"), user=OPERATOR) as session:
        assert session.ask(b"before\n") == b"before\n"
        short_lived(signer, 600, 420)  # past two thirds
        signer.machine.run("systemctl restart shadow-client@011")
        signer.wait_for_event(cursor, RENEWED, "-u", CLIENT)
        assert session.ask(b"after\n") == b"after\n"
    (new,) = issued(signer)
    assert new["name"] == "011"
    for unit, text in (
        (SERVER, f"robot 011: new certificate {new['serial']}, valid until"),
        ("shadow-ca-signer@*", f"robot 011: certificate {new['serial']} issued, valid until"),
    ):
        signer.wait_for_event(cursor, text, "-u", unit)
    signer.machine.wait_until(f"[[ $(ls {STATE}) == pair.pem ]]")
    assert signer.machine.run(f"stat -c '%a %U' {STATE} {STATE}/pair.pem").stdout == (
        "700 shadow-tunnel\n600 shadow-tunnel\n"
    )
    # The next client finds it, and the session goes on.
    signer.machine.run("systemctl restart shadow-client@011")
    signer.wait_for_event(cursor, "robot 011 remains connected", "-u", CLIENT)
    events = signer.events(cursor, "SERIAL=" + new["serial"])
    assert {event["ROBOT"] for event in events} == {"011"}


@pytest.mark.api
def test_the_server_tells_of_the_new_certificate(signer: Fleet) -> None:
    short_lived(signer, 600, 420)
    cursor = signer.machine.cursor()
    signer.start("011")
    signer.wait_for_event(cursor, RENEWED, "-u", CLIENT)
    (new,) = issued(signer)
    robot = json.loads(signer.machine.run("shadowctl status 011 --json").stdout)["robot"]
    assert robot["serial"] == new["serial"]
    assert robot["certificateEnds"] == new["certificateEnds"]


def test_nobody_else_can_read_the_key_or_ask(signer: Fleet) -> None:
    for user, folder in (("shadow-tunnel", CA), (OPERATOR, CA), ("shadow-ca", "/etc/shadow-tunnel")):
        name = "ca.key" if folder == CA else "011.key"
        done = signer.machine.run(f"runuser -u {user} -- cat {folder}/{name}", check=False)
        assert "Permission denied" in done.stderr
    asked = signer.machine.run(f"socat - UNIX-CONNECT:{ASK} </dev/null", user=OPERATOR, check=False)
    assert "Permission denied" in asked.stderr
    assert signer.machine.run(f"stat -c '%a %U' {CA}").stdout == "700 shadow-ca\n"


def test_what_is_no_request_is_turned_away(signer: Fleet) -> None:
    cursor = signer.machine.cursor()
    signer.machine.run(f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | socat - UNIX-CONNECT:{ASK}", check=False)
    signer.wait_for_event(cursor, "shadow-ca-signer: unknown frame type 71", "-t", "shadow-ca-signer")
    signer.machine.wait_until("! systemctl list-units --plain --no-legend 'shadow-ca-signer@*' | grep .")


@pytest.mark.slow
def test_a_signer_that_is_not_there(signer: Fleet) -> None:
    """The robot lives on, and gets its certificate when there is a signer."""
    short_lived(signer, 120, 80)
    signer.machine.run(f"systemctl stop {SOCKET}")
    cursor = signer.machine.cursor()
    signer.start("011")
    refused = "not renewed: refused .no-signer.: the signer cannot be reached: No such file"
    signer.wait_for_event(cursor, refused, "-u", CLIENT)
    signer.machine.run(f"systemctl start {SOCKET}")
    signer.wait_for_event(cursor, RENEWED, "-u", CLIENT)


@pytest.mark.slow
def test_a_signer_that_hangs_is_ended(signer: Fleet) -> None:
    signer.drop_in(SIGNER, "[Service]\nExecStart=\nExecStart=/bin/sleep infinity\nRuntimeMaxSec=2\n")
    short_lived(signer, 120, 80)
    cursor = signer.machine.cursor()
    signer.start("011")
    signer.wait_for_event(cursor, "not renewed: refused .no-signer.: the signer", "-u", CLIENT)
    signer.machine.run(f"rm -r /etc/systemd/system/{SIGNER}.d; systemctl daemon-reload")
    signer.wait_for_event(cursor, RENEWED, "-u", CLIENT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [
        pytest.param("before shadow.ca.signer - load_authority", marks=pytest.mark.slow),
        pytest.param("after shadow.ca.applicant - check_proof", marks=pytest.mark.slow),
        pytest.param("after shadow.ca.signer - renew_robot", marks=pytest.mark.slow),
        "before shadow.pki.files - _name",
        pytest.param("after shadow.pki.files - _name", marks=pytest.mark.slow),
        pytest.param("after shadow.ca.signer - write_files", marks=pytest.mark.slow),
    ],
)
def test_a_signer_that_is_killed_at_any_step(signer: Fleet, step: str) -> None:
    signer.machine.run(f"rm -rf {STEPS}; install -d -m 777 {STEPS}")
    signer.drop_in(
        SIGNER,
        f"[Service]\nReadWritePaths={STEPS}\n"
        f"Environment=PYTHONPATH=/srv/guest/steps SHADOW_TEST_SHOT={STEPS}/shot\n"
        f'Environment="SHADOW_TEST_STEP={step}"\n',
    )
    short_lived(signer, 120, 80)
    cursor = signer.machine.cursor()
    signer.start("011")
    signer.wait_for_event(cursor, "not renewed: refused .no-signer.: the signer", "-u", CLIENT)
    signer.wait_for_event(cursor, RENEWED, "-u", CLIENT)
    signer.machine.run(f"test -e {STEPS}/shot")
    assert len(issued(signer)) == 1


@pytest.mark.slow
def test_a_disk_that_is_full(signer: Fleet) -> None:
    signer.machine.run(
        "mount -t tmpfs -o size=64k,mode=700,uid=shadow-tunnel none /var/lib/shadow-tunnel;"
        "head -c 1M /dev/zero >/var/lib/shadow-tunnel/full",
        check=False,
    )
    try:
        short_lived(signer, 120, 80)
        cursor = signer.machine.cursor()
        signer.start("011")
        signer.wait_for_event(cursor, "not renewed: cannot write .*: No space left on device", "-u", CLIENT)
        signer.machine.run("rm /var/lib/shadow-tunnel/full")
        signer.wait_for_event(cursor, RENEWED, "-u", CLIENT)
    finally:
        signer.machine.run("systemctl stop 'shadow-client@*'; umount /var/lib/shadow-tunnel")


def test_a_folder_that_cannot_be_written_to_keeps_no_robot_away(signer: Fleet) -> None:
    """An image whose /var is read-only."""
    signer.machine.run("mount -t tmpfs -o ro none /var/lib/shadow-tunnel")
    try:
        short_lived(signer, 120, 80)
        cursor = signer.machine.cursor()
        signer.start("011")
        signer.wait_for_event(cursor, "not renewed: cannot write .*: Read-only file system", "-u", CLIENT)
        assert signer.machine.run(signer.ssh("id -un"), user=OPERATOR).stdout == f"{OPERATOR}\n"
    finally:
        signer.machine.run("systemctl stop 'shadow-client@*'; umount /var/lib/shadow-tunnel")


@pytest.mark.slow
def test_a_folder_that_is_missing_is_made(signer: Fleet) -> None:
    """An image whose /var starts out empty; the service manager makes it, as the place of a mount."""
    folder, away = "/var/lib/shadow-tunnel", "/var/lib/away"
    signer.machine.run(f"mv {folder} {away}")
    try:
        short_lived(signer, 120, 80)
        cursor = signer.machine.cursor()
        signer.start("011")
        signer.wait_for_event(cursor, RENEWED, "-u", CLIENT)
        signer.machine.wait_until(f"[[ $(ls {STATE}) == pair.pem ]]")
        assert signer.machine.run(f"stat -c '%a %U' {STATE}").stdout == "700 shadow-tunnel\n"
    finally:
        signer.machine.run(f"systemctl stop 'shadow-client@*'; rm -rf {folder}; mv {away} {folder}")


@pytest.mark.slow
def test_a_clock_that_jumps(signer: Fleet) -> None:
    """Forward: it is due at once. Back: the new one is not valid yet, and the old one is good again."""
    short_lived(signer, 7200, 600)
    cursor = signer.machine.cursor()
    signer.start("011")
    minutes = round(80 * signer.machine.slowness)  # as the certificate's life
    signer.machine.run(f"date --set='+{minutes} minutes'")
    try:
        signer.wait_for_event(cursor, RENEWED, "-u", CLIENT, timeout=240)
        signer.machine.wait_until(f"[[ $(ls {STATE}) == pair.pem ]]")
        signer.machine.run("systemctl stop shadow-client@011")
    finally:
        signer.machine.run(f"date --set='-{minutes} minutes'")
    signer.machine.run("systemctl start shadow-client@011")
    signer.machine.wait_until(f"journalctl -q -o cat -u {CLIENT} -n 20 | grep 'is not valid before'")
    signer.wait_for_robot()
    assert signer.machine.run(signer.ssh("id -un"), user=OPERATOR).stdout == f"{OPERATOR}\n"


@pytest.mark.slow
def test_one_ca_follows_another(signer: Fleet) -> None:
    """CA ROLL-OVER in shadow-ca(1), step by step: nobody is visited, and a visitor stays to the last step."""
    run, etc = signer.machine.run, "/etc/shadow-tunnel"
    short_lived(signer, 120, 40)
    signer.start("011")
    cursor = signer.machine.cursor()
    with signer.machine.background(signer.ssh("cat"), user=OPERATOR) as session:
        assert session.ask(b"1\n") == b"1\n"
        run("rm -rf /srv/new && shadow-ca --dir /srv/new init --name 'The new CA'")
        run(f"cat /srv/fleet/ca.crt /srv/new/ca.crt >{etc}/ca.crt")
        run("systemctl reload shadow-server 'shadow-client@*'")
        run("shadow-ca --dir /srv/new server localhost")
        run(f"cp /srv/new/server.* {etc}/ && systemctl restart shadow-server")
        signer.wait_for_robot()
        run(f"cat /srv/new/ca.crt /srv/fleet/ca.crt >{CA}/ca.crt && cat /srv/new/ca.key >{CA}/ca.key")
        signer.wait_for_event(cursor, RENEWED, "-u", CLIENT)
        signer.machine.wait_until(f"[[ $(ls {STATE}) == pair.pem ]]")
        assert session.ask(b"2\n") == b"2\n"
        run(f"cp /srv/new/ca.crt {etc}/ && systemctl restart shadow-server shadow-client@011")
        assert session.wait() == 255  # its connection was made with a certificate of the old CA
    signer.wait_for_robot()
    assert run(signer.ssh("id -un"), user=OPERATOR).stdout == f"{OPERATOR}\n"
    issuer = run(f"openssl x509 -noout -issuer -in {STATE}/pair.pem").stdout
    assert "The new CA" in issuer


@pytest.mark.slow
@pytest.mark.timeout(1500, func_only=True)
def test_a_certificate_of_two_minutes_renews_itself_five_times_under_a_transfer(signer: Fleet) -> None:
    short_lived(signer, 120, 0)
    cursor = signer.machine.cursor()
    signer.start("011")
    with signer.machine.background(signer.copying(), user=OPERATOR) as copying:
        for count in range(1, 6):
            log = shlex.join(["journalctl", "-q", "-o", "cat", f"--cursor={cursor}", "-u", CLIENT])
            signer.machine.wait_until(f"(($({log} | grep -cE '{RENEWED}') >= {count}))", timeout=240)
        status, _output, errors = copying.finish()
        assert status == 0, errors
    signer.machine.run("cmp ~/sent ~/copy && rm ~/sent ~/copy", user=OPERATOR)
    said = "\n".join(event["MESSAGE"] for event in signer.events(cursor, "-u", CLIENT))
    serials = re.findall(r"has a new certificate, (\w+),", said)
    assert len(set(serials)) == len(serials) >= 5
    assert "no session" not in said
    assert "disconnected" not in "\n".join(event["MESSAGE"] for event in signer.events(cursor, "-u", SERVER))
