"""What those who look after a server can ask of it, or have it do, and of the other servers of its fleet."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import Unreachable
from ..text import printable
from ..wire.frames import INTEGER_MAX

ROBOT = "robot"
"""All about a robot: a ``Robot`` of the interface, then its ``Stream``s."""
STREAMS = "streams"
"""The ``Stream``s of a robot, or of all; none if there is no such robot."""
DISCONNECT = "disconnect"
"""End a robot's session and streams; ``ended`` says how many that were."""
CUT = "cut"
"""End one stream; the same."""
DRAIN, UNDRAIN = "drain", "undrain"
"""Have the robots go to other servers, or take robots again; ``robots`` says how many are there."""

NEWEST_LIST = "newest-list"
"""Which list of revoked certificates is the newest here: ``number`` and ``since``. The name is a CA's id, and
then number and date of the list that the server has that asks; see ``fleet.exchange``."""
LIST = "list"
"""That list, in pieces; the name is the CA's id."""

LISTS = (NEWEST_LIST, LIST)
"""What servers ask each other of their own accord."""

ORDERS = (DISCONNECT, CUT, DRAIN, UNDRAIN)
"""What changes something."""

PERHAPS_DONE = "; it may have carried out the order, or may still do so"
"""What is to be said of an order without an answer."""

NO_SUCH_ROBOT, NO_SUCH_STREAM, FAILED, UNKNOWN = "no-such-robot", "no-such-stream", "failed", "unknown"
"""Codes of ``Refused``: there is none here; it could not be done; the server does not know what is meant."""

SECONDS_MAX = INTEGER_MAX
"""The longest time that may go with one: servers ask each other."""

Take = Callable[[Sequence[Mapping[str, Any]]], Awaitable[None]]
"""Takes a part of an answer: facts, fit for JSON."""


class Question(NamedTuple):
    """A question or an order.

    Attributes:
        what: one of the words above.
        name: of the robot, or the number of the stream; empty where none is meant.
        seconds: (DRAIN) after which streams that are left are ended; 0: they end by themselves.
    """

    what: str
    name: str = ""
    seconds: float = 0.0


class By(NamedTuple):
    """Who asks or gives an order.

    Attributes:
        uid: the user.
        user: the name for that, where it is known.
        server: the server where that is so; empty: here.
    """

    uid: int
    user: str = ""
    server: str = ""

    def __str__(self) -> str:
        at = f"at server {self.server}" if self.server else ""
        who = printable(" ".join(filter(None, (self.user, at))))
        return f"uid {self.uid}" + (f" ({who})" if who else "")


class Others:
    """The other servers of the fleet, as one asks them; here: there are none."""

    @property
    def names(self) -> list[str]:
        """Those that can be asked, sorted."""
        return []

    async def ask(self, server: str, question: Question, uid: int, take: Take) -> None:
        """Ask one of them.

        Args:
            server: which.
            question: what.
            uid: the user who wants it.
            take: is given the answer, part by part; while it waits, the other server waits with the next.

        Raises:
            Refused: it says that it cannot, with one of the codes above.
            PeerError: it is not there, or too old to be asked, or its answer makes no sense.
        """
        del question, uid, take
        raise Unreachable(f"server {server} is not one of the fleet")
