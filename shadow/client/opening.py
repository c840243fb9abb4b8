"""How sessions of a robot begin: a server that we dial says WELCOME, or another process has left one."""

import math
from collections.abc import Mapping
from typing import Any

from .. import __version__
from ..daemon.config import ClientConfig
from ..net.address import Target
from ..transport.channel import Channel
from ..transport.context import Settings
from ..wire.conversation import CONTROL, DATA
from ..wire.frames import PROTOCOL_VERSION, Hello
from .approach import Approach, Call, Door
from .attempts import Boot
from .services import Services
from .session import Agreed, Session
from .standbys import Standbys
from .streams import Streams

SOFTWARE = f"shadow-client {__version__}"


class Opener:
    """Makes the sessions of one robot.

    Attributes:
        boot: orders them.
    """

    def __init__(self, config: ClientConfig, streams: Streams) -> None:
        self._config = config
        self._services = Services(config.robot, config.services, streams)
        self._lines = streams.lines
        self.boot = Boot()
        self._approach = Approach(config.servers, config.connect_timeout)

    def __repr__(self) -> str:
        return f"<Opener to {self._config.whither}, {self._services}>"

    async def open(self, settings: Settings, reach: float = math.inf) -> Session:
        """Dial, do the handshake, send HELLO and receive WELCOME.

        Args:
            settings: how to do handshakes.
            reach: seconds for a TCP connection, if less than the client's settings allow.

        Raises:
            ShadowError: that failed.
        """
        config = self._config
        services = tuple(config.services)
        hello = Hello(PROTOCOL_VERSION, CONTROL, config.robot, services, software=SOFTWARE, moves=True)
        call = Call(settings, hello, config.connect_timeout, reach, self.boot)
        arrival = await self._approach.call(call)
        agreed = Agreed.at_welcome(arrival.welcome, arrival.target, config.robot)
        session = self.session(arrival.channel, agreed, settings)
        session.begin()
        session.stand_by(arrival.took)
        return session

    @property
    def record(self) -> Mapping[str, Any]:
        """What ``recall`` of the next process needs to order the sessions that it opens after ours."""
        return self.boot.to_json()

    def recall(self, record: Mapping[str, Any]) -> None:
        """Order the sessions to be opened after those of the process that has left this record.

        Raises:
            TypeError, ValueError: it is not one.
        """
        self.boot = Boot.from_json(record)

    def avoid(self, target: Target) -> None:
        """Try this address after all others, for a while."""
        self._approach.avoid(target)

    def stop(self) -> None:
        """Stop connecting visitors."""
        self._services.stop()

    def dials(self, target: Target) -> bool:
        """True if who must be at this address is one of our servers."""
        return target.name in self._config.servers.values()

    def session(self, channel: Channel, agreed: Agreed, settings: Settings) -> Session:
        """The session of a control channel that has been welcomed."""
        config = self._config
        self._approach.prefer(agreed.target)
        hello = Hello(PROTOCOL_VERSION, DATA, config.robot, session=agreed.id)
        if agreed.dial is None:
            door = Door(self._approach, hello, settings, agreed.interval, agreed.target)
        else:
            # Whoever is there has to be for the same name as the server that sends us there.
            approach = Approach({agreed.dial: agreed.target.name}, config.connect_timeout, told=True)
            door = Door(approach, hello, settings, agreed.interval, None)
        elsewhere = "" if agreed.dial is None else str(agreed.dial)
        standbys = Standbys(config.robot, config.standby, door.open, self._services.connect, elsewhere)
        return Session(config.robot, channel, agreed, door, standbys, self._lines)
