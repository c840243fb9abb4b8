"""Boots an image in QEMU and talks to it.

Everything is emulated (TCG): it works where there is no KVM, and is about ten times slower than the host.
So nothing here sleeps for a while and hopes; it waits for conditions. Its deadlines, and whatever else a test
measures in seconds, grow with the machine's ``slowness``: a busy host makes tests long, not wrong.

The machine is reached by ssh alone, through one connection that all commands share; QEMU forwards a free
port of the loopback interface to it, and lets nothing else in or out (``restrict=on``). The disk is an
overlay that QEMU has already unlinked. QEMU and ssh are children that die with this process, however it ends.
"""

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from .image import Image

MARK = "mark"  # identifier of the entries that tests set into the journal, to find their place again
BOOT_DEADLINE = 900.0  # seconds
BOOT_USUAL = 15.0  # seconds that it takes on an idle host
COMMAND_DEADLINE = 120.0  # seconds; what a test wants to be quicker says so itself
STOP_DEADLINE = 90.0  # seconds; systemd's own for one unit
GRACE = 30.0  # seconds that the host waits longer than the machine, so that the machine's word comes first

MEMORY = 2048  # MiB
CPUS = 2

# Cheap to compute, and understood by Debian 12 and 13.
_SSH_OPTIONS = (
    "BatchMode=yes",
    "CheckHostIP=no",
    "Ciphers=aes128-gcm@openssh.com",
    "Compression=no",
    "ConnectTimeout=30",
    "HostKeyAlias=shadow-machine",
    "IdentitiesOnly=yes",
    "KexAlgorithms=curve25519-sha256",
    "LogLevel=ERROR",
    "StrictHostKeyChecking=yes",
)

_FAST = ("-accel", "tcg,thread=multi", "-cpu", "max,-svm")
# The string copy that erms and fsrm switch on would count as one instruction for each byte.
_COUNTED = (
    *("-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"),
    *("-cpu", "max,-svm,-erms,-fsrm"),
)

_T = TypeVar("_T")


class MachineError(Exception):
    """The machine did not boot, or is not to be reached; ``str()`` ends with its console."""


class CommandError(Exception):
    """A command in the machine failed.

    Attributes:
        result: what became of it.
    """

    def __init__(self, result: subprocess.CompletedProcess[str]) -> None:
        output = "".join(
            f"\n--- {name} ---\n{_tail(text)}"
            for name, text in (("stdout", result.stdout), ("stderr", result.stderr))
            if text
        )
        super().__init__(f"status {result.returncode}: {result.args}{output}")
        self.result = result


