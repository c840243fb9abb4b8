"""Somebody who sets up a server and robots by the README's "For real" alone, and types what documents show.

One machine plays the CA's, the server's and the robots' part. The name in the README is made to lead to it.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support import commands

from .fleet import OPERATOR, Fleet

ETC = "/etc/shadow-tunnel"
CA, BROUGHT = "/srv/ca", "/srv/brought"  # the folder of `--dir ca`, and where its files are brought to
_HOST = "tunnel.example.com"
_CLEAN = f"rm -rf {CA} {BROUGHT}; sed -i /{_HOST}/d /etc/hosts"
_EDITOR = "/srv/editor"
_WRITE = f'#!/bin/sh\nfor file; do :; done\ncat {_EDITOR}.txt >"$file"\n'  # the last: a line may come first
_SSH_CONFIG = "BatchMode yes\nStrictHostKeyChecking accept-new\nLogLevel ERROR\n"


@contextmanager
def bare(fleet: Fleet) -> Iterator[None]:
    """After an installation: no key, no setting, and the operator in no group."""
    run = fleet.machine.run
    run(f"{_CLEAN}; echo 127.0.0.1 {_HOST} >>/etc/hosts")
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


def set_up(fleet: Fleet) -> None:
    """A CA, a server, and the robots 011 and 012, by the README; return when both can be visited."""
    certificates = text(commands.block("for real: certificates"))
    type_in(fleet, "/srv", certificates)
    (robot,) = re.findall("^shadow-ca .* robot 011.*$", certificates, re.MULTILINE)
    type_in(fleet, "/srv", robot.replace("011", "012"))
    bring(fleet, "ca.crt", "server.crt", "server.key")
    type_in(fleet, BROUGHT, text(commands.block("for real: server")))
    fleet.machine.write(f"{ETC}/client.env", commands.block("for real: client.env").written)
    for name in ("011", "012"):
        bring(fleet, "ca.crt", f"{name}.crt", f"{name}.key")
        type_in(fleet, BROUGHT, text(commands.block("for real: robot")).replace("011", name))
    for name in ("011", "012"):
        fleet.wait_for_robot(name)
