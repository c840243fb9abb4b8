"""The Debian package, built from the working tree for each release in a tree of that release.

``python -m tests.machine.package [RELEASE]`` builds it, and prints where it is.
"""

# ruff: noqa: T201  # main() talks to people

import functools
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import cache
from .debian import RELEASES, make_tree
from .qemu import Machine

CHECKOUT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CONTROL = CHECKOUT / "debian" / "control"
NAME = "shadow-tunnel"


def build_dependencies() -> list[str]:
    """The packages that debian/control wants to build with, without versions."""
    match = re.search(r"^Build-Depends:(.*?)^\S", CONTROL.read_text(), re.MULTILINE | re.DOTALL)
    assert match is not None
    words = (entry.split() for entry in match[1].split(","))
    # "debhelper-compat (= 13)" is a virtual package: apt would want to know which to take.
    return [word[0].replace("debhelper-compat", "debhelper") for word in words if word]


def builder(release: str) -> Path:
    """A tree of ``release`` that can build and check the package, made now if need be.

    Raises:
        BuildError: it cannot be made.
    """
    packages = [*build_dependencies(), "lintian"]
    words = (release.encode(), *(name.encode() for name in packages))
    key = cache.fingerprint(*words, *cache.file_parts([HERE / "debian.py"]))
    fill = functools.partial(_fill, release, packages)
    return cache.cached(f"builder-{release}", key, fill) / "tree"


def _fill(release: str, packages: Sequence[str], directory: Path) -> None:
    make_tree(directory / "tree", release, packages, directory / "build.log", variant="buildd")


def build(release: str) -> Path:
    """The package of the working tree as it is now; where the .deb is.

    Raises:
        BuildError: it cannot be built.
    """
    tree = builder(release)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]
    names = subprocess.run(listed, cwd=CHECKOUT, capture_output=True, check=True).stdout.split(b"\0")
    paths = [path for name in names if (path := CHECKOUT / name.decode()).is_file()]
    key = cache.fingerprint(str(tree).encode(), *cache.file_parts(sorted(paths)))

    def fill(directory: Path) -> None:
        script = str(CHECKOUT / "scripts" / "deb")
        cache.run([script, str(directory), str(tree)], directory / "build.log")

    (package,) = cache.cached(f"package-{release}", key, fill).glob(f"{NAME}_*.deb")
    return package


def install(machine: Machine, package: Path) -> None:
    """Install the package with apt; what it depends on is in the image."""
    there = f"/srv/{package.name}"
    machine.copy_to(package, there)
    apt(machine, "install", "--allow-downgrades", "--reinstall", there)


def apt(machine: Machine, *arguments: str) -> str:
    """Run apt-get without a question; what it says. There is no network: nothing can be fetched."""
    words = ["apt-get", "--yes", "--quiet", "--no-install-recommends"]
    return machine.run(["env", "DEBIAN_FRONTEND=noninteractive", *words, *arguments]).stdout


def main() -> int:
    """Build the package; the command line says for which release."""
    print(build(sys.argv[1] if len(sys.argv) > 1 else RELEASES[0]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
