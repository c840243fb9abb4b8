"""A server among its peers: what has to be right before it starts, and how it opens."""

import dataclasses
import socket
from collections.abc import Sequence

from cryptography import x509

from ..daemon.config import ServerConfig
from ..daemon.membership import PEER_SOCKET, Membership
from ..pki.expiry import Term
from ..server.listening import listen_at
from ..server.server import Server
from ..server.surroundings import SOFTWARE
from ..wire.conversation import PEER
from ..wire.frames import PROTOCOL_VERSION, Hello
from .arriving import Arriving
from .between import Between
from .peer_trust import PeerTrust
from .registrar import Registrar


class Peering:
    """Its files and its port, until it closes."""

    def __init__(self, membership: Membership, config: ServerConfig) -> None:
        """Read the files.

        Raises:
            ConfigError: one is wrong.
            ClockError: our certificate is not valid yet.
        """
        self._membership = membership
        self._config = config
        files = dataclasses.replace(config.files, crt=membership.peer_crt, key=membership.peer_key)
        self._trust = PeerTrust(files, membership.server, config.ktls)
        self._arriving = Arriving(self._trust)
        self._sockets: list[socket.socket] = []

    def load(self) -> None:
        """Read them again.

        Raises:
            ShadowError: one is broken; the old ones stay in use.
        """
        self._trust.load()

    @property
    def ca(self) -> Sequence[x509.Certificate]:
        """The CA of the robots and the peers."""
        return self._trust.settings.ca

    @property
    def terms(self) -> Sequence[Term]:
        """What of the files expires; the CA is the server's concern."""
        return self._trust.terms[:1]

    def prepare(self, server: Server) -> None:
        """Take the port, and be ready to take what the daemon before us has left.

        Raises:
            ConfigError: what systemd passed is not a listening socket.
            LocalError: it passed none, and the port is taken.
        """
        port, families = self._membership.peer.port, self._config.families
        self._sockets = listen_at(PEER_SOCKET, port, families, server.durable.store)
        self._trust.revocation = server.trust.revocation
        server.robots.elsewhere = self._arriving

    def open(self, server: Server, registrar: Registrar) -> Between:
        """Let visitors go to other servers and come from there."""
        fleet, name = self._membership.fleet, self._membership.server
        hello = Hello(PROTOCOL_VERSION, PEER, name, software=SOFTWARE, fleet=fleet)
        between = Between(server, self._config, hello, self._trust, registrar)
        self._arriving.arrive(between.foreign)
        between.open(self._sockets)
        return between

    def close(self) -> None:
        """Close the port."""
        for sock in self._sockets:
            sock.close()
