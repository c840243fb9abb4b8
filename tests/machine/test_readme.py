"""The README's "For real", typed as it stands there, where nothing has been set up; and what it does.

One machine plays all three. The names in the README are made to lead to it.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .fleet import OPERATOR, Fleet

README = (Path(__file__).parents[2] / "README.md").read_text()
SERVER = "shadow-server.service"
ETC = "/etc/shadow-tunnel"
SSH = "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR"
CLEAN = "rm -rf /srv/ca /srv/brought; sed -i /tunnel.example.com/d /etc/hosts"


def block(name: str) -> str:
    """The lines under a mark in the README."""
    found = re.search(f"<!-- {name} -->\n```\n(.*?)```", README, re.DOTALL)
    assert found is not None, name
    return found[1]


def typed(begin: str) -> str:
    """What root types in the tour, on a line that begins like this."""
    (line,) = re.findall(rf"^# ({re.escape(begin)}.*)$", README, re.MULTILINE)
    return str(line)


@pytest.fixture
def bare(fleet: Fleet) -> Iterator[Fleet]:
    """After an installation: no key, no setting, and the operator in no group."""
    fleet.machine.run(f"{CLEAN}; echo 127.0.0.1 tunnel.example.com >>/etc/hosts")
    fleet.machine.run(f"find {ETC} -type f -delete; gpasswd --delete {OPERATOR} shadow-tunnel")
    yield fleet
    fleet.admit_operator()
    fleet.machine.run(CLEAN)


def bring(fleet: Fleet, *names: str) -> None:
    """Files of the machine with the CA, in the folder where the next lines are typed."""
    fleet.machine.run(["rm", "-rf", "/srv/brought"])
    fleet.machine.run(["install", "-D", "-t", "/srv/brought", *(f"/srv/ca/{name}" for name in names)])


def type_in(fleet: Fleet, folder: str, lines: str) -> str:
    return fleet.machine.run(["bash", "-ec", f"cd {folder}\n{lines}"]).stdout


def test_for_real_as_it_stands_there(bare: Fleet) -> None:
    run = bare.machine.run
    certificates = block("for real: certificates")
    type_in(bare, "/srv", certificates)
    (robot,) = re.findall("^shadow-ca .* robot 011.*$", certificates, re.MULTILINE)
    type_in(bare, "/srv", robot.replace("011", "012"))
    bring(bare, "ca.crt", "server.crt", "server.key")
    type_in(bare, "/srv/brought", block("for real: server"))
    bare.machine.write(f"{ETC}/client.env", block("for real: client.env"))
    for name in ("011", "012"):
        bring(bare, "ca.crt", f"{name}.crt", f"{name}.key")
        type_in(bare, "/srv/brought", block("for real: robot").replace("011", name))
    for name in ("011", "012"):
        bare.wait_for_robot(name)
        assert run(f"{SSH} {OPERATOR}@{name}.robot id -un", user=OPERATOR).stdout == "alice\n"
    modes = run(f"stat -c '%a %U %n' {ETC}/*.crt {ETC}/*.key").stdout.splitlines()
    assert {line.rpartition(".")[2]: line.split()[:2] for line in modes} == {
        "crt": ["644", "root"], "key": ["600", "root"]
    }  # fmt: skip
    lock_out(bare)


def lock_out(fleet: Fleet) -> None:
    """Robot 012, by what the tour types; then look at what it did."""
    cursor = fleet.machine.cursor()
    visits = [f"{SSH} {OPERATOR}@{name}.robot cat" for name in ("011", "012")]
    with (
        fleet.machine.background(visits[0], user=OPERATOR) as staying,
        fleet.machine.background(visits[1], user=OPERATOR) as leaving,
    ):
        for visit in (staying, leaving):
            assert visit.ask(b"hello\n") == b"hello\n"
        type_in(fleet, "/srv", typed("shadow-ca --dir /srv/ca revoke 012"))
        assert leaving.wait() == 255
        assert staying.ask(b"still here\n") == b"still here\n"
    said = f"reloaded: .*; 1 certificate revoked by list [0-9]+ in {ETC}/ca.crl"
    fleet.wait_for_event(cursor, said, "-u", SERVER)
    fleet.wait_for_event(cursor, "robot '012' from .* refused .revoked.", "-u", SERVER)
    assert fleet.machine.run("ls /run/shadow-tunnel").stdout.count("012") == 0
    again = fleet.machine.cursor()
    fleet.machine.run("systemctl restart shadow-server")
    fleet.wait_for_event(again, "robot '012' from .* refused .revoked.", "-u", SERVER)
    fleet.wait_for_robot("011")
    # The list is lost, and nobody is let in again as long as the server runs.
    vanished = fleet.machine.cursor()
    fleet.machine.run(f"rm {ETC}/ca.crl; systemctl reload shadow-server")
    fleet.wait_for_event(vanished, "ca.crl has vanished; the one in use stays in use", "-u", SERVER)
    fleet.wait_for_event(vanished, said, "-u", SERVER)
    fleet.wait_for_event(vanished, "robot '012' from .* refused .revoked.", "-u", SERVER)


@pytest.mark.api
def test_the_status_tells_how_many_are_revoked(fleet: Fleet) -> None:
    fleet.start("011")
    assert re.search(
        r"^ *Revoked: 0 certificates$", fleet.machine.run("shadowctl status").stdout, re.MULTILINE
    )
    revoke = f"cp -r /srv/fleet /srv/ca && {typed('shadow-ca --dir /srv/ca revoke 012')}"
    fleet.machine.run(f"rm -rf /srv/ca; {revoke}; rm -r /srv/ca")
    fleet.machine.wait_until("shadowctl status | grep -q 'Revoked: 1 certificate$'")
