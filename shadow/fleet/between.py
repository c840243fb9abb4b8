"""What there is between this server and the others: channels, visits both ways, sockets of their robots."""

import socket
from collections.abc import Iterator, Sequence

from ..daemon.config import ServerConfig
from ..server.server import Server
from ..wire.frames import Hello
from .acquaintances import Acquaintances
from .answering import Answering
from .foreign import Foreign
from .peer_trust import PeerTrust
from .peers import Peers
from .registrar import Registrar
from .survey import Survey
from .visits import Visits
from .whereabouts import Whereabouts


class Between:
    """All of it.

    Attributes:
        foreign: has the sockets of robots that are at other servers.
    """

    def __init__(
        self, server: Server, config: ServerConfig, hello: Hello, trust: PeerTrust, registrar: Registrar
    ) -> None:
        """Begin: visitors here are taken to robots elsewhere; nobody comes from there before ``open``.

        Args:
            server: ours.
            config: its settings.
            hello: what we say to other servers.
            trust: who we are to them, and whom we take for one of them.
            registrar: knows what the directory says.
        """
        robots = server.robots
        view = registrar.view
        self._peers = Peers(hello, trust, config.keepalive, config.handshake_timeout)
        self.foreign = Foreign(robots, hello.robot, view, config.max_fleet_sockets)
        self._visits = Visits(
            Whereabouts(registrar, self._peers), self._peers, self.foreign, config.start_timeout
        )
        self._answering = Answering(server, config, hello.fleet, trust, registrar)
        self._acquaintances = Acquaintances(self._peers, view)
        visits = {"out": self._visits.count, "in": self._answering.count}
        self._visits.overview = survey = Survey(robots, registrar, visits, self._peers, self._visits.people)
        registrar.audience.extend([self._acquaintances, self.foreign, self._visits.news, survey])
        robots.elsewhere = self._visits

    def open(self, sockets: Sequence[socket.socket]) -> None:
        """Let visitors come from other servers."""
        self._answering.open(sockets)

    async def close(self) -> None:
        """Accept, dial and make nothing more.

        Who waits here for a robot elsewhere goes on waiting, and who comes now begins to: for the next
        daemon.
        """
        await self._answering.close()
        await self._visits.close()
        self._acquaintances.close()
        await self._peers.close()

    def cut_off_revoked(self) -> None:
        """Certificates may have been revoked, also other servers'."""
        self._answering.cut_off_revoked()
        self._peers.cut_off_revoked()

    def describe(self) -> Iterator[str]:
        """Lines for debugging."""
        for part in (self._peers, self._answering, self.foreign, self._visits):
            yield from part.describe()
