"""Debian's releases, and trees of them."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

from . import cache

RELEASES = ("trixie", "bookworm")
DEFAULT_MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# Left out of a tree; nobody would miss them, and unpacking takes time.
EXCLUDED = (
    "/usr/share/doc/*",
    "/usr/share/locale/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/etc/kernel/postinst.d/initramfs-tools",  # there is no initrd
)


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


def make_tree(
    tree: Path, release: str, packages: Iterable[str], log: Path, *, variant: str = "apt", hook: str = ""
) -> None:
    """Unpack and configure packages of a release into the directory ``tree``.

    Args:
        tree: made now.
        release: one of :data:`RELEASES`.
        packages: besides those of the variant.
        log: where mmdebstrap's words go.
        variant: mmdebstrap's: which packages there are in any case.
        hook: a command that is run at the end, for a shell; ``$1`` is the tree.

    Raises:
        BuildError: it cannot be made.
    """
    cache.run(
        [
            "mmdebstrap",
            "--mode=root",
            f"--variant={variant}",
            "--aptopt=Acquire::Languages none",
            f"--include={','.join(packages)}",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
            *([f"--customize-hook={hook}"] if hook else []),
            release,
            str(tree),
            *sources(release),
        ],
        log,
    )


_ENTER = """
tree=$1 folder=$2
shift 2
mount --bind "$tree" "$tree"
mount -t proc proc "$tree/proc"
mount --rbind /sys "$tree/sys"
mount --rbind /dev "$tree/dev"
mount -t tmpfs tmpfs "$tree/run"
mkdir -p "$tree$folder"
mount --bind "$folder" "$tree$folder"
cd "$tree"
pivot_root . mnt # not chroot: in that nobody may make name spaces of his own
umount -l /mnt
cd "$folder"
exec "$@"
"""


def inside(tree: Path, folder: Path, command: list[str]) -> list[str]:
    """A command that runs ``command`` with ``tree`` as its root, and ``folder`` of this host in its place."""
    return ["unshare", "--mount", "bash", "-euc", _ENTER, "bash", str(tree), str(folder), *command]
