"""Settings of the daemons: from the command line, else from the environment, else the default.

Each option ``--some-thing`` may also be given as ``SHADOW_SOME_THING``, so that a unit needs only an
``EnvironmentFile=``. A bad word on the command line is a usage error, a bad variable a configuration
error.
"""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from . import __version__
from .address import Endpoint, parse_endpoint, parse_host, parse_port
from .errors import ConfigError, ShadowError, UsageError
from .names import DEFAULT_SERVICE, check_robot_name, check_service_name
from .tls import Ktls
from .usage import Parser

_ENV_PREFIX = "SHADOW_"
_SECONDS_MAX = 10800  # TCP_KEEPIDLE ends at 32767 (tcp(7)), and a connect timeout counts three times
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Files:
    """Where the certificates and the key are."""

    ca: Path
    crt: Path
    key: Path


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Settings of ``shadow-server``; times in seconds."""

    ipv4: bool
    ipv6: bool
    lport: int | None
    ldir: Path
    files: Files
    crl: Path | None
    signer: Path | None
    ktls: Ktls
    keepalive: float
    handshake_timeout: float
    start_timeout: float
    max_handshakes: int
    max_handshake_rate: int
    max_robots: int
    max_streams: int


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Settings of ``shadow-client``; times in seconds."""

    server: Endpoint
    server_name: str
    robot: str
    services: Mapping[str, Endpoint]
    files: Files
    state: Path | None
    ktls: Ktls
    standby: int
    once: bool
    connect_timeout: float


