"""Settings of a server that is one of a fleet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..errors import ConfigError, UsageError
from ..names import check_fleet_name, check_server_name
from ..net.address import Endpoint, parse_endpoint
from ..options import Option
from ..pki.certificates import Files

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
        engine: the members of the engine.
        files: who we are to the engine, and whom we take for it.
        login: file with the user and password for the engine; None: the certificate is enough.
    """

    fleet: str
    server: str
    engine: Sequence[Endpoint]
    files: Files
    login: Path | None


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

    @property
    def membership(self) -> Membership | None:
        """What makes us one of a fleet; None: we are alone.

        Raises:
            UsageError: the options do not go together.
        """
        words = {"--server-id": self.server_id, "--engine": self.engine or None}
        if self.fleet is None:
            if alone := [flag for flag, value in words.items() if value is not None]:
                text = f"{alone[0]} without --fleet, the name of the fleet that this server belongs to"
                raise UsageError(text)
            return None
        files = {"--engine-ca": self.engine_ca, "--engine-crt": self.engine_crt}
        files["--engine-key"] = self.engine_key
        if missing := [flag for flag, value in {**words, **files}.items() if value is None]:
            raise UsageError(f"--fleet needs {', '.join(missing)} as well")
        found = Files(*filter(None, files.values()))
        return Membership(self.fleet, str(self.server_id), self.engine, found, self.engine_login)
