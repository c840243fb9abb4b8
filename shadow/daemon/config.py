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

from ..errors import ConfigError, UsageError
from ..names import DEFAULT_SERVICE, check_robot_name, check_service_name
from ..net.address import Endpoint, parse_endpoint, parse_host, parse_port
from ..options import _Options, _parse_count, _parse_seconds
from ..pki.certificates import Files
from ..systemd.fdstore import passes_socket
from ..transport.context import Ktls
from ..transport.hostnames import parse_reference

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
SERVER_SOCKET = "shadow-server"  # FileDescriptorName= of its socket unit


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
