"""Somebody who sets up a server and robots by the README alone, and types what documents show.

One machine is laptop, server and robots ("Two real machines"). The names in the README lead to it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support import commands

from .fleet import OPERATOR, Fleet

ETC = "/etc/shadow-tunnel"
CA, BROUGHT = "/srv/ca", "/srv/brought"  # the folder of `--dir ca`, and where its files are brought to
HOME = f"/home/{OPERATOR}"  # where the README's scp brings them
_PACKAGE = "build/deb/shadow-tunnel_0.1.0_all.deb"  # what is copied along with them
_SERVER, _ROBOT = "tunnel.example.com", "robot.local"
_FILES = f"{CA} {BROUGHT} /srv/build {HOME}/*.{{deb,crt,crl,key}}"
_CLEAN = f"rm -rf {_FILES}; sed -i '/{_SERVER}/d; /{_ROBOT}/d' /etc/hosts"
_SUDO = 'sudo() { "$@"; }\n'  # who types it is root; the machine has no sudo
_EDITOR = "/srv/editor"
_WRITE = f'#!/bin/sh\nfor file; do :; done\ncat {_EDITOR}.txt >"$file"\n'  # the last: a line may come first
_SSH_CONFIG = "BatchMode yes\nStrictHostKeyChecking accept-new\nLogLevel ERROR\n"


@contextmanager
def bare(fleet: Fleet, server: str = "127.0.0.1") -> Iterator[None]:
    """After an installation: no key, no setting, the operator in no group. The server has this address."""
    run = fleet.machine.run
    run(f"{_CLEAN}; printf '%s %s\\n' {server} {_SERVER} 127.0.0.1 {_ROBOT} >>/etc/hosts")
    run(f"find {ETC} -type f -delete; gpasswd --delete {OPERATOR} shadow-tunnel")
    try:
        with ssh_agrees(fleet):
            yield
    finally:
        fleet.admit_operator()
        fleet.machine.run(_CLEAN)


@contextmanager
def ssh_agrees(fleet: Fleet, user: str = OPERATOR) -> Iterator[None]:
    """Nobody sits at a keyboard who could answer what ssh asks about a new host key."""
    fleet.machine.run("umask 077; mkdir -p ~/.ssh; cat >~/.ssh/config", user=user, stdin=_SSH_CONFIG)
    try:
        yield
    finally:
        fleet.machine.run("rm ~/.ssh/config", user=user)


@contextmanager
def root_logs_in(fleet: Fleet) -> Iterator[None]:
    """Root of the CA's machine may log in as root of the server."""
    run = fleet.machine.run
    run("cd ~/.ssh && cp authorized_keys kept && ssh-keygen -q -t ed25519 -N '' -f id_ed25519")
    try:
        run("cd ~/.ssh && cat id_ed25519.pub >>authorized_keys")
        with ssh_agrees(fleet, "root"):
            yield
    finally:
        run("cd ~/.ssh && mv kept authorized_keys && rm id_ed25519*")


def text(block: commands.Block) -> str:
    """The commands of a block, as one types them."""
    return "".join(f"{command.text}\n" for command in block.commands)


def type_in(fleet: Fleet, folder: str, lines: str, *, user: str | None = None) -> str:
    """Type lines in a folder, up to the first that fails; what they say."""
    words = ["bash", "-ec", f"cd {folder}\n{lines}"]
    return fleet.machine.run(words, user=user).stdout


def bring(fleet: Fleet, *names: str) -> None:
    """Files of the machine with the CA, in the folder where the next lines are typed."""
    fleet.machine.run(["rm", "-rf", BROUGHT])
    fleet.machine.run(["install", "-D", "-t", BROUGHT, *(f"{CA}/{name}" for name in names)])


def edit(fleet: Fleet, command: str, written: str) -> None:
    """Type a ``systemctl edit``, and write something into the editor; on a terminal, which it needs."""
    fleet.machine.write(f"{_EDITOR}.txt", written)
    fleet.machine.write(_EDITOR, _WRITE, mode=0o755)
    fleet.machine.run(["script", "-qec", f"SYSTEMD_EDITOR={_EDITOR} {command}", "/dev/null"])
    fleet.machine.run(f"rm {_EDITOR}*")


def as_root(fleet: Fleet, block: commands.Block, robot: str = "011", folder: str = HOME) -> str:
    """Type a block with `sudo`, by default where the README's scp has brought the files; what it says."""
    return type_in(fleet, folder, _SUDO + text(block).replace("011", robot))


def on_the_laptop(fleet: Fleet, block: commands.Block, robot: str = "011") -> None:
    """Type a block as the operator, where `ca` is the CA's folder."""
    type_in(fleet, "/srv", text(block).replace("011", robot), user=OPERATOR)


def set_up(fleet: Fleet) -> None:
    """A CA, a server, and the robots 011 and 012, by the README; return when both can be visited."""
    fleet.machine.run(f"install -d -o {OPERATOR} {CA}; install -D /dev/null /srv/{_PACKAGE}")
    on_the_laptop(fleet, commands.block("two machines: laptop"))
    as_root(fleet, commands.block("two machines: server"))
    set_up_robot(fleet)
    laptop = [one.text for one in commands.block("two machines: laptop").commands]
    again = "\n".join(line for line in laptop if "011" in line)
    type_in(fleet, "/srv", again.replace("011", "012"), user=OPERATOR)
    set_up_robot(fleet, "012")
    for name in ("011", "012"):
        fleet.wait_for_robot(name)


def set_up_robot(fleet: Fleet, robot: str = "011", folder: str = HOME) -> None:
    """A robot, by the README, with the files in a folder."""
    fleet.machine.run(f"touch {ETC}/client.env; sed -i /^SHADOW_R/d {ETC}/client.env")  # the block adds them
    as_root(fleet, commands.block("two machines: robot"), robot, folder)
