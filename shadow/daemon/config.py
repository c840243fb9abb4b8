"""Settings of the daemons: from the command line, else from the environment, else the default.

Each option ``--some-thing`` may also be given as ``SHADOW_SOME_THING``, so that a unit needs only an
``EnvironmentFile=``. A bad value on the command line is a usage error, a bad variable is a configuration
error.
"""

import dataclasses
import functools
import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..errors import ConfigError, UsageError
from ..names import DEFAULT_SERVICE, check_robot_name, check_service_name
from ..net.address import (
    Endpoint,
    is_ip_address,
    parse_advertised,
    parse_endpoint,
    parse_host,
    parse_port,
)
from ..net.networks import Network, parse_networks
from ..options import Option, Program, Reader, parse_bool, parse_count, parse_seconds, parse_word
from ..pki.certificates import Files
from ..systemd.fdstore import passes_socket
from ..systemd.journal import Level
from ..transport.context import Ktls
from ..transport.hostnames import parse_reference
from ..wire.frames import SERVICES_MAX
from .membership import MembershipOptions

SERVER_SOCKET = "shadow-server"  # FileDescriptorName= of its socket unit
SERVERS_MAX = 8  # hosts that a robot may have to dial

SERVER = Program(
    "shadow-server",
    "Accept robots over mutual TLS; each becomes a unix socket.",
    """\
Exit status: 0 asked to stop, 2 usage error, 71 system error (such as a port in use), 74 output error,
75 wrong clock, 78 wrong file or setting.

example:
  shadow-server --lport=2222 --ldir=. --ca=ca.crt --crt=server.crt --key=server.key
""",
)
CLIENT = Program(
    "shadow-client",
    "Dial out to shadow-server and offer local ports through it.",
    """\
Exit status: 0 asked to stop, 2 usage error, 71 system error, 74 output error, 78 wrong file or setting;
with --once also 69 no answer, 75 wrong clock, 76 not our server, 77 refused by the server.

example:
  shadow-client --rhost=::1 --rport=2222 --robot=011 --lport=22 --ca=ca.crt --crt=client.crt --key=client.key
""",
    one_of={"--lport": "PORT", "--service": "NAME=HOST:PORT"},
)


def _parse_service(text: str) -> tuple[str, Endpoint]:
    name, equals, endpoint = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r} is not NAME=HOST:PORT")
    return check_service_name(name), parse_endpoint(endpoint)


def _without_port(text: str) -> tuple[str, str]:
    """A host whose port has its own option (``--rhost``, ``--rport``): both in one is a usual mistake.

    Returns:
        The host without the port, and the port; empty if there is none.
    """
    host, _, port = text.rpartition(":")
    both = bool(host) and port.isascii() and port.isdecimal() and ("[" in host or ":" not in host)
    return (host.removeprefix("[").removesuffix("]"), port) if both else (text, "")


def _parse_lhost(text: str) -> str:
    host, port = _without_port(text)
    if port:
        raise ConfigError(f"{text!r} includes the port: write --lhost={host} --lport={port}")
    return parse_host(text)


def _parse_rhost(text: str) -> tuple[str, ...]:
    """The hosts to dial, separated by commas."""
    words = [word.strip() for word in text.split(",")] if "," in text else [text]
    if "" in words[1:] or (words[0] == "" and len(words) > 1):
        raise ConfigError(f"{text!r}: there is no host before or after a comma")
    if len(words) > SERVERS_MAX:
        raise ConfigError(f"{len(words)} hosts, and there may be {SERVERS_MAX}")
    split = [_without_port(word) for word in words]
    ports = sorted({port for _host, port in split if port})
    if len(ports) == 1:
        hosts = ",".join(host for host, _port in split)
        raise ConfigError(f"{text!r} includes the port: write --rhost={hosts} --rport={ports[0]}")
    if ports:
        raise ConfigError(f"{text!r} includes ports, but all hosts have the same one: that of --rport")
    found: dict[str, str] = {}
    for host in map(parse_host, words):
        key = str(ipaddress.ip_address(host)) if is_ip_address(host) else host.removesuffix(".").lower()
        if key in found:
            raise ConfigError(f"{text!r} has {host} twice")
        found[key] = host
    return tuple(found.values())


