"""Bakes a robot's image, as docs/IMAGE.md tells people to, and boots it as a robot.

Such a machine is not reached through a port that QEMU forwards, but as robots are: it dials, and on the
server there is a socket. QEMU gives it one address, and nothing else of a network; behind that address is
the server's port on this host.
"""

import base64
import contextlib
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support import commands

from . import cache, debian, image, qemu

CHECKOUT = Path(__file__).resolve().parents[2]
RECIPE = CHECKOUT / "image"

ADDRESS = "10.0.2.100"  # where robots dial; QEMU answers there
PORT = 2222

# What a user puts into the folder, and what mkosi makes there.
_OTHERS = ("*.crt", "*.deb", "*.key", "mkosi.cache", "mkosi.local.conf", "mkosi.output", "mkosi.tools*")


@dataclass(frozen=True, slots=True)
class Baked:
    """An image, before any robot has run it.

    Attributes:
        tree: what is in it.
        disk: the same as a raw ext4 file system.
        kernel: what boots it.
    """

    tree: Path
    disk: Path
    kernel: Path


def prepare(folder: Path, package: Path, ca: Path) -> None:
    """Make a copy of the recipe, and do what the document asks for before the first bake."""
    shutil.copytree(RECIPE, folder, symlinks=True, ignore=shutil.ignore_patterns(*_OTHERS))
    shutil.copy(package, folder / "mkosi.packages")
    shutil.copy(ca, folder / "mkosi.extra/etc/shadow-tunnel/ca.crt")
    settings = folder / "mkosi.extra/etc/shadow-tunnel/client.env"
    settings.write_text(
        re.sub("^SHADOW_RHOST=.*", f"SHADOW_RHOST={ADDRESS}", settings.read_text(), flags=re.M)
    )


def kitchen() -> Path:
    """A tree of Debian 13 with mkosi, made now if need be: an older host has none that is new enough.

    Raises:
        BuildError: it cannot be made.
    """
    packages = ["mkosi", "reprepro"]
    words = (name.encode() for name in packages)
    key = cache.fingerprint(*words, *cache.file_parts([Path(debian.__file__)]))

    def fill(directory: Path) -> None:
        debian.make_tree(directory / "tree", "trixie", packages, directory / "build.log")

    return cache.cached("kitchen", key, fill) / "tree"


def with_mkosi(folder: Path, release: str) -> Baked:
    """Bake a tree, on the mirror that this host uses, and make a disk of it.

    Raises:
        BuildError: it cannot be made.
    """
    sources = folder.parent / "mirror/etc/apt/sources.list.d"
    sources.mkdir(parents=True)
    # mkosi keeps off a file of this name; its own asks for archives that mirrors do not have.
    (sources / "mkosi.sources").write_text("".join(map(_stanza, debian.sources(release))))
    command = [
        *("mkosi", f"--directory={folder}", f"--release={release}", "--format=directory"),
        *(f"--sandbox-tree={folder.parent / 'mirror'}", "--environment=INITRD=No", "build"),
    ]
    cache.run(debian.inside(kitchen(), folder.parent, command), folder / "bake.log")
    return to_disk(folder / "mkosi.output/robot", folder)


def by_document(folder: Path, marker: str, release: str) -> None:
    """Run the lines of shell that stand in a document after ``<!-- marker -->``.

    Args:
        folder: where: a copy of the recipe.
        marker: which lines.
        release: of Debian, whatever the lines say; from the mirror that this host uses.

    Raises:
        BuildError: they fail.
        LookupError: there are none.
    """
    shown = "".join(f"{command.text}\n" for command in commands.block(marker).commands)
    lines = re.sub(r"\b(?:trixie|bookworm)\b", release, shown)
    mirror = shlex.join(debian.sources(release))
    lines = f'mmdebstrap() {{ command mmdebstrap "$@" {mirror}; }}\ncd "$1"\n{lines}'
    cache.run(["bash", "-euo", "pipefail", "-c", lines, "bash", str(folder)], folder / "bake.log")


def to_disk(tree: Path, folder: Path) -> Baked:
    """Make a disk of a tree."""
    baked = Baked(tree, folder / "root.ext4", folder / "vmlinuz")
    image.make_disk(tree, baked.disk, folder / "disk.log")
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    shutil.copyfile(kernel, baked.kernel)
    return baked


def _stanza(line: str) -> str:
    """One line of sources.list(5) in its newer form."""
    match = re.fullmatch(r"deb \[signed-by=(\S+)\] (\S+) (\S+) (.+)", line)
    assert match is not None
    key, mirror, suite, components = match.groups()
    return f"Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: {components}\nSigned-By: {key}\n\n"