class _Options:
    """Declares options and reads their values from the command line and the environment."""

    def __init__(self, program: str, description: str, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.parser = Parser(
            prog=program,
            description=description,
            epilog="Every option --some-thing can also come from the environment as SHADOW_SOME_THING; "
            "the command line wins.",
        )
        self.parser.add_argument("--version", action="version", version=f"{program} {__version__}")

    def add(self, flag: str, parse: Callable[[str], object], text: str, *, default: object = None) -> None:
        """Declare ``flag`` with a value; ``default`` None means that there is none."""
        shown = "" if default is None else f" (default: {default})"
        self.parser.add_argument(
            flag,
            type=_argument(parse),
            default=self._from_environment(flag, parse, default),
            metavar=flag.lstrip("-").upper(),
            help=text + shown,
        )

    def add_switch(self, *flags: str, text: str) -> None:
        """Declare a switch; in the environment ``1`` or ``yes`` switches it on."""
        default = self._from_environment(flags[-1], _parse_bool, default=False)
        self.parser.add_argument(*flags, action="store_true", default=default, help=text)

    def add_list(self, flag: str, parse: Callable[[str], object], metavar: str, text: str) -> None:
        """Declare a repeatable option; in the environment the values stand side by side."""
        none: list[object] = []
        default = self._from_environment(flag, lambda value: [parse(word) for word in value.split()], none)
        self.parser.add_argument(
            flag, type=_argument(parse), action="append", default=None, metavar=metavar, help=text
        )
        self.parser.set_defaults(**{f"{_destination(flag)}_environment": default})

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        return self.parser.parse_args(arguments)

    def _from_environment(self, flag: str, parse: Callable[[str], _T], default: _T) -> _T:
        name = variable_name(flag)
        value = self._environment.get(name, "")
        if not value:
            return default
        try:
            return parse(value)
        except ShadowError as error:
            raise ConfigError(f"{name} in the environment: {error}") from error


def variable_name(flag: str) -> str:
    """The environment variable that stands for an option."""
    return _ENV_PREFIX + _destination(flag).upper()


def _destination(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _argument(parse: Callable[[str], object]) -> Callable[[str], object]:
    def convert(text: str) -> object:
        try:
            return parse(text)
        except ShadowError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _parse_bool(text: str) -> bool:
    if text.lower() in {"1", "yes", "true", "on"}:
        return True
    if text.lower() in {"0", "no", "false", "off"}:
        return False
    raise ConfigError(f"{text!r} is neither yes nor no")


def _parse_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= _SECONDS_MAX:
        raise ConfigError(f"{text!r} is not a number of seconds from 0.1 to {_SECONDS_MAX}")
    return value


def _parse_count(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and low <= int(text) <= high):
            raise ConfigError(f"{text!r} is not a number from {low} to {high}")
        return int(text)

    return parse


def _parse_ktls(text: str) -> Ktls:
    try:
        return Ktls(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not one of {', '.join(Ktls)}") from None


def _parse_service(text: str) -> tuple[str, Endpoint]:
    name, equals, endpoint = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r} is not NAME=HOST:PORT")
    return check_service_name(name), parse_endpoint(endpoint)


def _add_common(options: _Options) -> None:
    options.add("--ca", Path, "certificate file of the CA that both sides trust")
    options.add("--crt", Path, "our certificate file, with intermediates if there are any")
    options.add("--key", Path, "our private key file")
    options.add(
        "--ktls",
        _parse_ktls,
        "whether the kernel encrypts: auto, require (or refuse to run) or off",
        default=Ktls.AUTO,
    )


def _files(values: argparse.Namespace) -> Files:
    return Files(_needed(values, "--ca"), _needed(values, "--crt"), _needed(values, "--key"))


def _needed(values: argparse.Namespace, flag: str) -> Any:
    value = getattr(values, _destination(flag))
    if value is None:
        raise UsageError(f"{flag} is missing (or {variable_name(flag)} in the environment)")
    return value


def parse_server(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> ServerConfig:
    """Settings of the server.

    Raises:
        UsageError: the command line is wrong.
        ConfigError: a variable is wrong.
    """
    options = _Options(
        "shadow-server", "Accept robots over mutual TLS; each becomes a unix socket.", environment
    )
    options.add_switch("-4", "--ipv4", text="listen on IPv4 only")
    options.add_switch("-6", "--ipv6", text="listen on IPv6 only (default: both)")
    options.add("--lport", parse_port, "TCP port to listen on, unless systemd passes a socket")
    options.add("--ldir", Path, "folder for the robots' sockets")
    _add_common(options)
    options.add("--crl", Path, "file with the CA's list of revoked certificates")
    options.add("--signer", Path, "socket of the CA's signer, which renews the robots' certificates")
    options.add(
        "--keepalive", _parse_seconds, "seconds between signs of life; three missed end it", default=30.0
    )
    options.add(
        "--handshake-timeout", _parse_seconds, "seconds a new connection has to say who it is", default=10.0
    )
    options.add("--start-timeout", _parse_seconds, "seconds a robot has to connect a visitor", default=10.0)
    options.add("--max-handshakes", _parse_count(1, 65536), "handshakes at once; others wait", default=256)
    options.add("--max-handshake-rate", _parse_count(1, 10**6), "handshakes begun in a second", default=1000)
    options.add("--max-robots", _parse_count(1, 10**6), "robots connected at once", default=20000)
    options.add("--max-streams", _parse_count(1, 10**6), "visitors at once for one robot", default=1024)
    values = options.parse(arguments)
    return ServerConfig(
        ipv4=values.ipv4 or not values.ipv6,
        ipv6=values.ipv6 or not values.ipv4,
        lport=values.lport,
        ldir=_needed(values, "--ldir"),
        files=_files(values),
        crl=values.crl,
        signer=values.signer,
        ktls=values.ktls,
        keepalive=values.keepalive,
        handshake_timeout=values.handshake_timeout,
        start_timeout=values.start_timeout,
        max_handshakes=values.max_handshakes,
        max_handshake_rate=values.max_handshake_rate,
        max_robots=values.max_robots,
        max_streams=values.max_streams,
    )


def parse_client(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> ClientConfig:
    """Settings of the robot's side.

    Raises:
        UsageError: the command line is wrong.
        ConfigError: a variable is wrong.
    """
    options = _Options(
        "shadow-client", "Dial out to shadow-server and offer local ports through it.", environment
    )
    options.add("--rhost", parse_host, "host of the server: name, IPv4 or IPv6 address")
    options.add("--rport", parse_port, "TCP port of the server")
    options.add("--server-name", parse_host, "name in the server's certificate (default: RHOST)")
    options.add("--robot", check_robot_name, "our name, as in our certificate")
    options.add("--lhost", parse_host, "host of the default service", default="localhost")
    options.add("--lport", parse_port, "TCP port of the default service; without it there is none")
    options.add_list("--service", _parse_service, "NAME=HOST:PORT", "a further service (repeatable)")
    _add_common(options)
    options.add("--state", Path, "folder for renewed certificates; without it none are asked for")
    options.add("--standby", _parse_count(0, 64), "connections kept ready for visitors", default=2)
    options.add("--connect-timeout", _parse_seconds, "seconds the server has to answer", default=15.0)
    options.add_switch("--once", text="leave with an error at the first failure instead of trying again")
    values = options.parse(arguments)
    rhost = _needed(values, "--rhost")
    return ClientConfig(
        server=Endpoint(rhost, _needed(values, "--rport")),
        server_name=values.server_name or rhost,
        robot=_needed(values, "--robot"),
        services=_services(values),
        files=_files(values),
        state=values.state,
        ktls=values.ktls,
        standby=values.standby,
        once=values.once,
        connect_timeout=values.connect_timeout,
    )


def _services(values: argparse.Namespace) -> dict[str, Endpoint]:
    services: dict[str, Endpoint] = {}
    if values.lport is not None:
        services[DEFAULT_SERVICE] = Endpoint(values.lhost, values.lport)
    for name, endpoint in values.service if values.service is not None else values.service_environment:
        if name in services:
            raise UsageError(f"--service {name} is given twice")
        services[name] = endpoint
    if not services:
        raise UsageError("nothing to offer: give --lport, or --service NAME=HOST:PORT")
    return services
