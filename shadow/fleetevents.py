"""What happens in a fleet; ``events`` passes it on, so there is one place for all events."""

from .eventlog import Event


class EngineFound(Event, message_id="836a21a381cda2aa7b00347f5e690223"):
    """The server follows the fleet's engine."""


class EngineLost(Event, message_id="d72b8922718879560f7d518d5763f6d8"):
    """No member of the fleet's engine answers, or all of them refuse the server."""


class WritesRefused(Event, message_id="1735c663be0445f8bd12d126e1dce52d"):
    """The fleet's engine answers, but does not take what this server writes."""


class ViewDoubted(Event, message_id="88e3600db33f9387a6184c1c644407ed"):
    """What the server knew of the fleet is not what the engine has; it reads everything again."""


class KeyIgnored(Event, message_id="acbea32bb7a3c16d1c96b37369fb0b45"):
    """The fleet's engine has something among the fleet's keys that is no entry of it."""


class AnnouncedAgain(Event, message_id="5b53b2c389fb032e82f9779717fc4d41"):
    """The engine took this server for dead; it has announced itself again."""


class DrainBegun(Event, message_id="55badb86a4894e29af63efdbe5f037bb"):
    """The server's robots are to go to other servers."""


class Drained(Event, message_id="a20546ea09e44a0fbded29640e2eb342"):
    """The server that is drained has no robot any more, and no stream of one."""


class DrainOver(Event, message_id="1e69452e289a444383b8516b6a14fbff"):
    """The server takes robots again."""


class RebalanceBegun(Event, message_id="e4426363917c466e83a95edc9343c134"):
    """The server has more robots than others, and sends some to them."""


class RebalanceOver(Event, message_id="bb174e2942cb4ab8ac8c8fedd94270a2"):
    """The server sends no more robots to others."""


class EntriesCleared(Event, message_id="9ee7913077e39e4255914f5bbbea7f0e"):
    """Entries of robots whose server is gone for good were removed."""


class ListLearnt(Event, message_id="191bd5c0208445a18355ef5ebf9f1ced"):
    """A newer list of revoked certificates has come from another server of the fleet."""

    server: str
    number: str


class ListPassedOn(Event, message_id="f55468db814848039f7aa585f05e65e1"):
    """The other servers of the fleet can have this server's list of revoked certificates."""

    number: str


class ListRefused(Event, message_id="8363f133a3fd42569d65bb45c0f64a39"):
    """The fleet's engine has a list of revoked certificates that the server does not use."""


class ListNotKept(Event, message_id="72c6d44d4b4e45fabf1b39feb8230c80"):
    """A list of revoked certificates is in use, and could not be written to the disk."""

    number: str


class PeerLost(Event, message_id="199a5ef6be4ab29437afffba17748079"):
    """Another server of the fleet cannot be reached, or refuses this one."""

    server: str
    peer: str


class PeerFound(Event, message_id="556bb35434431644d4b19f5229588b88"):
    """Another server of the fleet can be reached again."""

    server: str
    peer: str
