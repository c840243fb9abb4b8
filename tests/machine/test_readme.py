"""The README's "Two real machines", typed as it stands there, where nothing is set up; and what it does.

One machine plays all three, the robots in a network of their own. The names in the README lead to it.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import commands
from tests.support.commands import typed

from . import hands, nat
from .fleet import OPERATOR, Fleet
from .hands import ETC, type_in
from .qemu import Background

SERVER = "shadow-server.service"
SSH = "ssh -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR"
BY_HAND = "/srv/checkout"


@pytest.fixture
def bare(fleet: Fleet) -> Iterator[Fleet]:
    """After an installation: no key, no setting, the operator in no group; robots will be behind NAT."""
    with nat.network(fleet), hands.bare(fleet, server=nat.OUTSIDE):
        fleet.drop_in("shadow-client@.service", nat.DROP_IN)
        yield fleet


def test_two_real_machines(bare: Fleet) -> None:
    """Every line, what it does, and that it can be undone."""
    run = bare.machine.run
    hands.set_up(bare)
    login = typed("ssh alice@011.robot")
    for name in ("011", "012"):
        visit = run(login.replace("011", name), user=OPERATOR, stdin="id -un; ip -br addr\n").stdout
        assert "alice\n" in visit
        assert nat.INSIDE in visit  # on the robot's side of the NAT
    modes = run(f"stat -c '%a %U %n' {ETC}/*.crt {ETC}/*.key").stdout.splitlines()
    assert {line.rpartition(".")[2]: line.split()[:2] for line in modes} == {
        "crt": ["644", "root"], "key": ["600", "root"]
    }  # fmt: skip
    assert run(f"ls {hands.HOME} | grep key", check=False).stdout == ""  # no copy is left where scp put it
    for unit, said in ((SERVER, "^2 robots, "), ("shadow-client@011", "^Connected to .*:2222 ")):
        bare.wait_for(unit, "StatusText", said)
    lock_out(bare)
    undo(bare)


def undo(fleet: Fleet) -> None:
    """Robot 011, then the server, then the laptop, by the README's table."""
    run = fleet.machine.run
    assert OPERATOR in run("getent group shadow-tunnel").stdout
    for line in (
        typed("sudo systemctl disable --now shadow-client@011"),
        typed("sudo gpasswd -d alice shadow-tunnel"),
        typed("sudo systemctl disable --now shadow-server.socket"),
        typed("sudo systemctl stop shadow-server"),
    ):
        run(line.removeprefix("sudo "))
    type_in(fleet, "/srv", typed("rm -r ca"))
    for unit in ("shadow-client@011", "shadow-server.socket"):
        assert run(f"systemctl is-enabled {unit}", check=False).stdout == "disabled\n"
    for unit in ("shadow-client@011", "shadow-server.socket", SERVER):
        assert run(f"systemctl is-active {unit}", check=False).stdout == "inactive\n"
    assert OPERATOR not in run("getent group shadow-tunnel").stdout
    assert run(f"ls -d {hands.CA} /run/shadow-tunnel", check=False).stdout == ""


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
    assert "░░ Subject: A robot was refused: revoked" in type_in(
        fleet, "/", typed("journalctl -x -u shadow-server -n 1")
    )
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


@pytest.mark.slow
def test_by_hand_in_a_checkout(fleet: Fleet, tmp_path: Path) -> None:
    """TRY.md, with what a checkout has, in the operator's terminals."""
    for name in ("shadow-ca", "shadow-server", "shadow-client"):
        shutil.copy(commands.CHECKOUT / name, tmp_path)
    shutil.copytree(commands.CHECKOUT / "shadow", tmp_path / "shadow")
    fleet.machine.copy_to(tmp_path, BY_HAND)
    fleet.machine.run(["chown", "-R", f"{OPERATOR}:", BY_HAND])
    type_in(fleet, BY_HAND, typed("./shadow-ca quickstart ."), user=OPERATOR)
    with hands.ssh_agrees(fleet), terminal(fleet, typed("./shadow-server -6")) as server:
        with terminal(fleet, typed("./shadow-client", "--lport=22")) as robot:
            fleet.machine.wait_until(f"[[ -S {BY_HAND}/011.sock ]]")
            said = type_in(fleet, BY_HAND, typed("ls -l *.sock"), user=OPERATOR)
            assert re.fullmatch(r"srw-rw---- 1 alice alice 0 .* 011\.sock\n", said)
            visit = typed('ssh -o "ProxyCommand socat - UNIX-CONNECT:./011.sock" robot011')
            assert type_in(fleet, BY_HAND, visit, user=OPERATOR).startswith("Linux ")
            robot.signal("INT")
            fleet.machine.wait_until(f"[[ ! -e {BY_HAND}/011.sock ]]")
        sink = typed("socat -u TCP6-LISTEN:9000").removesuffix(" &")
        with terminal(fleet, sink), terminal(fleet, typed("./shadow-client", "--lport=9000")):
            fleet.machine.wait_until(f"[[ -S {BY_HAND}/011.sock ]]")
            flood = typed("cat /dev/zero | pv | socat - UNIX-CONNECT:./011.sock")
            type_in(fleet, BY_HAND, f"timeout 3 bash -c {shlex.quote(flood)} || (($? == 124))", user=OPERATOR)
        server.signal("INT")
        log = server.finish()[2].decode()
    (small, large) = re.findall(r"stream \d ended: (\d+) bytes to the robot", log)
    assert 1000 < int(small) < 1_000_000 < int(large), log
    fleet.machine.run(f"rm -r {BY_HAND}")


def terminal(fleet: Fleet, line: str) -> Background:
    """A terminal of the operator's, where something runs until it is ended."""
    return fleet.machine.background(["bash", "-c", f"cd {BY_HAND}; exec {line}"], user=OPERATOR)
