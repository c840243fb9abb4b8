"""Settings of a server that is one of a fleet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..errors import ConfigError, UsageError
from ..names import check_fleet_name, check_server_name
from ..net.address import Endpoint, parse_advertised, parse_endpoint
from ..options import Option, parse_bool, parse_count
from ..pki.certificates import Files

PEER_SOCKET = "shadow-peer"  # FileDescriptorName= of its socket unit
_SCHEME = "https://"
ENGINE_MEMBERS_MAX = 16


def parse_engine(text: str) -> tuple[Endpoint, ...]:
    """URLs of the engine's members, with commas between them: ``https://etcd1.example.com:2379,…``.

    Raises:
        ConfigError: one is not of that form.
    """
    endpoints = []
    for url in text.split(","):
        if not url.startswith(_SCHEME):
            raise ConfigError(f"{url!r} is not https://HOST:PORT (without TLS anybody could move the robots)")
        endpoints.append(parse_endpoint(url.removeprefix(_SCHEME).removesuffix("/")))
    if len(set(endpoints)) < len(endpoints):
        raise ConfigError(f"{text!r} names a member twice")
    if len(endpoints) > ENGINE_MEMBERS_MAX:
        raise ConfigError(f"{len(endpoints)} members, and an engine has at most {ENGINE_MEMBERS_MAX}")
    return tuple(endpoints)


@dataclass(frozen=True)
class Membership:
    """What makes a server one of a fleet.

    Attributes:
        fleet: the fleet's name.
        server: ours in it.
        peer: where the other servers reach us.
        peer_crt: file with the certificate that we show them; its CA is the robots'.
        peer_key: file with the private key for that.
        engine: the members of the engine.
        files: who we are to the engine, and whom we take for it.
        login: file with the user and password for the engine; None: the certificate is enough.
        rebalance: whether we send robots to other servers when we have too many.
        state: folder for what the server has learnt from the others and must not forget; None: there is none.
    """

    fleet: str
    server: str
    peer: Endpoint
    peer_crt: Path
    peer_key: Path
    engine: Sequence[Endpoint]
    files: Files
    login: Path | None
    rebalance: bool = True
    state: Path | None = None


@dataclass(frozen=True, kw_only=True)
class MembershipOptions:
    """The options, a field for each; without ``--fleet`` the files mean nothing."""

    fleet: Annotated[
        str | None,
        Option(check_fleet_name, "NAME", "be one of this fleet's servers, which share their robots"),
    ] = None
    server_id: Annotated[
        str | None,
        Option(check_server_name, "NAME", "our name in the fleet, unlike that of any other server"),
    ] = None
    peer: Annotated[
        Endpoint | None,
        Option(parse_advertised, "HOST:PORT", "where the fleet's other servers reach this one"),
    ] = None
    peer_crt: Annotated[Path | None, Option(Path, "FILE", "our certificate file for the other servers")] = (
        None
    )
    peer_key: Annotated[Path | None, Option(Path, "FILE", "our private key file for the other servers")] = (
        None
    )
    engine: Annotated[
        Sequence[Endpoint],
        Option(parse_engine, "URLS", "members of the etcd where the fleet meets: https://HOST:PORT,…"),
    ] = ()
    engine_ca: Annotated[Path | None, Option(Path, "FILE", "certificate file of the CA of that etcd")] = None
    engine_crt: Annotated[Path | None, Option(Path, "FILE", "our certificate file for that etcd")] = None
    engine_key: Annotated[Path | None, Option(Path, "FILE", "our private key file for that etcd")] = None
    engine_login: Annotated[
        Path | None, Option(Path, "FILE", "file with USER:PASSWORD, for an etcd that wants both")
    ] = None

    rebalance: Annotated[
        bool, Option(parse_bool, "yes|no", "send robots to other servers when there are too many here")
    ] = True
    state: Annotated[
        Path | None,
        Option(Path, "FOLDER", "folder for the fleet's lists of revoked certificates, over restarts"),
    ] = None
    max_fleet_sockets: Annotated[
        int, Option(parse_count(0, 10**6), "N", "robots of other servers that have sockets here")
    ] = 20000

    @property
    def membership(self) -> Membership | None:
        """What makes us one of a fleet; None: we are alone.

        Raises:
            UsageError: the options do not go together.
        """
        words = {"--server-id": self.server_id, "--peer": self.peer, "--engine": self.engine or None}
        if self.fleet is None:
            if alone := [flag for flag, value in words.items() if value is not None]:
                text = f"{alone[0]} without --fleet, the name of the fleet that this server belongs to"
                raise UsageError(text)
            return None
        files = {"--peer-crt": self.peer_crt, "--peer-key": self.peer_key, "--engine-ca": self.engine_ca}
        files |= {"--engine-crt": self.engine_crt, "--engine-key": self.engine_key}
        if missing := [flag for flag, value in {**words, **files}.items() if value is None]:
            raise UsageError(f"--fleet needs {', '.join(missing)} as well")
        (peer,) = filter(None, [self.peer])
        peer_crt, peer_key, *found = filter(None, files.values())
        return Membership(
            fleet=self.fleet, server=str(self.server_id), peer=peer, peer_crt=peer_crt, peer_key=peer_key,
            engine=self.engine, files=Files(*found), login=self.engine_login, rebalance=self.rebalance,
            state=self.state,
        )  # fmt: skip