class Machine:
    """A running machine. A context manager: it ends with the block.

    Attributes:
        image: what it was booted from.
        port: the port on 127.0.0.1 that leads to its sshd.
    """

    def __init__(
        self, image: Image, *, memory: int = MEMORY, cpus: int = CPUS, counted: bool = False
    ) -> None:
        """Describe a machine.

        Args:
            image: what to boot.
            memory: in MiB.
            cpus: how many.
            counted: its clock counts instructions, one a nanosecond, so that times repeat; it has one CPU.
        """
        self.image = image
        self.port = 0
        self._memory = memory
        self._cpus = 1 if counted else cpus
        self._emulation = _COUNTED if counted else _FAST
        self._directory = Path(tempfile.mkdtemp(prefix="shadow-machine-"))
        self._qemu: subprocess.Popen[bytes] | None = None
        self._master: subprocess.Popen[bytes] | None = None
        self._monitor: _Monitor | None = None
        self._background: list[Background] = []
        self._numbers = itertools.count(1)
        self._boot_took = 0.0

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # Ctrl-C included: leave nothing behind
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- life ---

    def start(self) -> None:
        """Boot, and return when all that starts at boot has started."""
        for tool in ("qemu-system-x86_64", "ssh", "setpriv"):
            if shutil.which(tool) is None:
                raise MachineError(f"{tool} is missing: run tests/machine/setup")
        with (self._directory / "qemu.log").open("wb") as log:
            self._qemu = _spawn(self._qemu_command(), stdout=log, stderr=subprocess.STDOUT)
        started = time.monotonic()
        deadline = started + BOOT_DEADLINE
        self._monitor = _Monitor(self._wait_until(self._try_monitor, deadline, "QEMU's monitor"))
        self.port = self._monitor.forwarded_port()
        self._connect(deadline)
        self.settle()
        self._boot_took = time.monotonic() - started

    @property
    def slowness(self) -> float:
        """How many times longer things take than on an idle host; 1 at least.

        Booting has shown it. The host may have become busier since, which its load tells.
        """
        return max(1.0, self._boot_took / BOOT_USUAL, os.getloadavg()[0] / (os.cpu_count() or 1))

    def reboot(self) -> None:
        """Shut down in good order and boot again; the disk keeps what was written."""
        before = self.boot_id()
        self.run("systemctl --no-block reboot")
        self._disconnect()
        self._come_back(before)

    def reset(self) -> None:
        """Pull the plug and put it back: no shutdown, and what was not yet written is lost."""
        before = self.boot_id()
        assert self._monitor is not None
        self._monitor.execute("system_reset")
        self._disconnect()
        self._come_back(before)

    def power_off(self) -> None:
        """Shut down in good order, and wait for QEMU to end."""
        assert self._qemu is not None
        self.run("systemctl --no-block poweroff")
        try:
            self._qemu.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            raise self._error("it does not power off") from None

    def close(self) -> None:
        """End the machine at once. The overlay goes with it, so there is nothing to be shut down."""
        for process in self._background:
            process.forget()
        self._disconnect()
        if self._monitor is not None:
            self._monitor.close()
        if self._qemu is not None:
            _end(self._qemu)
        shutil.rmtree(self._directory, ignore_errors=True)

    def settle(self) -> None:
        """Wait until systemd has no more jobs from booting."""
        # Not an error: "degraded" (3 = some unit failed) is for a test to complain about.
        self.run("systemctl is-system-running --wait", check=False, timeout=BOOT_DEADLINE)

    def boot_id(self) -> str:
        """Another one after each boot."""
        return self.run("cat /proc/sys/kernel/random/boot_id").stdout.strip()

    # --- commands ---

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        timeout: float = COMMAND_DEADLINE,
        user: str | None = None,
        stdin: str | bytes | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine, as root or another user, and wait for it.

        Args:
            command: a line for bash, or a list of words.
            check: raise if it fails.
            timeout: seconds until it is killed, in the machine too; on a slow machine more.
            user: whom to run it as.
            stdin: what it reads; nothing if None.

        Raises:
            CommandError: it failed, and ``check`` is set.
            TimeoutError: it took too long.
            MachineError: the machine cannot be reached.
        """
        done = self._run_bytes(command, timeout=timeout, user=user, stdin=stdin)
        result = subprocess.CompletedProcess(
            _line(command),
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )
        if check and result.returncode != 0:
            raise CommandError(result)
        return result

    def wait_until(
        self, condition: str, *, timeout: float = COMMAND_DEADLINE, user: str | None = None
    ) -> None:
        """Wait until a command succeeds in the machine.

        Raises:
            TimeoutError: it never did; its last output is in the text.
        """
        loop = f"until said=$({condition} 2>&1); do printf '%s\\n' \"$said\" >/dev/shm/said; sleep 0.1; done"
        try:
            self.run(loop, timeout=timeout, user=user)
        except TimeoutError as error:
            said = self.run("cat /dev/shm/said", check=False).stdout
            raise TimeoutError(f"never true: {condition}: {error}\n{_tail(said)}") from error

    def background(self, command: str | Sequence[str], *, user: str | None = None) -> "Background":
        """Start a command in the machine and do not wait for it.

        Its standard streams are pipes. It is killed at the latest when the machine ends.
        """
        pid_file = f"/run/background-{next(self._numbers)}"
        line = f"echo $$ >{pid_file}; exec {_as_user(_line(command), user)}"
        process = subprocess.Popen(
            [*self._ssh(), line], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._background.append(Background(self, process, pid_file))
        return self._background[-1]

    # --- files ---

    def write(self, path: str, data: str | bytes, *, mode: int = 0o644) -> None:
        """Put a file into the machine, and the directories above it."""
        self.run(["install", "-D", "-m", f"{mode:o}", "/dev/stdin", path], stdin=data)

    def read(self, path: str) -> bytes:
        """The content of one of the machine's files."""
        done = self._run_bytes(["cat", path], timeout=COMMAND_DEADLINE)
        if done.returncode != 0:
            raise FileNotFoundError(done.stderr.decode(errors="replace").strip())
        return done.stdout

    def copy_to(self, source: Path, target: str) -> None:
        """Copy a file, or what is in a directory, to ``target``; the machine's root will own it."""
        if not source.is_dir():
            self.write(target, source.read_bytes(), mode=source.stat().st_mode & 0o777)
            return
        pack = ["tar", "-C", str(source), "--exclude=__pycache__", "--owner=0", "--group=0", "-c", "."]
        archive = subprocess.run(pack, capture_output=True, check=True).stdout
        quoted = shlex.quote(target)
        self.run(f"mkdir -p {quoted} && tar -C {quoted} -x", stdin=archive)

    def copy_from(self, source: str, target: Path) -> None:
        """Copy a file, or what is in a directory, to ``target`` on the host."""
        if self.run(["test", "-d", source], check=False).returncode != 0:
            target.write_bytes(self.read(source))
            return
        archive = self._run_bytes(["tar", "-C", source, "-c", "."], timeout=COMMAND_DEADLINE)
        if archive.returncode != 0:
            raise FileNotFoundError(archive.stderr.decode(errors="replace").strip())
        target.mkdir(parents=True, exist_ok=True)
        unpack = ["tar", "-C", str(target), "--no-same-owner", "-x"]
        subprocess.run(unpack, input=archive.stdout, check=True)

    # --- evidence ---

    def cursor(self) -> str:
        """Where the journal ends now: the place of a mark that is set there; for :meth:`journal`.

        journalctl of systemd 252 takes the first entry that matches for that of ``--after-cursor``, and
        leaves it out. So it is always ``--cursor``, and an entry that nobody looks for.
        """
        mark = f"logger --tag={MARK} {MARK}; journalctl --sync"
        shown = self.run(
            f"{mark}; journalctl -q --lines=1 --output=cat --show-cursor --identifier={MARK}"
        ).stdout
        return shown.rpartition("-- cursor: ")[2].strip()

    def journal(self, *options: str, after: str | None = None) -> str:
        """The journal, from a cursor on if one is given; ``options`` are journalctl's."""
        place = [f"--cursor={after}"] if after else []
        return self.run(
            ["journalctl", "--no-pager", "--quiet", "--output=short-precise", *place, *options]
        ).stdout

    def console(self) -> str:
        """What the kernel and systemd said on the serial console."""
        with contextlib.suppress(FileNotFoundError):
            return (self._directory / "console.log").read_text(errors="replace")
        return ""

    @property
    def console_socket(self) -> Path:
        """The serial console itself, for ``socat``; root needs no password there."""
        return self._directory / "console"

    def ssh_command(self) -> list[str]:
        """A command for a terminal that logs in, on a connection of its own."""
        return [*self._ssh_base(), "root@127.0.0.1"]

    # --- inside ---

    def _qemu_command(self) -> list[str]:
        kernel_command_line = (
            "root=/dev/nvme0n1 rw console=ttyS0 quiet loglevel=4 systemd.show_status=error "
            "mitigations=off audit=0 apparmor=0 selinux=0 systemd.ssh_auto=no panic=-1"
        )
        disk = f"if=none,id=disk,file={self.image.disk},format=raw,snapshot=on,cache=unsafe,discard=unmap"
        console = f"socket,id=console,path={self.console_socket},server=on,wait=off"
        console += f",logfile={self._directory / 'console.log'}"
        return [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-machine", "q35", *self._emulation),
            *("-smp", str(self._cpus), "-m", str(self._memory)),
            *("-kernel", str(self.image.kernel), "-append", kernel_command_line),
            *("-drive", disk, "-device", "nvme,drive=disk,serial=disk"),
            *("-nic", "user,model=virtio-net-pci,restrict=on,hostfwd=tcp:127.0.0.1:0-:22"),
            *("-device", "virtio-rng-pci"),
            *("-chardev", console, "-serial", "chardev:console"),  # ttyS0
            *("-serial", f"file:{self._directory / 'boots'}"),  # ttyS1
            *("-qmp", f"unix:{self._directory / 'monitor'},server=on,wait=off"),
        ]

    def _ssh_base(self) -> list[str]:
        options = [
            *_SSH_OPTIONS,
            f"IdentityFile={self.image.key}",
            f"UserKnownHostsFile={self.image.known_hosts}",
            f"Port={self.port}",
        ]
        return ["ssh", "-F", "none", *(word for option in options for word in ("-o", option))]

    def _ssh(self) -> list[str]:
        """A session of the one connection. With "ControlMaster=no" ssh would dial if the master is gone."""
        return [*self._ssh_base(), "-S", str(self._directory / "ssh"), "-T", "root@127.0.0.1", "--"]

    def _run_bytes(
        self,
        command: str | Sequence[str],
        *,
        timeout: float,
        user: str | None = None,
        stdin: str | bytes | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        timeout *= self.slowness
        # timeout(1) ends it in the machine: killing ssh alone would leave it running there.
        line = f"exec timeout --kill-after=5 {timeout:g} {_as_user(_line(command), user)}"
        try:
            done = subprocess.run(
                [*self._ssh(), line],
                input=stdin.encode() if isinstance(stdin, str) else stdin or b"",
                capture_output=True,
                timeout=timeout + GRACE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise self._error(f"no answer to: {_line(command)}") from None
        if done.returncode == 255 and not self._is_connected():
            raise self._error(
                f"connection lost: {_line(command)}: {_tail(done.stderr.decode(errors='replace'))}"
            )
        if done.returncode in {124, 137}:  # timeout(1): it ended by SIGTERM, or had to be killed
            said = _tail((done.stdout + done.stderr).decode(errors="replace"))
            raise TimeoutError(f"not done within {timeout:g} s: {_line(command)}\n{said}")
        return done

    def _is_connected(self) -> bool:
        return self._master is not None and self._master.poll() is None

    def _try_monitor(self) -> socket.socket | None:
        monitor = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            monitor.connect(str(self._directory / "monitor"))
        except OSError:
            monitor.close()
            return None
        return monitor

    def _connect(self, deadline: float, *, but_not: str = "") -> None:
        """Open the connection that all commands share, as soon as a boot says that sshd is up.

        To dial earlier would cost time: a SYN that the machine misses is repeated only seconds later.
        """
        self._wait_until(lambda: self._last_boot() not in {"", but_not}, deadline, "the machine")
        control = self._directory / "ssh"
        log = self._directory / "ssh.log"
        with log.open("wb") as output:
            command = [*self._ssh_base(), "-M", "-N", "-S", str(control), "root@127.0.0.1"]
            self._master = _spawn(command, stdout=output, stderr=subprocess.STDOUT)
        self._wait_until(lambda: control.exists() or not self._is_connected(), deadline, "ssh")
        if not self._is_connected():
            raise self._error(f"ssh cannot log in: {_tail(log.read_text(errors='replace'))}")

    def _disconnect(self) -> None:
        if self._master is not None:
            _end(self._master)
            self._master = None
        (self._directory / "ssh").unlink(missing_ok=True)

    def _last_boot(self) -> str:
        """The id of the last boot that got as far as sshd (recipe: machine-ready.service)."""
        try:
            lines = (self._directory / "boots").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.endswith("\n")), "")

    def _come_back(self, old_boot: str) -> None:
        """Connect again after a reboot."""
        deadline = time.monotonic() + BOOT_DEADLINE + STOP_DEADLINE
        self._connect(deadline, but_not=old_boot)
        self.settle()

    def _wait_until(self, attempt: Callable[[], _T | None], deadline: float, what: str) -> _T:
        assert self._qemu is not None
        while not (outcome := attempt()):
            if self._qemu.poll() is not None:
                raise self._error(f"QEMU ended with status {self._qemu.returncode}")
            if time.monotonic() > deadline:
                raise self._error(f"no answer from {what}")
            time.sleep(0.05)
        return outcome

    def _error(self, text: str) -> MachineError:
        with contextlib.suppress(FileNotFoundError):
            said = (self._directory / "qemu.log").read_text(errors="replace")
            text += f"\n{said}" if said else ""
        return MachineError(f"{text}\n--- console ---\n{_tail(self.console())}")


