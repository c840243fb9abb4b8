"""Certificates by which the servers of a fleet know each other: who shows a good one, and our own."""

import datetime as dt

from cryptography import x509

from ..errors import ConfigError, IdentityError
from ..names import PEER, check_server_name
from ..text import shorten
from .certificates import (
    Credentials,
    Files,
    Purpose,
    alternative_names,
    common_name,
    has_purpose,
    load_credentials,
)


def peer_of(certificate: x509.Certificate) -> str:
    """The server of a fleet that a peer's certificate is for; both sides of a channel between servers ask.

    A peer's certificate has no host names: whoever has one must not be able to pose as the server to robots,
    not even to those of a version that does not know about peers.

    Returns:
        The server's id.

    Raises:
        IdentityError: it is not a peer's, but a robot's, say, or a server's; or it is for hosts, too.
    """
    name = common_name(certificate)
    if not has_purpose(certificate, Purpose.PEER):
        raise IdentityError(
            f"the certificate of {shorten(name)} is not a peer's (common name {PEER}SERVER, serverAuth and "
            "clientAuth)"
        )
    try:
        server = check_server_name(name.removeprefix(PEER))
    except ConfigError as error:
        raise IdentityError(f"the certificate of {shorten(name)}: {error}") from error
    hosts = [
        each for each in alternative_names(certificate) if isinstance(each, x509.DNSName | x509.IPAddress)
    ]
    if hosts:
        raise IdentityError(
            f"the certificate of {shorten(name)} is for hosts, too ({shorten(str(hosts[0].value))}): "
            "robots could take a peer for their server"
        )
    return server


def load_peer_credentials(files: Files, server: str, now: dt.datetime) -> Credentials:
    """Read and check what a server needs among its peers.

    Args:
        files: the CA, and the certificate and key from it.
        server: our own id in the fleet.
        now: the time to judge by, aware.

    Raises:
        ConfigError: a file is missing or wrong, or the certificate is not this server's for its peers.
        ClockError: a certificate is not valid yet.
    """
    credentials = load_credentials(files.ca, files.crt, files.key, Purpose.PEER, now)
    try:
        name = peer_of(credentials.chain[0])
    except IdentityError as error:
        raise ConfigError(f"{files.crt}: {error}; make a new one with `shadow-ca peer {server}`") from error
    if name != server:
        raise ConfigError(
            f"{files.crt} is the certificate of server {name} for its peers, and this is {server}: "
            f"`shadow-ca peer {server}` makes the right one"
        )
    return credentials
