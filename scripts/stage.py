"""What the demos share: how it looks, processes that end with us, an sshd, a folder that goes in the end."""

# ruff: noqa: D103, S603, T201 - for scripts: talks to people, runs programs, is nobody's library

import contextlib
import getpass
import io
import os
import random
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TypeVar

CHECKOUT = Path(__file__).resolve().parent.parent
DEADLINE = 30.0  # seconds until something that starts must be ready
SUN_PATH_MAX = 107  # bytes of a unix socket's path (unix(7))
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))
PRIVSEP = Path("/run/sshd")  # sshd insists on it when it runs as root; Debian's service makes it
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

SSHD_CONFIG = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
# The folder is ours alone, but sshd would also look at /tmp above it.
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM {pam}
Subsystem sftp internal-sftp
"""

SSH_CONFIG = """\
Host {robots}
    User {user}
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    LogLevel ERROR
"""

# Hands sockets over as systemd does (sd_listen_fds(3)): from descriptor 3 on, to what this process becomes.
HAND_OVER = """\
import fcntl, os, sys
passed = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 100) for number in sys.argv[1].split(",")]
for number, descriptor in enumerate(passed, 3):
    os.dup2(descriptor, number)
os.closerange(3 + len(passed), 1024)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execvp(sys.argv[2], sys.argv[2:])
"""

Value = TypeVar("Value")
Words = Sequence[str | Path]


class DemoError(Exception):
    """The demo cannot go on; the text says why and what to do."""


class Interrupted(BaseException):
    """A signal asks us to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


# What it looks like

COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def headline(text: str) -> None:
    print(paint("1", text), flush=True)


def title(text: str) -> None:
    print("\n" + paint("1", text), flush=True)


def show_command(text: str) -> None:
    print("  " + paint("36", "$ " + text), flush=True)


def show_output(text: str) -> None:
    for line in text.splitlines():
        print(f"  {line}".rstrip(), flush=True)


@contextlib.contextmanager
def step(name: str) -> Iterator[Callable[[str], None]]:
    """One line: what is being done, then a tick and what came of it."""
    detail = ""

    def tell(text: str) -> None:
        nonlocal detail
        detail = text

    if COLOUR:
        print(f"  … {name}", end="", flush=True)
    try:
        yield tell
    except BaseException:
        print(("\r" if COLOUR else "") + paint("31", f"  ✗ {name}"), flush=True)
        raise
    print(("\r" if COLOUR else "") + f"  {paint('32', '✓')} {name:<15}{detail}", flush=True)


# Processes and sockets


def tail(log: Path) -> str:
    """The end of a log, for an error message."""
    lines = log.read_text(errors="replace").splitlines()[-8:] if log.exists() else []
    return "".join(f"\n    {line}" for line in lines)


@dataclass(frozen=True)
class Program:
    """What to run.

    Attributes:
        name: for messages.
        command: its words.
        settings: what it finds in its environment besides ours.
        passed: listening sockets, by the names with which systemd would pass them; closed here once it runs.
        end: the signal that ends it.
    """

    name: str
    command: Words
    settings: Mapping[str, str] = field(default_factory=dict)
    passed: Mapping[str, socket.socket] = field(default_factory=dict)
    end: signal.Signals = signal.SIGTERM


