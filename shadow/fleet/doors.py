"""Where visitors come in that are at other servers of the fleet."""

from collections.abc import Callable

from ..errors import PeerError
from ..relay.ends import End
from ..server.visitor import Visitor
from ..transport.channel import Channel
from ..transport.link import Link
from ..wire.frames import TEXT_MAX, Failed, Moved, Started, Visit

WORD_MAX = 64  # characters of a user's name, of a stream's number, or of a service that is not there


class PeerDoor:
    """A channel whose VISIT waits for its answer; see ``visitor.Door``.

    When it has an answer that is not STARTED, the channel stands by again.
    """

    __slots__ = ("_answered", "_channel", "_link", "_on_leave")

    def __init__(self, channel: Channel, on_leave: Callable[[], object]) -> None:
        """Wait.

        Args:
            channel: it has said VISIT.
            on_leave: called when the channel is ours no more: it becomes a stream, or is closed.
        """
        self._channel = channel
        self._on_leave = on_leave
        self._answered = False
        self._link: Link | None = None

    @property
    def left(self) -> bool:
        """See ``Door.left``: its server hangs up, and delivers nothing before STARTED."""
        return not self._channel.live

    def enter(self) -> End:
        """See ``Door.enter``."""
        self._answered = True
        self._on_leave()
        if self.left:  # while the robot connected the service
            raise PeerError("its server hung up on it")
        self._channel.send(Started())
        self._link = self._channel.release()
        return self._link

    def refuse(self, why: str) -> None:
        """See ``Door.refuse``."""
        self._answer(Failed("visitor", why[:TEXT_MAX]))

    def move(self, moved: Moved) -> None:
        """Have it look for the robot elsewhere; ``close`` follows."""
        self._answer(moved)

    def _answer(self, frame: Failed | Moved) -> None:
        if not self._answered:
            self._answered = True
            self._channel.send(frame)

    def close(self) -> None:
        """See ``Door.close``: without an answer, its server comes again."""
        if self._link is not None:  # STARTED, and then it could not begin
            self._link.abort()
        elif not self._answered:
            self._on_leave()
            self._channel.close()


def visitor_from(server: str, visit: Visit, door: PeerDoor, number: str, now: float) -> Visitor:
    """The visitor that a server sends.

    Args:
        server: which.
        visit: what it has said.
        door: where the visitor has come in.
        number: of the stream here.
        now: by CLOCK_MONOTONIC.
    """
    visitor = Visitor(door, visit.service, number, visit.uid, visit.pid, now)
    visitor.user, visitor.there = visit.user[:WORD_MAX], visit.stream[:WORD_MAX]
    visitor.host = server
    return visitor
