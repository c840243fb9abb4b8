"""What other servers of the fleet ask this one: to connect their visitors, and what is here.

A visit goes one hop: a session that is here serves it, or nobody does.
"""

import asyncio
import dataclasses
import functools
import socket
from collections import Counter
from collections.abc import Iterator, Sequence

from ..daemon.config import ServerConfig
from ..errors import PeerError
from ..server.handshakes import Handshakes
from ..server.server import Server
from ..text import printable
from ..transport.channel import Channel
from ..wire.frames import Ask, Failed, Frame, Hello, Here, More, Refusal, Visit, Who
from .callers import Callers
from .doors import WORD_MAX, PeerDoor, visitor_from
from .inquiries import Inquiries
from .peer_trust import PeerTrust
from .registrar import Registrar

_TAKEN, _MOVED, _REFUSED = "taken", "moved", "refused"


class Answering:
    """Answers the other servers, from ``open`` on.

    Attributes:
        count: how many visitors of theirs were taken, were refused, or have to look elsewhere, by that word.
    """

    def __init__(
        self, server: Server, config: ServerConfig, fleet: str, trust: PeerTrust, registrar: Registrar
    ) -> None:
        """Answer nobody yet.

        Args:
            server: whose robots are visited.
            config: its settings.
            fleet: the fleet's name; servers of others are refused.
            trust: whom we take for one of them.
            registrar: knows what the directory says.
        """
        self.count = Counter({_TAKEN: 0, _MOVED: 0, _REFUSED: 0})
        self._robots = server.robots
        self._callers = Callers(fleet, trust)
        self._trust = trust
        self._registrar = registrar
        self._inquiries = Inquiries(server, registrar)
        self._loop = asyncio.get_running_loop()
        self._channels: dict[Channel, str] = {}
        # Balancers have no business between servers.
        settings = dataclasses.replace(config, proxy_protocol=())
        self._handshakes = Handshakes(settings, trust, self._greeted, server.robots.descriptors)

    def open(self, sockets: Sequence[socket.socket]) -> None:
        """Accept their connections from now on."""
        self._handshakes.open(sockets)

    async def close(self) -> None:
        """Accept no more; hang up on channels that stand by, and on visitors that wait: both come again."""
        await self._handshakes.close()
        await self._inquiries.close()
        for channel in list(self._channels):
            if channel.stands_by:
                channel.send(Refusal("stopping", "the server is stopping"))
            channel.close()
        self._channels.clear()

    def cut_off_revoked(self) -> None:
        """Hang up on servers whose certificates are revoked now; their streams are their robots' concern."""
        for channel in list(self._channels):
            if why := self._trust.revocation(channel.link):
                self._forget(channel)
                if channel.stands_by:
                    channel.send(Refusal("revoked", why))
                channel.close()

    def describe(self) -> Iterator[str]:
        """Lines for debugging."""
        for server, count in sorted(Counter(self._channels.values()).items()):
            yield f"server {server} has {count} channels to us that carry no stream"

    # One channel

    def _greeted(self, channel: Channel, hello: Hello, peer: str) -> None:
        standing = list(self._channels.values())
        server = self._callers.admit(channel, hello, peer, standing.count(hello.robot))
        if server is not None:
            channel.on_frame = functools.partial(self._frame, channel)
            channel.on_lost = functools.partial(self._lost, channel)
            self._channels[channel] = server

    def _lost(self, channel: Channel, error: PeerError | None) -> None:
        del error  # its server says more; a visitor has left with it
        self._forget(channel)

    def _forget(self, channel: Channel) -> None:
        self._channels.pop(channel, None)
        self._inquiries.forget(channel)

    def _frame(self, channel: Channel, frame: Frame) -> None:
        if isinstance(frame, Visit):
            self._visit(channel, frame)
        elif isinstance(frame, Who):
            channel.send(self._here(frame.robot))
        elif isinstance(frame, Ask):
            self._inquiries.ask(channel, self._channels[channel], frame)
        elif isinstance(frame, More):
            self._inquiries.more(channel)

    def _here(self, name: str) -> Here:
        robot = self._robots.get(name)
        session = None if robot is None else robot.session
        if session is None:
            return Here()
        heard = max(0.0, self._loop.time() - session.keepalive.heard_at)
        return Here(session.sid, session.boot, session.attempt, heard)

    def _visit(self, channel: Channel, visit: Visit) -> None:
        robot = self._robots.get(visit.robot)
        session = None if robot is None else robot.session
        if robot is None or session is None or not self._is_current(session.sid, visit):
            self.count[_MOVED] += 1
            channel.send(self._registrar.moved(visit.robot))
        elif visit.service not in session.services:
            service = printable(visit.service[:WORD_MAX])
            self._refuse(channel, "no-such-service", f"the robot has no service {service}")
        elif not self._robots.descriptors.for_visitor():
            self._refuse(channel, "limit", "the robot's server has too few descriptors left")
        else:
            self.count[_TAKEN] += 1
            door = PeerDoor(channel, lambda: self._channels.pop(channel, None))
            number, server = robot.visitors.next_number(), self._channels[channel]
            visitor = visitor_from(server, visit, door, number, self._loop.time())
            robot.visitors.take(visitor)

    def _refuse(self, channel: Channel, code: str, text: str) -> None:
        self.count[_REFUSED] += 1
        channel.send(Failed(code, text))

    def _is_current(self, sid: str, visit: Visit) -> bool:
        """Whether the session here is the one that is meant, or we know all that the visitor's server knows.

        If neither, the robot may be elsewhere by now, and only we have not heard of it.
        """
        seen = max(self._registrar.view.revision, self._registrar.claims.revision_of(visit.robot))
        return visit.sid == sid or visit.revision <= seen