@dataclass(frozen=True)
class Running:
    """A program that runs, and where its output goes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    end: signal.Signals

    def stop(self) -> None:
        """End it, and wait until it has."""
        if self.process.poll() is None:
            self.process.send_signal(self.end)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Processes:
    """Daemons of ours; each ends with us, whatever happens."""

    def __init__(self) -> None:
        self._running: list[Running] = []

    def start(self, program: Program, log: Path) -> None:
        """Start one that writes to a log."""
        environment = {**os.environ, **program.settings}
        # Should we be killed without a chance to clean up, the kernel stops it.
        words: list[str | Path] = ["setpriv", "--pdeathsig", program.end.name[3:], "--", *program.command]
        descriptors = [sock.fileno() for sock in program.passed.values()]
        if descriptors:
            environment |= {"LISTEN_FDS": str(len(descriptors)), "LISTEN_FDNAMES": ":".join(program.passed)}
            words = [sys.executable, "-c", HAND_OVER, ",".join(map(str, descriptors)), *words]
        # Groups of their own, so that Ctrl-C reaches them through us, in order.
        with log.open("ab") as output:
            process = subprocess.Popen(
                words, env=environment, process_group=0, pass_fds=descriptors,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        for sock in program.passed.values():
            sock.close()
        self._running.append(Running(program.name, process, log, program.end))

    def pids(self, *names: str) -> list[int]:
        """The processes of some of them."""
        return [one.process.pid for name in names for one in self._running if one.name == name]

    def kill(self, *names: str) -> None:
        """``kill -9``, as if their machine had no power any more; nobody misses them."""
        for one in [one for one in self._running if one.name in names]:
            one.process.kill()
            self._running.remove(one)
            one.process.wait()

    def check(self) -> None:
        """Raise if one has ended by itself."""
        for one in self._running:
            if one.process.poll() is not None:
                status = one.process.returncode
                raise DemoError(f"{one.name} ended with status {status}; its log:{tail(one.log)}")

    def wait_until(self, condition: Callable[[], Value | None], what: str, log: Path) -> Value:
        """Poll until it is true; what it then is. The log is that of who could say why it is not."""
        end = time.monotonic() + DEADLINE
        while not (value := condition()):
            self.check()
            if time.monotonic() > end:
                raise DemoError(f"waited {DEADLINE:g} s for {what}; {log.name}:{tail(log)}")
            time.sleep(0.02)
        return value

    def wait_for(self, log: Path, pattern: str) -> re.Match[str]:
        """Wait until a log says something."""
        return self.wait_until(
            lambda: re.search(pattern, log.read_text(errors="replace")), repr(pattern), log
        )

    def stop(self) -> None:
        """Stop all, the last one first."""
        for one in reversed(self._running):
            one.stop()


def run(command: Words, folder: Path) -> str:
    """Run a command that must succeed; its output."""
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        words = shlex.join(str(word) for word in command)
        raise DemoError(f"{words}\n    ended with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def free_port(*hosts: str) -> int:
    """One that the kernel does not choose for others (ip_local_port_range, ip(7)) before we use it."""
    while True:
        port = random.SystemRandom().randrange(15_000, 32_768)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for host in hosts:
                stack.enter_context(listen(host, port))
            return port


def listen(host: str, port: int) -> socket.socket:
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


# An sshd


def start_sshd(folder: Path, processes: Processes) -> int:
    """Start one that takes whoever runs the demo; its port on 127.0.0.1."""
    if SSHD is None:
        raise DemoError("there is no sshd; 'scripts/setup run' installs openssh-server")
    for name in ("host_key", "user_key"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", name], folder)
    port = free_port("127.0.0.1")
    config = SSHD_CONFIG.format(port=port, folder=folder, pam="yes" if is_locked() else "no")
    (folder / "sshd.conf").write_text(config)
    log = folder / "sshd.log"
    processes.start(Program("sshd", [SSHD, "-D", "-e", "-f", folder / "sshd.conf"]), log)
    processes.wait_for(log, "Server listening")
    return port


def write_ssh_conf(folder: Path, robots: str, *way: str) -> None:
    """What ssh has to know of that sshd: by which names (a pattern), and by which lines it gets there."""
    lines = SSH_CONFIG.format(robots=robots, user=getpass.getuser(), folder=folder)
    (folder / "ssh.conf").write_text(lines + "".join(f"    {line}\n" for line in way))
    (folder / "known_hosts").write_text(f"{robots} {(folder / 'host_key.pub').read_text()}")


def ssh(folder: Path, *words: str) -> str:
    """Visit a robot; what the command there says."""
    try:
        return run(["ssh", "-F", "ssh.conf", *words], folder)
    except DemoError as error:
        raise DemoError(f"{error}\n  sshd's log:{tail(folder / 'sshd.log')}") from None


def is_locked() -> bool:
    """True if sshd, run by root, would refuse the account unless it asks PAM."""
    if os.geteuid() != 0:
        return False
    with contextlib.suppress(OSError):
        for line in Path("/etc/shadow").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == getpass.getuser():
                return rest.startswith("!")
    return False


@contextlib.contextmanager
def privilege_separation() -> Iterator[None]:
    """Run as root, sshd insists on a folder that Debian's service makes at its start."""
    if os.geteuid() != 0 or PRIVSEP.exists():
        yield
        return
    PRIVSEP.mkdir(mode=0o755)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            PRIVSEP.rmdir()


# From nothing to nothing


@contextlib.contextmanager
def temporary_folder(longest: str) -> Iterator[Path]:
    """A folder for everything, with a path short enough for a socket of that name in it."""
    folder = Path(tempfile.mkdtemp(prefix="shadow-demo-")).resolve()
    if len(os.fsencode(folder / longest)) > SUN_PATH_MAX:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="shadow-demo-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def interrupt(number: int, _frame: FrameType | None) -> None:
    ignore_signals()  # from here on there is only cleaning up, which a second Ctrl-C must not disturb
    raise Interrupted(number)


def ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def stay(folder: Path, processes: Processes, commands: Sequence[str]) -> None:
    """Show what can be typed meanwhile; wait for Enter, a signal, or the end of a daemon."""
    title("Try it from another terminal")
    for line in (f"cd {folder}", *commands):
        show_command(line)
    title(f"Enter or Ctrl-C ends everything and removes {folder}.")
    watched = [sys.stdin] if sys.stdin.isatty() else []
    while not select.select(watched, [], [], 0.5)[0]:
        processes.check()
    sys.stdin.readline()


def perform(show: Callable[[Path, Processes], Sequence[str]], longest: str) -> int:
    """Run a demo.

    Args:
        show: does all there is to see, in a folder; tells what can be typed afterwards.
        longest: the longest name of a socket in the folder.

    Returns:
        the exit status.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a tick is not worth a crash where the locale has none
    for number in SIGNALS:
        signal.signal(number, interrupt)
    waits = os.environ.get("DEMO_WAIT") or ("1" if sys.stdin.isatty() and sys.stdout.isatty() else "0")
    staying = False
    try:
        with privilege_separation(), temporary_folder(longest) as folder, contextlib.ExitStack() as stack:
            stack.callback(ignore_signals)
            processes = Processes()
            stack.callback(processes.stop)
            commands = show(folder, processes)
            if waits != "0":
                staying = True
                stay(folder, processes, commands)
    except DemoError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read our output has left (`make demo | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Interrupted as interrupted:
        if not staying:
            print("\nInterrupted; nothing is left behind.")
            return 128 + interrupted.number
        print()
    if staying:
        print("Stopped; nothing is left behind.")
    return 0
