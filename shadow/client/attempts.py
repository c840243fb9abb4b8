"""How often a robot tries to reach its server: in a hurry while streams wait for their session.

No I/O and no clock.
"""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, HandshakeError, IdentityError, Refused, ShadowError
from ..wire.timing import Backoff

ANSWERS = (IdentityError, HandshakeError, Refused, ConfigError)
"""Failures that a better line would not change."""

_INTERVAL = 30.0  # seconds, before there was a session: streams of a client before us may wait for one
_HURRY_WAIT, _WAIT_LEAST = 1 / 8, 1.0  # of a keepalive interval, and seconds; see Attempts
_HURRY_REACH, _REACH_LEAST = 1 / 4, 3.0  # less would not tolerate a lost SYN or a slow machine


@dataclass(slots=True)
class Boot:
    """What orders the sessions of one robot, wherever they are: the client's life, planned restarts included.

    Attributes:
        id: random.
        attempt: how often it has asked for a session.
    """

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    attempt: int = 0

    def count(self) -> int:
        """The number of the attempt that is made now."""
        self.attempt += 1
        return self.attempt

    def to_json(self) -> dict[str, Any]:
        """All of it, for ``from_json`` of the next process."""
        return {"boot": self.id, "attempt": self.attempt}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Boot":
        """What the process before this one has left; earlier versions have left nothing.

        Raises:
            TypeError, ValueError: it is not that.
        """
        return cls(str(facts["boot"]), int(facts["attempt"])) if "boot" in facts else cls()


class Attempts:
    """The attempts of one robot.

    After an outage a stream may learn only from its session that the line is back (``net.lines``), so the
    session must be there half a keepalive interval later: a wait of an eighth of the interval and a quarter
    of it for the connection leave an eighth for the handshake. (With intervals of less than twelve seconds
    that may not be enough.) Without streams nobody is in a hurry, and if the line is down for good, soon
    there are no streams.
    """

    def __init__(self, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff()
        self._interval = _INTERVAL  # of the last session's keepalive

    def connected(self, interval: float) -> None:
        """There is a session, with a keepalive interval of ``interval`` seconds."""
        self._interval = interval

    def lived(self, seconds: float) -> None:
        """The session lasted that long."""
        self._backoff.lived(seconds)

    def reach(self, streams: int) -> float:
        """Seconds within which there must be a connection; infinite without ``streams``."""
        return max(_REACH_LEAST, _HURRY_REACH * self._hurry(streams))

    def wait(self, error: ShadowError, streams: int) -> float:
        """Seconds to wait before the next attempt, after one more failure or loss."""
        if isinstance(error, ANSWERS):  # the line is up, so hurrying would change nothing
            return self._backoff.wait(error.retry_after if isinstance(error, Refused) else 0.0)
        return self._backoff.wait(at_most=max(_WAIT_LEAST, _HURRY_WAIT * self._hurry(streams)))

    def _hurry(self, streams: int) -> float:
        """The keepalive interval if streams wait for their robot's session, else infinity."""
        return self._interval if streams else math.inf
