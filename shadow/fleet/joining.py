"""How a server joins its fleet: what has to be right before it starts, and what it leaves when it stops."""

import datetime as dt
import socket
from collections.abc import Iterator

from ..daemon.config import ServerConfig
from ..daemon.membership import Membership
from ..pki.expiry import Term
from ..server.server import Extra, Server
from ..server.surroundings import SOFTWARE
from . import gate, incarnation
from .credentials import Identity, load_identity
from .fleet import Fleet
from .gate import Gate
from .keys import Live
from .memory import recall
from .peering import Peering


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
        self._peering = Peering(membership, config)
        self._identity = self._load()
        self._server: Server | None = None
        self._fleet: Fleet | None = None
        self._gate: Gate | None = None
        self._gate_sockets: list[socket.socket] = []

    def _load(self) -> Identity:
        files, login = self._membership.files, self._membership.login
        return load_identity(files, login, self._peering.ca, dt.datetime.now(dt.UTC))

    def prepare(self, server: Server) -> None:
        """Remember who is revoked, and take the gate and the port for the other servers.

        Raises:
            ConfigError: a list of revoked certificates is broken, or what systemd passed is not a listening
                socket of that kind.
            LocalError: it passed no port, and ours is taken.
        """
        for listed in recall(self._membership.state, server.trust.settings.ca):
            server.trust.learn(listed)
        self._gate_sockets = gate.listen(server.durable.store)
        self._peering.prepare(server)

    def open(self, server: Server) -> None:
        """Claim the robots that are here already, and whatever comes from now on."""
        membership = self._membership
        before = incarnation.take(server.durable.store)
        # If none of its sessions goes on, its robots are as good as new: others need not believe in them.
        inc = before if before and server.resumed["sessions"] else incarnation.begin()
        live = Live(inc, membership.peer, self._config.advertise, draining=False, software=SOFTWARE)
        self._server = server
        self._fleet = Fleet(server, membership, self._peering, self._identity, live)
        self._gate = Gate(self._gate_sockets, server.robots)

    def reload(self) -> None:
        """Read our files again.

        Raises:
            ShadowError: one is broken; the old ones stay in use.
        """
        self._peering.load()
        self._identity = self._load()
        if self._fleet is not None:
            self._fleet.use(self._identity)

    def cut_off_revoked(self) -> None:
        """See ``Extra``."""
        if self._fleet is not None:
            self._fleet.cut_off_revoked()

    @property
    def terms(self) -> list[Term]:
        """What of our files expires."""
        return [*self._identity.terms, *self._peering.terms]

    @property
    def status(self) -> str:
        """A few words for ``systemctl status``."""
        return "" if self._fleet is None else self._fleet.status

    def describe(self) -> Iterator[str]:
        """Lines for debugging."""
        if self._fleet is not None:
            yield from self._fleet.describe()
        if self._gate is not None:
            yield from self._gate.describe()

    async def close(self) -> None:
        """Leave the fleet to the next daemon of this server, or for good."""
        if self._fleet is not None and self._server is not None:
            store = self._server.durable.store
            await self._fleet.close(leaving=not store.limit)
            if store.limit:
                incarnation.leave(store, self._fleet.inc)
        if self._gate is not None:  # who has come by it meanwhile is left to the next daemon, too
            self._gate.close()
        for sock in self._gate_sockets:
            sock.close()
        self._peering.close()  # nobody accepts there any more