class Robot:
    """A disk of its own, made from an image; and a machine to run it, as often as one likes.

    A context manager: machine and disk end with the block.

    Attributes:
        disk: what the image has become.
    """

    def __init__(self, baked: Baked, folder: Path, sockets: Path, port: int) -> None:
        """Take a fresh copy of the image.

        Args:
            baked: the image.
            folder: where the disk, the console's output and the like go; made now.
            sockets: the server's ``--ldir``.
            port: the server's port on 127.0.0.1.
        """
        folder.mkdir()
        self.disk = folder / "disk"
        self._kernel = baked.kernel
        self._folder = folder
        self._sockets = sockets
        self._port = port
        self._boots = 0
        self._qemu: subprocess.Popen[bytes] | None = None
        subprocess.run(["cp", "--sparse=always", baked.disk, self.disk], check=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._qemu is not None:
            qemu._end(self._qemu)
        self.disk.unlink()

    def boot(self, credentials: Mapping[str, bytes] | None = None) -> None:
        """Switch it on; the firmware hands these credentials over."""
        self._boots += 1
        strings = []
        for number, (name, value) in enumerate((credentials or {}).items()):
            path = self._folder / f"smbios-{number}"
            path.touch(0o600)
            path.write_bytes(f"io.systemd.credential.binary:{name}=".encode() + base64.b64encode(value))
            strings += ["-smbios", f"type=11,path={path}"]
        with (self._folder / "qemu.log").open("ab") as log:
            self._qemu = qemu._spawn([*self._command(), *strings], stdout=log, stderr=subprocess.STDOUT)

    def _command(self) -> list[str]:
        kernel_command_line = (
            "root=/dev/nvme0n1 rw console=ttyS0 TERM=dumb quiet loglevel=4 mitigations=off "
            "systemd.show_status=error panic=-1"
        )
        server = f"guestfwd=tcp:{ADDRESS}:{PORT}-cmd:socat - TCP:127.0.0.1:{self._port}"
        disk = f"if=none,id=disk,file={self.disk},format=raw,cache=unsafe"
        return [
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,-svm", "-smp", "2", "-m", "1024"),
            *("-kernel", str(self._kernel), "-append", kernel_command_line),
            *("-drive", disk, "-device", "nvme,drive=disk,serial=disk"),
            *("-nic", f"user,model=virtio-net-pci,restrict=on,{server}", "-device", "virtio-rng-pci"),
            *("-serial", f"file:{self._console}"),
        ]

    @property
    def _console(self) -> Path:
        return self._folder / f"console-{self._boots}"

    def console(self) -> str:
        """What was said on the serial console since it was switched on."""
        with contextlib.suppress(FileNotFoundError):
            return self._console.read_text(errors="replace")
        return ""

    def wait_for(self, condition: Callable[[], object], what: str) -> float:
        """Wait until something is true; how many seconds it took.

        Raises:
            MachineError: it never was.
        """
        started = time.monotonic()
        assert self._qemu is not None
        while not condition():
            if self._qemu.poll() is not None:
                raise self._error(f"it went off before there was {what}")
            if time.monotonic() > started + qemu.BOOT_DEADLINE:
                raise self._error(f"waited in vain for {what}")
            time.sleep(0.05)
        return time.monotonic() - started

    def wait_for_console(self, pattern: str) -> str:
        """Wait for a line on the console; what matched."""
        self.wait_for(lambda: re.search(pattern, self.console()), f"{pattern!r} on the console")
        match = re.search(pattern, self.console())
        assert match is not None
        return match[0]

    def power_off(self, name: str, key: Path) -> None:
        """Have it shut down in good order, and wait until it is off."""
        self.run(name, key, "systemctl --no-block poweroff")
        assert self._qemu is not None
        try:
            self._qemu.wait(qemu.STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            raise self._error("it does not power off") from None
        deadline = time.monotonic() + qemu.GRACE
        while (self._sockets / f"{name}.sock").exists() and time.monotonic() < deadline:
            time.sleep(0.05)

    def unplug(self) -> None:
        """Switch it off without a warning."""
        assert self._qemu is not None
        qemu._end(self._qemu)

    def run(self, name: str, key: Path, command: str, stdin: bytes = b"") -> str:
        """Run a command in the robot, by ssh through the tunnel; what it says.

        The host key is learned the first time, and has to be the same ever after.

        Raises:
            MachineError: it fails.
        """
        options = {
            "BatchMode": "yes",
            "HostKeyAlias": "robot",
            "IdentitiesOnly": "yes",
            "IdentityFile": str(key),
            "LogLevel": "ERROR",
            "ProxyCommand": f"socat - UNIX-CONNECT:{self._sockets / name}.sock",
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": str(self._folder / "known_hosts"),
        }
        words = [word for option, value in options.items() for word in ("-o", f"{option}={value}")]
        done = subprocess.run(
            ["ssh", "-F", "none", *words, f"root@{name}", "--", command],
            input=stdin, capture_output=True, timeout=qemu.COMMAND_DEADLINE, check=False,
        )  # fmt: skip
        output, errors = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if done.returncode != 0:
            raise self._error(f"status {done.returncode}: {command}\n{output}{errors}")
        return output

    @property
    def host_key(self) -> str:
        """The host key that it showed."""
        return (self._folder / "known_hosts").read_text()

    def files(self, directory: str) -> list[str]:
        """The names in a directory of the disk; while it is off."""
        lines = self._debugfs(f"ls -p {directory}").splitlines()
        names = {line.split("/")[5] for line in lines if line.startswith("/")}
        return sorted(names - {".", ".."})

    def read(self, path: str) -> str:
        """A file of the disk; while it is off."""
        return self._debugfs(f"cat {path}")

    def _debugfs(self, command: str) -> str:
        # As the next boot would: an unplugged disk is whole only when its journal has been replayed. (debugfs
        # can replay it too, but may then find checksums that do not match, and lists nothing.)
        check = subprocess.run(
            ["e2fsck", "-f", "-y", str(self.disk)], capture_output=True, text=True, check=False
        )
        if check.returncode not in (0, 1):  # e2fsck(8): nothing to mend, or mended
            raise self._error(f"e2fsck: status {check.returncode}\n{check.stdout}{check.stderr}")
        ask = ["debugfs", "-R", command, str(self.disk)]
        done = subprocess.run(ask, capture_output=True, text=True, check=True)
        complaints = [line for line in done.stderr.splitlines() if not line.startswith("debugfs ")]
        if complaints:  # its exit status is 0 all the same
            raise self._error("\n".join(complaints))
        return done.stdout

    def _error(self, text: str) -> qemu.MachineError:
        log = (self._folder / "qemu.log").read_text(errors="replace")
        return qemu.MachineError(f"{text}\n{log}--- console ---\n{qemu._tail(self.console())}")