@dataclass(slots=True)
class Background:
    """A command that runs in the machine meanwhile.

    Attributes:
        machine: where it runs.
        process: the ssh session that carries its standard streams; its status is the command's.
    """

    machine: Machine
    process: subprocess.Popen[bytes]
    _pid_file: str

    def signal(self, name: str) -> None:
        """Send a signal to it and to all of its process group."""
        here = self._pid_file
        self.machine.run(f"until [[ -s {here} ]]; do sleep 0.05; done; kill -s {name} -- -$(<{here})")

    def ask(self, line: bytes) -> bytes:
        """Send a line to its standard input; the next line of its standard output."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def wait(self, timeout: float = COMMAND_DEADLINE) -> int:
        """Its exit status, when it has ended."""
        return self.process.wait(timeout * self.machine.slowness)

    def finish(self, timeout: float = COMMAND_DEADLINE) -> tuple[int, bytes, bytes]:
        """Close its standard input, wait, and return status, standard output and standard error."""
        output, errors = self.process.communicate(timeout=timeout * self.machine.slowness)
        return self.process.returncode, output, errors

    def stop(self) -> None:
        """Kill it, if it still runs."""
        if self.process.poll() is None:
            with contextlib.suppress(CommandError):
                self.signal("KILL")
        self.forget()

    def forget(self) -> None:
        """Let go of the ssh session; what runs in the machine is not asked."""
        _end(self.process)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was still to be written has no reader
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Monitor:
    """QEMU's control channel: one JSON object per line (docs/interop/qmp-spec)."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(GRACE)
        self._file = connection.makefile("rw", encoding="utf-8")
        connection.close()  # the file keeps it open
        self._file.readline()  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its answer; events are not of interest."""
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        for line in self._file:
            answer = json.loads(line)
            if "error" in answer:
                raise MachineError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise MachineError(f"{command}: QEMU has gone")

    def forwarded_port(self) -> int:
        """The port that QEMU forwards; the kernel chose it."""
        table = self.execute("human-monitor-command", **{"command-line": "info usernet"})
        match = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)", table)
        if match is None:
            raise MachineError(f"QEMU forwards no port:\n{table}")
        return int(match[1])

    def close(self) -> None:
        """Hang up."""
        self._file.close()


def _spawn(command: list[str], **streams: Any) -> subprocess.Popen[bytes]:
    """Start a child that a Ctrl-C at the terminal does not reach, and that dies with us even so."""
    guarded = ["setpriv", "--pdeathsig", "KILL", *command]
    return subprocess.Popen(guarded, stdin=subprocess.DEVNULL, start_new_session=True, **streams)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a child of ours and collect it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _line(command: str | Sequence[str]) -> str:
    return command if isinstance(command, str) else shlex.join(command)


def _as_user(line: str, user: str | None) -> str:
    shell = f"bash -c {shlex.quote(line)}"
    return shell if user is None else f"runuser -u {shlex.quote(user)} -- {shell}"


def _tail(text: str, lines: int = 60) -> str:
    return "\n".join(text.splitlines()[-lines:])
