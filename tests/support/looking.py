"""Servers of a fleet, looked after as an administrator does: by `shadowctl`, and by their API."""

import subprocess
import sys
from typing import Any

from tests.support import CHECKOUT, DEADLINE
from tests.support.call import INTERFACE, Call
from tests.support.sites import Site


def command(site: Site, *words: str) -> list[str]:
    return [sys.executable, "-m", "shadow.cli.ctl", f"--dir={site.tunnel.ldir}", *words]


def ctl(site: Site, *words: str) -> tuple[int, str, str]:
    """What `shadowctl` says that asks a server: status, output, errors."""
    done = subprocess.run(
        command(site, *words), cwd=CHECKOUT, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    return done.returncode, done.stdout, done.stderr


def good(site: Site, *words: str) -> str:
    status, output, errors = ctl(site, *words)
    assert (status, errors) == (0, "")
    return output


def get(site: Site, method: str, **parameters: Any) -> dict[str, Any]:
    with Call(site.tunnel.ldir / INTERFACE) as call:
        return call.get(method, parameters)


def listed(site: Site) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get(site, "List", fleet=True)["robots"]
    return found


def servers(site: Site) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get(site, "Servers")["servers"]
    return found


def state(site: Site, name: str) -> str:
    """What a server says of another one."""
    found = [one for one in servers(site) if one["name"] == name]
    return "live" if found and found[0]["live"] else "gone"
