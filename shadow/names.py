"""Names of robots, services, servers and fleets, and the socket file names made of those of robots.

A robot's name is the subject CN of its certificate and the name of its unix socket, so it must be a
harmless file name on its own. A service's name goes in front of it: ``web@011.sock``. Neither may contain
``@`` or ``/`` or begin with a dot, so no two pairs of names share a file, and none leaves its folder.
"""

import re
from pathlib import Path

from .errors import ConfigError
from .text import shorten

ROBOT_NAME_MAX = 64  # characters; also X.520's upper bound of a common name (RFC 5280, appendix A)
SERVICE_NAME_MAX = 32  # characters
SERVER_NAME_MAX = 59  # characters: with "peer:" before it, it has to fit into a common name, too
FLEET_NAME_MAX = 32  # characters

_LONG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_SERVER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,58}", re.ASCII)
_SHORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", re.ASCII)

_ID = re.compile(r"[0-9A-Za-z._-]{1,64}", re.ASCII)

_SOFTWARE_MAX = 64  # characters

PEER = "peer:"
"""What a server's common name begins with in the certificate that it shows other servers of its fleet; its id
follows. No robot can have such a name: it has a colon."""

DEFAULT_SERVICE = ""
"""The service that a robot offers without a name: the one behind ``NAME.sock``."""

GATE = "gate"
"""The name of the socket where visitors first say which robot they want, if the server is one of a fleet."""

API = "io.shadowtunnel.Server"
"""The API's interface, and the name of its socket."""
INTERFACE_FILE = Path(__file__).with_name(f"{API}.varlink")
"""Its description: the server answers according to it, and sends it to callers who ask."""


def check_robot_name(name: str) -> str:
    """Return ``name`` if it may name a robot.

    Raises:
        ConfigError: it may not; the message quotes it (shortened) and says what is allowed.
    """
    return _check(name, _LONG, "robot name", ROBOT_NAME_MAX)


def check_service_name(name: str) -> str:
    """Return ``name`` if it may name a service (other than the default one).

    Raises:
        ConfigError: it may not.
    """
    return _check(name, _SHORT, "service name", SERVICE_NAME_MAX)


def check_server_name(name: str) -> str:
    """Return ``name`` if it may name a server of a fleet (``--server-id``).

    Raises:
        ConfigError: it may not.
    """
    return _check(name, _SERVER, "server id", SERVER_NAME_MAX)


def is_id(text: str) -> bool:
    """Whether this may be an id that a program has made up, such as that of a boot or a session.

    Those in the directory of a fleet are written by one side and read by the other: both must agree.
    """
    return _ID.fullmatch(text) is not None


def check_fleet_name(name: str) -> str:
    """Return ``name`` if it may name a fleet.

    Raises:
        ConfigError: it may not.
    """
    return _check(name, _SHORT, "fleet name", FLEET_NAME_MAX)


def _check(name: str, pattern: re.Pattern[str], what: str, most: int) -> str:
    """Return ``name`` if it matches."""
    if not pattern.fullmatch(name):
        raise ConfigError(
            f"{what} {shorten(name)} is not allowed: use 1 to {most} letters, digits, "
            "'.', '_' or '-', beginning with a letter or digit"
        )
    return name


def full_name(robot: str, service: str = DEFAULT_SERVICE) -> str:
    """A robot's service in a word, e.g. ``011`` for the default one, or ``web@011``."""
    return f"{service}@{robot}" if service else robot


def parse_full_name(text: str) -> tuple[str, str]:
    """Robot and service of a ``full_name``.

    Raises:
        ConfigError: it is none.
    """
    service, at, robot = text.rpartition("@")
    return check_robot_name(robot), check_service_name(service) if at else DEFAULT_SERVICE


def socket_name(robot: str, service: str = DEFAULT_SERVICE) -> str:
    """File name of the unix socket of a robot's service, e.g. ``011.sock`` or ``web@011.sock``."""
    return f"{full_name(robot, service)}.sock"


def clean_software(text: str) -> str:
    """The program and version a peer claims, fit for tables, labels and the log; empty if it claims none."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:_SOFTWARE_MAX])
