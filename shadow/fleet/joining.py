"""How a server joins its fleet: what has to be right before it starts, and what it leaves when it stops."""

import dataclasses
import datetime as dt
import socket
from collections.abc import Iterator

from cryptography import x509

from ..daemon.config import ServerConfig
from ..daemon.membership import Membership
from ..pki.expiry import Term, terms
from ..pki.peers import load_peer_credentials
from ..server.server import Extra, Server
from ..server.surroundings import SOFTWARE
from . import incarnation, peer_port
from .credentials import Identity, load_identity
from .etcd import Engine
from .fleet import Fleet
from .keys import Keys, Live


class Member(Extra):
    """A server's membership: checked when it is made, in force from ``open`` on."""

    def __init__(self, membership: Membership, config: ServerConfig) -> None:
        """Check everything that can be checked without the engine.

        Raises:
            ConfigError: a file is wrong.
            ClockError: our certificate is not valid yet.
        """
        self._membership = membership
        self._config = config
        self._identity: Identity
        self._terms: list[Term] = []
        self._load()
        self._peer_sockets: list[socket.socket] = []
        self._server: Server | None = None
        self._fleet: Fleet | None = None

    def _load(self) -> None:
        """Read our files, for the engine and for the other servers; if one is wrong, nothing changes."""
        membership, now = self._membership, dt.datetime.now(dt.UTC)
        robots, term = self._load_peer(now)
        identity = load_identity(membership.files, membership.login, robots, now)
        self._identity, self._terms = identity, [*identity.terms, term]

    def _load_peer(self, now: dt.datetime) -> tuple[list[x509.Certificate], Term]:
        """Check who we are to the other servers; the CA, which is the robots', and our certificate's end."""
        server, crt = self._membership.server, self._membership.peer_crt
        files = dataclasses.replace(self._config.files, crt=crt, key=self._membership.peer_key)
        credentials = load_peer_credentials(files, server, now)
        own, *_ = terms(credentials, crt, files.ca, f"`shadow-ca peer {server} --renew`")
        return credentials.ca, own

    def prepare(self, server: Server) -> None:
        """Take the port for the other servers.

        Raises:
            ConfigError: what systemd passed is not a listening socket.
            LocalError: it passed none, and the port is taken.
        """
        port, families = self._membership.peer.port, self._config.families
        self._peer_sockets = peer_port.listen(port, families, server.durable.store)

    def open(self, server: Server) -> None:
        """Claim the robots that are here already, and whatever comes from now on."""
        membership = self._membership
        before = incarnation.take(server.durable.store)
        # If none of its sessions goes on, its robots are as good as new: others need not believe in them.
        inc = before if before and server.resumed["sessions"] else incarnation.begin()
        live = Live(inc, membership.peer, self._config.advertise, draining=False, software=SOFTWARE)
        engine = Engine(membership.engine, self._identity)
        self._server = server
        self._fleet = Fleet(server, membership.server, Keys(membership.fleet), engine, live)

    def reload(self) -> None:
        """Read our files again.

        Raises:
            ShadowError: one is broken; the old ones stay in use.
        """
        self._load()
        if self._fleet is not None:
            self._fleet.use(self._identity)

    @property
    def terms(self) -> list[Term]:
        """What of our files expires."""
        return self._terms

    @property
    def status(self) -> str:
        """A few words for ``systemctl status``."""
        return "" if self._fleet is None else self._fleet.status

    def describe(self) -> Iterator[str]:
        """Lines for debugging."""
        if self._fleet is not None:
            yield from self._fleet.describe()

    async def close(self) -> None:
        """Leave the fleet to the next daemon of this server, or for good."""
        for sock in self._peer_sockets:
            sock.close()
        if self._fleet is not None and self._server is not None:
            store = self._server.durable.store
            await self._fleet.close(leaving=not store.limit)
            if store.limit:
                incarnation.leave(store, self._fleet.inc)