_Ca = Annotated[Path, Option(Path, "FILE", "certificate file of the CA that both sides trust")]
_Crt = Annotated[Path, Option(Path, "FILE", "our certificate file, with intermediates if there are any")]
_Key = Annotated[Path, Option(Path, "FILE", "our private key file")]
_Ktls = Annotated[
    Ktls,
    Option(
        parse_word(Ktls),
        "|".join(Ktls),
        "whether the kernel encrypts: if it can, always (or do not run), never",
    ),
]
_LogLevel = Annotated[
    Level, Option(parse_word(Level), "|".join(Level), "log messages of this level and above")
]


@dataclass(frozen=True, kw_only=True)
class ServerConfig(MembershipOptions):
    """Settings of ``shadow-server``, a field for each option."""

    ldir: Annotated[Path, Option(Path, "FOLDER", "folder for the robots' sockets")]
    ca: _Ca
    crt: _Crt
    key: _Key
    lport: Annotated[
        int | None,
        Option(parse_port, "PORT", "TCP port to listen on; needed unless systemd passes a socket"),
    ] = None
    ipv4: Annotated[bool, Option(parse_bool, "", "listen on IPv4 only", "-4")] = False
    ipv6: Annotated[bool, Option(parse_bool, "", "listen on IPv6 only (default: both)", "-6")] = False
    crl: Annotated[Path | None, Option(Path, "FILE", "file with the CA's list of revoked certificates")] = (
        None
    )
    signer: Annotated[
        Path | None,
        Option(Path, "SOCKET", "socket of the CA's signer, which renews the robots' certificates"),
    ] = None
    advertise: Annotated[
        Endpoint | None,
        Option(
            parse_advertised,
            "HOST:PORT",
            "where robots open their channels for visitors (default: where they have connected)",
        ),
    ] = None
    proxy_protocol: Annotated[
        Sequence[Network],
        Option(
            parse_networks, "NETS", "networks of load balancers, which send a PROXY header: 192.0.2.0/24,…"
        ),
    ] = ()
    ktls: _Ktls = Ktls.AUTO
    keepalive: Annotated[
        float,
        Option(parse_seconds, "SECONDS", "between signs of life; a robot that misses three is disconnected"),
    ] = 30.0
    handshake_timeout: Annotated[
        float, Option(parse_seconds, "SECONDS", "that a new connection has to identify itself")
    ] = 10.0
    start_timeout: Annotated[
        float, Option(parse_seconds, "SECONDS", "that a robot has to connect a visitor")
    ] = 10.0
    max_handshakes: Annotated[int, Option(parse_count(1, 65536), "N", "handshakes at once; others wait")] = (
        256
    )
    max_handshake_rate: Annotated[int, Option(parse_count(1, 10**6), "N", "new handshakes per second")] = 1000
    max_robots: Annotated[int, Option(parse_count(1, 10**6), "N", "robots connected at once")] = 20000
    max_streams: Annotated[int, Option(parse_count(1, 10**6), "N", "visitors at once for one robot")] = 1024
    log_level: _LogLevel = Level.INFO

    @property
    def families(self) -> tuple[bool, bool]:
        """Whether to listen on IPv4, and on IPv6: on both if neither option or both are given."""
        return self.ipv4 or not self.ipv6, self.ipv6 or not self.ipv4

    @property
    def files(self) -> Files:
        """Who we are, and whom we trust."""
        return Files(self.ca, self.crt, self.key)


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """Settings of ``shadow-client``, a field for each option."""

    rhost: Annotated[
        tuple[str, ...],
        Option(
            _parse_rhost,
            "HOST",
            "the server: name, IPv4 or IPv6 address; several servers with commas in between",
        ),
    ]
    rport: Annotated[int, Option(parse_port, "PORT", "TCP port of the server")]
    robot: Annotated[str, Option(check_robot_name, "NAME", "our name, as in our certificate")]
    ca: _Ca
    crt: _Crt
    key: _Key
    lport: Annotated[
        int | None,
        Option(parse_port, "PORT", "TCP port of the default service; needed if there is no --service"),
    ] = None
    lhost: Annotated[str, Option(_parse_lhost, "HOST", "host of the default service")] = "localhost"
    service: Annotated[
        Sequence[tuple[str, Endpoint]],
        Option(_parse_service, "NAME=HOST:PORT", "a further service (repeatable)", several=True),
    ] = ()
    server_name: Annotated[
        str | None,
        Option(parse_host, "HOST", "name in the server's certificate (default: that of --rhost)"),
    ] = None
    state: Annotated[
        Path | None,
        Option(Path, "FOLDER", "folder for renewed certificates; without it the client does not renew"),
    ] = None
    ktls: _Ktls = Ktls.AUTO
    standby: Annotated[int, Option(parse_count(0, 64), "N", "connections kept ready for visitors")] = 2
    connect_timeout: Annotated[float, Option(parse_seconds, "SECONDS", "that the server has to answer")] = (
        15.0
    )
    once: Annotated[
        bool, Option(parse_bool, "", "exit with an error at the first failure instead of trying again")
    ] = False
    log_level: _LogLevel = Level.INFO

    def __post_init__(self) -> None:
        """Check now what concerns several settings.

        Raises:
            UsageError: two services have the same name, or there are too many.
            ConfigError: no certificate can be for a server of this name.
        """
        _ = self.services, self.references

    @functools.cached_property
    def references(self) -> tuple[str, ...]:
        """The names or addresses that the servers' certificates must be for."""
        hosts = self.rhost if self.server_name is None else (self.server_name,)
        return tuple(map(parse_reference, hosts))

    @functools.cached_property
    def servers(self) -> Mapping[Endpoint, str]:
        """Where to dial, and which of the references is for who is there; empty if there is only one."""
        names = self.references if len(self.references) > 1 else [""] * len(self.rhost)
        return {Endpoint(host, self.rport): name for host, name in zip(self.rhost, names, strict=True)}

    @property
    def whither(self) -> str:
        """Where to dial, for humans."""
        return " or ".join(map(str, self.servers))

    @property
    def files(self) -> Files:
        """Who we are, and whom we trust."""
        return Files(self.ca, self.crt, self.key)

    @functools.cached_property
    def services(self) -> Mapping[str, Endpoint]:
        """What visitors can reach, by name."""
        services: dict[str, Endpoint] = {}
        if self.lport is not None:
            services[DEFAULT_SERVICE] = Endpoint(self.lhost, self.lport)
        for name, endpoint in self.service:
            if name in services:
                raise UsageError(f"--service {name} is given twice")
            services[name] = endpoint
        if len(services) > SERVICES_MAX:
            raise UsageError(f"{len(services)} services, and a robot may have {SERVICES_MAX}")
        return services


def parse_server(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> ServerConfig:
    """Settings of the server.

    Raises:
        UsageError: the command line is wrong.
        ConfigError: a variable is wrong.
    """
    missing = () if passes_socket(SERVER_SOCKET, environment) else ("--lport",)
    program = dataclasses.replace(SERVER, also_needed=missing)
    return Reader(ServerConfig, program, environment).read(arguments)


def parse_client(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> ClientConfig:
    """Settings of the robot's side.

    Raises:
        UsageError: the command line is wrong.
        ConfigError: a variable is wrong.
    """
    return Reader(ClientConfig, CLIENT, environment).read(arguments)
