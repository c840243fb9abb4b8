"""The root file system of the test machine: made by mmdebstrap, cached by what it is made of.

An image is a directory: a raw ext4 disk, the kernel that boots it, and the keys to get in. The disk is
never written to again: machines run on overlays (:mod:`.qemu`). Debian's cloud kernel has NVMe and ext4
built in, so there is no initrd.

What the package depends on is in it, the package is not: it changes with every edit, and apt installs it
into the running machine in seconds (:mod:`.package`), as it does at a user's.

``python -m tests.machine.image [RELEASE]`` makes an image if it is not there, and prints where it is.
"""

# ruff: noqa: T201  # main() talks to people

import functools
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import cache
from .debian import RELEASES, make_tree

DISK_SIZE = "6G"  # sparse: what is not used takes no room

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "recipe"


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


def packages(release: str) -> list[str]:
    """The packages that the recipe asks for; ``NAME [RELEASE]`` is for that release only."""
    lines = (RECIPE / "packages").read_text().splitlines()
    wanted = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    return [name for name, *only in wanted if only in ([], [f"[{release}]"])]


def fingerprint(release: str, more: Sequence[str] = ()) -> str:
    """What an image of ``release`` is made of, as a short hash."""
    files = (Path(__file__), HERE / "debian.py", *sorted(RECIPE.iterdir()))
    words = (word.encode() for word in (release, *more))
    return cache.fingerprint(*words, *cache.file_parts(files))


def find(release: str, *, more: Sequence[str] = (), folder: Path = cache.CACHE) -> Image:
    """The image of a Debian release, made now if need be.

    Args:
        release: one of :data:`.debian.RELEASES`.
        more: packages besides those of the recipe.
        folder: where images are kept.

    Raises:
        BuildError: it cannot be made.
    """
    if release not in RELEASES:
        raise cache.BuildError(f"no such release: {release} (known: {', '.join(RELEASES)})")
    fill = functools.partial(_fill, release, more)
    name = f"{release}-with-more" if more else release
    return Image(release, cache.cached(name, fingerprint(release, more), fill, cache=folder))


def _fill(release: str, more: Sequence[str], directory: Path) -> None:
    image = Image(release, directory)
    tree, log = directory / "tree", directory / "build.log"
    cache.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "machine", "-f", str(image.key)], log)
    hook = f'{RECIPE / "customize"} "$1" {image.key}.pub {release}'
    make_tree(tree, release, [*packages(release), *more], log, hook=hook)
    host_key = (tree / "etc/ssh/ssh_host_ed25519_key.pub").read_text()
    image.known_hosts.write_text(f"shadow-machine {host_key}")
    (kernel,) = (tree / "boot").glob("vmlinuz-*")
    shutil.copyfile(kernel, image.kernel)
    make_disk(tree, image.disk, log)
    shutil.rmtree(tree)


def make_disk(tree: Path, disk: Path, log: Path) -> None:
    """Make a sparse raw disk with one ext4 file system that holds what is in ``tree``.

    Raises:
        BuildError: it cannot be made.
    """
    options = ["-L", disk.stem, "-m", "0", "-J", "size=16"]
    options += ["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]
    cache.run(["mkfs.ext4", "-q", *options, "-d", str(tree), str(disk), DISK_SIZE], log)


def main() -> int:
    """Make an image; the command line says of which release."""
    started = time.monotonic()
    image = find(sys.argv[1] if len(sys.argv) > 1 else RELEASES[0])
    size = image.disk.stat().st_blocks * 512 / 2**20
    print(f"{image.directory}  {size:.0f} MiB, {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
