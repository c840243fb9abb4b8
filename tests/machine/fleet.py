"""A server and robots on one machine: real units, real keys, a real sshd to reach."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .qemu import MARK, Machine

ROBOTS = ("011", "012", "013")
PORT = 2222
OPERATOR, STRANGER = "alice", "mallory"  # in the group shadow-tunnel, and not

_KEPT = "/srv/fleet"  # certificates and keys, made once
_ETC = "/etc/shadow-tunnel"
_DROP_INS = "/etc/systemd/system"
_GUEST = Path(__file__).parent / "guest"

# An operator's ssh, as README has it; her key opens her own account on every robot.
_SSH = (
    "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR "
    "-o HostKeyAlias={robot}"
)


class Fleet:
    """What a test does with the units of Shadow on a machine where the package is installed."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    # --- before and after ---

    def set_up(self) -> None:
        """Make keys and people, once for a machine."""
        run = self.machine.run
        ca = "shadow-ca --dir ."
        run(f"install -d -m 700 {_KEPT} && cd {_KEPT} && {ca} init && {ca} server localhost")
        run(f"cd {_KEPT} && for robot in {' '.join(ROBOTS)}; do {ca} robot $robot; done")
        for user in (OPERATOR, STRANGER):
            run(f"useradd --create-home --shell /bin/bash {user}")
        self.admit_operator()
        keys = "cd ~ && mkdir -pm 700 .ssh && ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519"
        run(f"{keys} && cp .ssh/id_ed25519.pub .ssh/authorized_keys", user=OPERATOR)
        run(f"cp -r ~{OPERATOR}/.ssh ~{STRANGER}/ && chown -R {STRANGER}: ~{STRANGER}/.ssh")
        self.machine.copy_to(_GUEST, "/srv/guest")

    def admit_operator(self) -> None:
        """Put the operator into the group that may visit robots."""
        self.machine.run(f"usermod --append --groups shadow-tunnel {OPERATOR}")

    def reset(self) -> None:
        """The state after an installation, with keys in place: nothing runs, nothing is enabled."""
        self.machine.run(
            "systemctl stop 'shadow-server.*' 'shadow-client@*' shadow-ca-signer.socket;"
            "find /var/lib/shadow-tunnel /var/lib/shadow-ca -mindepth 1 -delete;"
            f"rm -rf {_DROP_INS}/shadow-*.d {_DROP_INS}/*.wants/shadow-*;"
            f"find {_ETC} -mindepth 1 ! -name server.env ! -name client.env -delete;"
            "systemctl daemon-reload; systemctl reset-failed"
        )
        names = ["ca.crt", *(f"{name}.{kind}" for name in ("server", *ROBOTS) for kind in ("crt", "key"))]
        self.machine.run(["cp", "-t", _ETC, *(f"{_KEPT}/{name}" for name in names)])
        self.settings("client", rhost="localhost", rport=PORT)
        self.settings("server", keepalive=1)

    def settings(self, of: str, **values: object) -> None:
        """Write an environment file: ``server``, ``client`` or ``client@NAME``."""
        lines = [f"SHADOW_{name.upper()}={value}\n" for name, value in values.items()]
        self.machine.write(f"{_ETC}/{of}.env", "".join(lines))

    def drop_in(self, unit: str, text: str) -> None:
        """Change a unit as `systemctl edit` does."""
        self.machine.write(f"{_DROP_INS}/{unit}.d/test.conf", text)
        self.machine.run("systemctl daemon-reload")

    # --- units ---

    def start(self, *robots: str) -> None:
        """Enable and start the server's socket and robots; return when they can be visited."""
        units = ["shadow-server.socket", *(f"shadow-client@{robot}" for robot in robots)]
        self.machine.run(["systemctl", "enable", "--now", *units])
        for robot in robots:
            self.wait_for_robot(robot)

    def wait_for_robot(self, robot: str = "011") -> None:
        """Wait until a robot's socket takes visitors."""
        self.machine.wait_until(f"[[ -S /run/shadow-tunnel/{robot}.sock ]]")

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.machine.run(["systemctl", "show", "--value", "-p", name, unit]).stdout.strip()

    def pid(self, unit: str) -> int:
        """The main process of a unit; 0 if there is none."""
        return int(self.show(unit, "MainPID"))

    def wait_for(self, unit: str, name: str, pattern: str, *, timeout: float = 120.0) -> None:
        """Wait until a property of a unit matches a regular expression of grep -E."""
        self.machine.wait_until(
            f"systemctl show --value -p {name} {shlex.quote(unit)} | grep -E -e {shlex.quote(pattern)}",
            timeout=timeout,
        )

    # --- visitors ---

    def ssh(self, command: str, *, robot: str = "011", user: str = OPERATOR) -> str:
        """A command for the machine that runs ``command`` on a robot over ssh, through its socket."""
        proxy = f"socat - UNIX-CONNECT:/run/shadow-tunnel/{robot}.sock"
        options = _SSH.format(robot=robot)
        return (
            f"{options} -o {shlex.quote(f'ProxyCommand {proxy}')} {OPERATOR}@{robot} {shlex.quote(command)}"
        )

    def copying(self, *, robot: str = "011") -> str:
        """A command for the operator: writes ``~/copy`` on a robot, and the same to ``~/sent``.

        It goes on until its standard input ends, however slow the machine is: so a test that needs a copy
        under way has one.
        """
        # read's status is above 128 when it waited for the whole time.
        data = "while read -r -t 0.1; (($? > 128)); do head -c 8K /dev/urandom; done"
        return f"{data} | tee ~/sent | {self.ssh('cat >~/copy', robot=robot)}"

    def traffic(self, *arguments: object, timeout: float = 300.0, user: str = OPERATOR) -> dict[str, Any]:
        """Run guest/traffic.py; what it has counted."""
        words = ["python3", "/srv/guest/traffic.py", *map(str, arguments)]
        said = self.machine.run(words, timeout=timeout, user=user).stdout
        counted: dict[str, Any] = json.loads(said.splitlines()[-1])
        return counted

    # --- evidence ---

    def events(self, after: str, *match: str) -> list[Mapping[str, str]]:
        """Entries of the journal with all their fields, from a cursor on."""
        said = self.machine.run(
            ["journalctl", "--quiet", "--no-pager", "--output=json", f"--cursor={after}", *match]
        ).stdout
        events = [json.loads(line) for line in said.splitlines()]
        return [event for event in events if event.get("SYSLOG_IDENTIFIER") != MARK]

    def wait_for_event(self, after: str, pattern: str, *match: str, timeout: float = 120.0) -> None:
        """Wait until the journal has a message that matches a regular expression of grep -E."""
        words = shlex.join(["journalctl", "--quiet", "--output=cat", f"--cursor={after}", *match])
        self.machine.wait_until(
            f"{words} | tee /dev/stderr | grep -qE -e {shlex.quote(pattern)}", timeout=timeout
        )

    def connections(self, unit: str) -> list[dict[str, Any]]:
        """A daemon's connections between server and robot, and what the kernel encrypts on them.

        See guest/tls_sockets.py.
        """
        said = self.machine.run(
            ["python3", "/srv/guest/tls_sockets.py", str(self.pid(unit)), str(PORT)]
        ).stdout
        return [json.loads(line) for line in said.splitlines()]
