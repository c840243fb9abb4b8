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

from .address import Endpoint, parse_endpoint, parse_host, parse_port
from .errors import ConfigError, ShadowError, UsageError
from .hostnames import parse_reference
from .names import DEFAULT_SERVICE, check_robot_name, check_service_name
from .sd_daemon import passes_socket
from .tls import Ktls
from .usage import PREFIX, main_parser

_EPILOG = """\
Every option --some-thing can also come from the environment as SHADOW_SOME_THING; the command line wins.
"""
_SERVER_EPILOG = """\
Exit status: 0 asked to stop, 2 usage, 71 the machine (the port is taken), 74 it cannot be printed,
75 the clock, 78 a file or a setting is wrong.

example:
  shadow-server --lport=2222 --ldir=. --ca=ca.crt --crt=server.crt --key=server.key
"""
_CLIENT_EPILOG = """\
Exit status: 0 asked to stop, 2 usage, 71 the machine, 74 it cannot be printed, 78 a file or a setting is
wrong; with --once also 69 nobody is there, 75 the clock, 76 it is not our server, 77 the server said no.

example:
  shadow-client --rhost=::1 --rport=2222 --robot=011 --lport=22 --ca=ca.crt --crt=client.crt --key=client.key
"""
_SECONDS_MAX = 10800  # TCP_KEEPIDLE ends at 32767 (tcp(7)), and a connect timeout counts three times
SERVER_SOCKET = "shadow-server"  # FileDescriptorName= of its socket unit
_NONE: Mapping[str, str] = {}
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

    def __init__(self, program: str, description: str, epilog: str, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._settings = f"/etc/shadow-tunnel/{program.removeprefix('shadow-')}.env"
        self._needed: dict[str, str] = {}  # with what their values are called
        self._needed_here: list[str] = []  # beside them
        self.parser = main_parser(program, description, f"{_EPILOG}{epilog}")
        self._group = self.parser.add_argument_group("needed")

    def need(self, flag: str, parse: Callable[[str], object], metavar: str, text: str) -> None:
        """Declare ``flag`` with a value that has to be given."""
        self._needed[flag] = metavar
        self._add(self._group, flag, parse, metavar, text)

    def need_here(self, flag: str) -> None:
        """An option of ``add`` has to be given, too, as things are; the usage does not say so."""
        self._needed_here.append(flag)

    def add(
        self, flag: str, parse: Callable[[str], object], metavar: str, text: str, *, default: object = None
    ) -> None:
        """Declare ``flag`` with a value; ``default`` None means that there is none."""
        shown = "" if default is None else f" (default: {default})"
        self._add(self.parser, flag, parse, metavar, text + shown, default)

    def _add(
        self,
        to: Any,
        flag: str,
        parse: Callable[[str], object],
        metavar: str,
        text: str,
        default: object = None,
    ) -> None:
        value = self._from_environment(flag, parse, default)
        to.add_argument(flag, type=_argument(parse), default=value, metavar=metavar, help=text)

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

    def parse(self, arguments: Sequence[str] | None, one_of: Mapping[str, str] = _NONE) -> argparse.Namespace:
        """Read the words.

        Args:
            arguments: they, or None for those of the process.
            one_of: flags, with what their values are called; one of these two has to be given.

        Raises:
            UsageError: one is wrong, or something that is needed is missing; all of it is named.
        """
        self.parser.usage = self._usage(one_of)
        values: argparse.Namespace = self.parser.parse_args(arguments)
        groups = [[flag] for flag in (*self._needed, *self._needed_here)] + ([[*one_of]] if one_of else [])
        some = (name for name, value in vars(values).items() if value not in (None, []))
        given = {name.removesuffix("_environment") for name in some}
        if missing := [flags for flags in groups if given.isdisjoint(map(_destination, flags))]:
            raise UsageError(self._complaint(missing))
        return values

    def _usage(self, one_of: Mapping[str, str]) -> str:
        words = [f"{flag}={metavar}" for flag, metavar in self._needed.items()]
        either = " | ".join(f"{flag}={metavar}" for flag, metavar in one_of.items())
        return " ".join(["%(prog)s", *words, *([f"{{{either}}}"] if either else []), "[OPTION]..."])

    def _complaint(self, missing: Sequence[Sequence[str]]) -> str:
        variables = [[variable_name(flag) for flag in flags] for flags in missing]
        are = "is" if len(missing) == 1 else "are"
        if "NOTIFY_SOCKET" in self._environment:  # systemd has started us: it belongs into a file
            there = f"{_listed(variables)} {are} missing in {self._settings}"
            return f"{there} (or {_listed(missing, 1)} on the command line)"
        return f"{_listed(missing)} {are} missing (or {_listed(variables, 1)} in the environment)"

    def _from_environment(self, flag: str, parse: Callable[[str], _T], default: _T) -> _T:
        name = variable_name(flag)
        value = self._environment.get(name, "")
        if not value:
            return default
        try:
            return parse(value)
        except ShadowError as error:
            raise ConfigError(f"{name} in the environment: {error}") from error


def _listed(groups: Sequence[Sequence[str]], most: int = 2) -> str:
    """``a``, ``a and b``, ``a, b and c (or d)``: of each group the first, or two, one of which is enough."""
    words = [" (or ".join(group[:most]) + ")" * (len(group[:most]) - 1) for group in groups]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def variable_name(flag: str) -> str:
    """The environment variable that stands for an option."""
    return PREFIX + _destination(flag).upper()


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


def _parse_dialled(option: str) -> Callable[[str], str]:
    """A host whose port is for another option (``--rhost``, ``--rport``): both in one is a usual mistake."""

    def parse(text: str) -> str:
        host, _, port = text.rpartition(":")
        both = bool(host) and port.isascii() and port.isdecimal() and ("[" in host or ":" not in host)
        if both:
            host = host.removeprefix("[").removesuffix("]")
            raise ConfigError(
                f"{text!r} holds the port as well: write --{option}host={host} --{option}port={port}"
            )
        return parse_host(text)

    return parse


def _need_files(options: _Options) -> None:
    options.need("--ca", Path, "FILE", "certificate file of the CA that both sides trust")
    options.need("--crt", Path, "FILE", "our certificate file, with intermediates if there are any")
    options.need("--key", Path, "FILE", "our private key file")


def _add_ktls(options: _Options) -> None:
    text = "whether the kernel encrypts: if it can, always (or refuse to run), never"
    options.add("--ktls", _parse_ktls, "|".join(Ktls), text, default=Ktls.AUTO)


def _files(values: argparse.Namespace) -> Files:
    return Files(values.ca, values.crt, values.key)


def parse_server(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> ServerConfig:
    """Settings of the server.

    Raises:
        UsageError: the command line is wrong.
        ConfigError: a variable is wrong.
    """
    options = _Options(
        "shadow-server",
        "Accept robots over mutual TLS; each becomes a unix socket.",
        _SERVER_EPILOG,
        environment,
    )
    options.need("--ldir", Path, "FOLDER", "folder for the robots' sockets")
    _need_files(options)
    options.add("--lport", parse_port, "PORT", "TCP port to listen on; needed unless systemd passes a socket")
    if not passes_socket(SERVER_SOCKET, environment):
        options.need_here("--lport")
    options.add_switch("-4", "--ipv4", text="listen on IPv4 only")
    options.add_switch("-6", "--ipv6", text="listen on IPv6 only (default: both)")
    options.add("--crl", Path, "FILE", "file with the CA's list of revoked certificates")
    options.add(
        "--signer", Path, "SOCKET", "socket of the CA's signer, which renews the robots' certificates"
    )
    _add_ktls(options)
    text = "between signs of life; three missed end it"
    options.add("--keepalive", _parse_seconds, "SECONDS", text, default=30.0)
    text = "that a new connection has to say who it is"
    options.add("--handshake-timeout", _parse_seconds, "SECONDS", text, default=10.0)
    text = "that a robot has to connect a visitor"
    options.add("--start-timeout", _parse_seconds, "SECONDS", text, default=10.0)
    counts = (
        ("--max-handshakes", 65536, 256, "handshakes at once; others wait"),
        ("--max-handshake-rate", 10**6, 1000, "handshakes begun in a second"),
        ("--max-robots", 10**6, 20000, "robots connected at once"),
        ("--max-streams", 10**6, 1024, "visitors at once for one robot"),
    )
    for flag, most, default, text in counts:
        options.add(flag, _parse_count(1, most), "N", text, default=default)
    values = options.parse(arguments)
    return ServerConfig(
        ipv4=values.ipv4 or not values.ipv6,
        ipv6=values.ipv6 or not values.ipv4,
        lport=values.lport,
        ldir=values.ldir,
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
        "shadow-client",
        "Dial out to shadow-server and offer local ports through it.",
        _CLIENT_EPILOG,
        environment,
    )
    options.need("--rhost", _parse_dialled("r"), "HOST", "the server: name, IPv4 or IPv6 address")
    options.need("--rport", parse_port, "PORT", "TCP port of the server")
    options.need("--robot", check_robot_name, "NAME", "our name, as in our certificate")
    _need_files(options)
    text = "TCP port of the default service; needed if there is no --service"
    options.add("--lport", parse_port, "PORT", text)
    options.add("--lhost", _parse_dialled("l"), "HOST", "host of the default service", default="localhost")
    options.add_list("--service", _parse_service, "NAME=HOST:PORT", "a further service (repeatable)")
    options.add(
        "--server-name", parse_host, "HOST", "name in the server's certificate (default: that of --rhost)"
    )
    options.add("--state", Path, "FOLDER", "folder for renewed certificates; without it none are asked for")
    _add_ktls(options)
    options.add("--standby", _parse_count(0, 64), "N", "connections kept ready for visitors", default=2)
    options.add("--connect-timeout", _parse_seconds, "SECONDS", "that the server has to answer", default=15.0)
    options.add_switch("--once", text="leave with an error at the first failure instead of trying again")
    values = options.parse(arguments, {"--lport": "PORT", "--service": "NAME=HOST:PORT"})
    return ClientConfig(
        server=Endpoint(values.rhost, values.rport),
        server_name=parse_reference(values.server_name or values.rhost),
        robot=values.robot,
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
    return services
