"""Puts the working tree into a running machine, as the Debian package would, but in a second."""

import tomllib
from pathlib import Path

from .qemu import Machine

PYTHON_PATH = "/usr/lib/python3/dist-packages"

# Where each kind of file of ``units/`` and ``debian/`` belongs, as debhelper has it.
_PLACES = {
    ".service": "/usr/lib/systemd/system",
    ".socket": "/usr/lib/systemd/system",
    ".slice": "/usr/lib/systemd/system",
    ".target": "/usr/lib/systemd/system",
    ".timer": "/usr/lib/systemd/system",
    ".preset": "/usr/lib/systemd/system-preset",
    ".sysusers": "/usr/lib/sysusers.d",
    ".tmpfiles": "/usr/lib/tmpfiles.d",
    ".modules-load": "/usr/lib/modules-load.d",
    ".catalog": "/usr/lib/systemd/catalog",
}
# A kind that is a .conf file in its place.
_CONF = {".sysusers", ".tmpfiles", ".modules-load"}


def deploy(machine: Machine, checkout: Path) -> None:
    """Install the package ``shadow``, its commands and its units from a checkout.

    Nothing is enabled or started; what runs already is not restarted.
    """
    machine.run(["rm", "-rf", f"{PYTHON_PATH}/shadow"])
    machine.copy_to(checkout / "shadow", f"{PYTHON_PATH}/shadow")
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    for name, entry in project.get("scripts", {}).items():
        machine.write(f"/usr/bin/{name}", _wrapper(entry), mode=0o755)
    for directory in ("units", "debian"):
        for path in sorted((checkout / directory).glob("*")):
            _install(machine, path)
    machine.run("systemd-sysusers")
    place = "/usr/lib/tmpfiles.d"
    machine.run(f"for conf in {place}/shadow*; do [[ ! -e $conf ]] || systemd-tmpfiles --create $conf; done")
    machine.run("journalctl --update-catalog && systemctl daemon-reload")


def install(machine: Machine, *packages: Path) -> None:
    """Install Debian packages; what they depend on is in the image."""
    names = [f"/srv/{package.name}" for package in packages]
    for package, name in zip(packages, names, strict=True):
        machine.copy_to(package, name)
    machine.run(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "install", *names])


def _wrapper(entry: str) -> str:
    module, _, function = entry.partition(":")
    return f"#!/usr/bin/python3\nfrom {module} import {function}\n\nraise SystemExit({function}())\n"


def _install(machine: Machine, path: Path) -> None:
    place = _PLACES.get(path.suffix)
    if place is not None and path.is_file():
        name = f"{path.stem}.conf" if path.suffix in _CONF else path.name
        machine.copy_to(path, f"{place}/{name}")
