"""The root file system of the test machine: made by mmdebstrap, cached by what it is made of.

An image is a directory: a raw ext4 disk, the kernel that boots it, and the keys to get in. The disk is
never written to again: machines run on overlays (:mod:`.qemu`). Debian's cloud kernel has NVMe and ext4
built in, so there is no initrd.

``python -m tests.machine.image [RELEASE]`` makes an image if it is not there, and prints where it is.
"""

# ruff: noqa: T201  # main() talks to people

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RELEASES = ("trixie", "bookworm")
DEFAULT_MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DISK_SIZE = "6G"  # sparse: what is not used takes no room
BUILD_DEADLINE = 1800.0  # seconds; a slow mirror and two busy cores

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "recipe"
CACHE = HERE.parents[1] / ".cache" / "machine"

# Left out of the tree; the machine would not miss them, and unpacking takes time.
EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/etc/kernel/postinst.d/initramfs-tools",  # there is no initrd
)


class ImageError(Exception):
    """The image cannot be made; ``str()`` says why and what to do."""


@dataclass(frozen=True, slots=True)
class Image:
    """A root file system on disk, and what is needed to boot it and to log in."""

    release: str
    directory: Path

    @property
    def disk(self) -> Path:
        """The raw ext4 file system. Read only: put an overlay on it."""
        return self.directory / "root.ext4"

    @property
    def kernel(self) -> Path:
        """The kernel that belongs to the modules on the disk."""
        return self.directory / "vmlinuz"

    @property
    def key(self) -> Path:
        """The private ssh key of root."""
        return self.directory / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The machine's host key, for the name ``shadow-machine``."""
        return self.directory / "known_hosts"


def packages() -> list[str]:
    """The packages that the recipe asks for."""
    lines = (RECIPE / "packages").read_text().splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def fingerprint(release: str) -> str:
    """What an image of ``release`` is made of, as a short hash."""
    digest = hashlib.sha256(release.encode())
    for path in (Path(__file__), *sorted(RECIPE.iterdir())):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def find(release: str, *, cache: Path = CACHE) -> Image:
    """The image of a Debian release, made now if need be.

    Raises:
        ImageError: it cannot be made.
    """
    if release not in RELEASES:
        raise ImageError(f"no such release: {release} (known: {', '.join(RELEASES)})")
    image = Image(release, cache / f"{release}-{fingerprint(release)}")
    if image.directory.is_dir():
        return image
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / "lock"):
        if not image.directory.is_dir():
            _build(image)
            _drop_older(image)
    return image


def sources(release: str) -> list[str]:
    """Lines of sources.list(5) for ``release``, on the mirror that this host uses."""
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    known = [line.split() for line in listing.splitlines() if len(line.split()) == 2]
    sites = {suite: site for site, suite in reversed(known)}
    main = next(
        (sites[suite] for suite in (*RELEASES, "stable", "testing") if suite in sites), DEFAULT_MIRROR
    )
    lines = [f"deb [signed-by={KEYRING}] {main} {release} main"]
    security = next((site for suite, site in sites.items() if suite.endswith("-security")), None)
    if security is not None:
        lines.append(f"deb [signed-by={KEYRING}] {security} {release}-security main")
    return lines


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One builder at a time; the lock goes with the process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(image: Image) -> None:
    """Make the image under another name, then put it in its place in one step."""
    if os.geteuid() != 0:
        raise ImageError("an image can only be made by root")
    for tool in ("mmdebstrap", "mkfs.ext4", "ssh-keygen"):
        if shutil.which(tool) is None:
            raise ImageError(f"{tool} is missing: run tests/machine/setup")
    staging = Path(tempfile.mkdtemp(prefix="building-", dir=image.directory.parent))
    try:
        staging.chmod(0o755)  # apt's unprivileged downloader must get in
        _fill(Image(image.release, staging), staging / "build.log")
        staging.rename(image.directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fill(image: Image, log: Path) -> None:
    tree = image.directory / "tree"
    _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "machine", "-f", str(image.key)], log)
    _run(
        [
            "mmdebstrap",
            "--mode=root",
            "--variant=apt",
            "--aptopt=Acquire::Languages none",
            f"--include={','.join(packages())}",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
            f'--customize-hook={RECIPE / "customize"} "$1" {image.key}.pub {image.release}',
            image.release,
            str(tree),
            *sources(image.release),
        ],
        log,
    )
    host_key = (tree / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    image.known_hosts.write_text(f"shadow-machine {host_key}")
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    shutil.copyfile(kernel, image.kernel)
    label = [
        "-L",
        "shadow-machine",
        "-m",
        "0",
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
        "-J",
        "size=16",
    ]
    _run(["mkfs.ext4", "-q", *label, "-d", str(tree), str(image.disk), DISK_SIZE], log)
    shutil.rmtree(tree)


def _run(command: list[str], log: Path) -> None:
    environment = os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    with log.open("a") as output:
        print("+", *command, file=output, flush=True)
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=BUILD_DEADLINE,
            check=False,
        )
    if done.returncode != 0:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise ImageError(f"{command[0]} failed with status {done.returncode}:\n{end}")


def _drop_older(image: Image) -> None:
    """Remove images of the same release that another recipe made, and what an interrupted build left."""
    for path in image.directory.parent.glob(f"{image.release}-*"):
        if path != image.directory:
            shutil.rmtree(path, ignore_errors=True)
    for path in image.directory.parent.glob("building-*"):  # we hold the lock: nobody is building
        shutil.rmtree(path, ignore_errors=True)


def main() -> int:
    """Make an image; the command line says of which release."""
    started = time.monotonic()
    image = find(sys.argv[1] if len(sys.argv) > 1 else RELEASES[0])
    size = image.disk.stat().st_blocks * 512 / 2**20
    print(f"{image.directory}  {size:.0f} MiB, {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
