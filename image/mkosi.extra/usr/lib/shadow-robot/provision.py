"""Turns three credentials into this robot's name, certificate and key; see shadow-robot.service."""

# ruff: noqa: S603, T201  # it runs systemctl, and talks to the journal

import contextlib
import datetime as dt
import os
import subprocess
import sys
from pathlib import Path

from shadow.errors import ClockError, ConfigError, IdentityError, LocalError, ShadowError
from shadow.names import check_robot_name
from shadow.pki.certificates import Purpose, common_name, load_certificates, load_credentials
from shadow.pki.files import PRIVATE, PUBLIC, NewFile, read_file, write_files
from shadow.text import shorten

FOLDER = Path("/etc/shadow-tunnel")
CA = "ca.crt"
NAME, CERTIFICATE, KEY = CREDENTIALS = ("shadow.robot", "shadow.crt", "shadow.key")


def find(folder: Path) -> tuple[Path, Path, Path]:
    """The files of the three credentials.

    Raises:
        ConfigError: not all are there; the message says what to do.
    """
    missing = [name for name in CREDENTIALS if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"this robot does not know who it is: no credential {', '.join(missing)}. Pass "
            f"{', '.join(CREDENTIALS)} by SMBIOS, or put them into /etc/credstore, and boot again"
        )
    return folder / NAME, folder / CERTIFICATE, folder / KEY


def check(name: str, certificate: Path, key: Path) -> None:
    """Check all that can be checked here, so that a mistake leaves nothing behind.

    Raises:
        ConfigError: name, certificate and key are not those of one robot of our CA.
    """
    check_robot_name(name)
    if f"{name}.crt" == CA:
        raise ConfigError(f"no robot can be called {name}: its certificate would take the place of {CA}")
    try:
        holder = common_name(load_certificates(certificate, "credential")[0])
    except IdentityError as error:
        raise ConfigError(f"credential {CERTIFICATE}: {error}") from error
    if holder != name:
        raise ConfigError(
            f"credential {CERTIFICATE} is for robot {shorten(holder)}, {NAME} says {shorten(name)}"
        )
    # A first boot may come before the first right time; shadow-client waits for it.
    with contextlib.suppress(ClockError):
        load_credentials(FOLDER / CA, certificate, key, Purpose.ROBOT, dt.datetime.now(dt.UTC))


def provision(given: Path) -> str:
    """Install what was given, and have the client started now and at every boot; the robot's name."""
    name_file, certificate, key = find(given)
    name = read_file(name_file, "credential").decode("ascii", "backslashreplace").strip()
    check(name, certificate, key)
    files = [
        NewFile(FOLDER / f"{name}.crt", read_file(certificate, "credential"), PUBLIC),
        NewFile(FOLDER / f"{name}.key", read_file(key, "credential"), PRIVATE),
    ]
    write_files(files, force=True)
    enable(f"shadow-client@{name}.service")
    return name


def enable(unit: str) -> None:
    """Have the service manager start a unit now, and at every boot.

    Raises:
        LocalError: it will not.
    """
    command = ["systemctl", "--quiet", "--no-block", "--now", "enable", unit]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LocalError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")


def main() -> int:
    """Say in one line what came of it."""
    try:
        name = provision(Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")))
    except ShadowError as error:
        print(f"<3>{error}", file=sys.stderr)
        return error.exit_status
    print(f"<5>this is robot {name} from now on")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
