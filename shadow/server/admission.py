"""Who may be a robot here: admits or refuses a connection that has said HELLO."""

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, IdentityError, Refused
from ..relay.flow import Pump
from ..text import shorten
from ..transport.channel import Channel
from ..transport.link import Link
from ..wire.conversation import CONTROL, speaks_our_version
from ..wire.frames import Hello
from .candidates import Candidates, refuse
from .robot import Robot
from .robots import Robots
from .trust import Offer, Trust

_COME_BACK = 60.0  # seconds for which a robot should stay away if there is no room for it


class Admission:
    """Finds the robot that a connection belongs to.

    Attributes:
        robots: all known robots.
    """

    def __init__(self, robots: Robots, trust: Trust, robots_max: int) -> None:
        self.robots = robots
        self._candidates = Candidates(robots, trust.revocation)
        self._trust = trust
        self._robots_max = robots_max

    @property
    def full(self) -> bool:
        """True if a robot that is not here yet would be refused: there are as many as may be."""
        return self.robots.connected + len(self._candidates) >= self._robots_max

    def dispatch(self, channel: Channel, hello: Hello, peer: str) -> None:
        """Hand a connection that has said HELLO to its robot, or refuse it."""
        try:
            robot = self._admit(channel.link, hello)
            if hello.role == CONTROL:
                self._candidates.came(robot, robot.meet(channel, hello, peer))
            else:
                robot.add_standby(channel, hello)
        except Refused as refused:
            refuse(channel, hello.robot, peer, refused)
            self._forget_if_empty(hello.robot)
        except BaseException:
            channel.abort()  # whatever happened, nobody else would close it
            self._forget_if_empty(hello.robot)
            raise

    def close(self) -> None:
        """Hang up on robots that wait for their WELCOME."""
        self._candidates.close()

    @property
    def offer(self) -> Offer:
        """The terms of new sessions."""
        return self._trust.offer

    def readmit(self, link: Link) -> Robot:
        """The robot whose connection the previous daemon has left.

        Raises:
            ShadowError: we would not let it in today.
        """
        self._trust.check_again(link, renews=self.robots.signer.there)
        return self.robots.provide(self._trust.robot_of(link))

    def resume_stream(self, pump: Pump, facts: Mapping[str, Any]) -> None:
        """Take in a stream that the previous daemon has left; see ``durable.TakeIn``."""
        if isinstance(pump.near, Link):  # from the visitor's server
            self.robots.elsewhere.readmit(pump.near)
        if self._trust.is_peer(pump.link):  # to the robot's server
            self.robots.elsewhere.readmit(pump.link)
            robot = self.robots.provide(str(facts["robot"]))
        else:
            robot = self.readmit(pump.link)
        self.robots.numbers.note(robot.streams.resume(pump, facts).stream)

    def elsewhere(self, name: str) -> Robot | None:
        """The robot of this name, which is not here, if it may be elsewhere and be visited from here."""
        return self.robots.provide(name) if self.robots.elsewhere.take_over(name) else None

    def _forget_if_empty(self, name: str) -> None:
        robot = self.robots.get(name)
        if robot is not None:
            robot.report_if_empty()

    def _admit(self, link: Link, hello: Hello) -> Robot:
        """The robot that may use this connection.

        Raises:
            Refused: it is not who it claims to be, it speaks another version, or there is no room.
        """
        try:
            name = self._trust.robot_of(link)
        except (ConfigError, IdentityError) as error:
            raise Refused("bad-name", str(error)) from error
        if hello.robot != name:
            raise Refused("name-mismatch", f"the certificate is for {shorten(name)}")
        # Here and not in the handshake, so that the robot is told, and a reload in between counts.
        if why := self._trust.revocation(link):
            raise Refused("revoked", why)
        if not speaks_our_version(hello):
            raise Refused("version", f"protocol version {hello.version} is not spoken here")
        if hello.role == CONTROL and self.robots.draining:
            raise Refused("draining", "the server is being drained: another one will do")
        if name not in self.robots or not self.robots[name].is_here:
            if hello.role != CONTROL:
                raise Refused("no-session", "connect the control channel first")
            if self.full:
                text = f"{self._robots_max} robots are connected (--max-robots)"
                raise Refused("limit", text, _COME_BACK)
        return self.robots.provide(name)
