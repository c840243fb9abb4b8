"""The protocol as state machines: which frame is allowed when. No I/O, no clock.

Both ends of a connection run the same machine, because what one sends the other receives. A connection
begins in OPENING, and its HELLO makes it one of three kinds. A robot dials its server with two of them, a
control channel and data channels::

    control:  OPENING ─HELLO→ GREETED ─WELCOME→ OPEN ─PING, PONG, DIAL, SIGN, SIGNED, UNSIGNED, MOVE→ OPEN
    data:     OPENING ─HELLO→ GREETED ─WELCOME→ STANDBY ─START→ STARTING ─STARTED→ RAW
                                                                         └─FAILED→ CLOSED

A server dials another server of its fleet, on another port::

    peer:     OPENING ─HELLO→ GREETED ─WELCOME→ STANDBY ─VISIT→ VISITING ─STARTED→ RAW
                                                 ↑    │         └─FAILED, MOVED→ STANDBY
                                                 │    ├─WHO→ ASKED ─HERE─────┐
                                                 │    └─ASK→ INQUIRED ─ANSWER┤
                                                 └──────────────────────────┘

An ANSWER may be a part of one (INQUIRED ─ANSWER→ TOLD), and MORE asks for the next (TOLD ─MORE→ INQUIRED).
REFUSED closes a connection from every state before RAW in which nobody waits for an answer. In RAW the
connection carries a visitor's bytes and no frames. The transitions are the table below. Anything that is not
in it is the sender's error: a ``FrameError`` if the peer sent it, a ``LocalProtocolError`` if we did.
"""

import enum

from ..errors import FrameError, LocalProtocolError
from .frames import (
    FRAME_MAX,
    PROTOCOL_VERSION,
    Answer,
    Ask,
    Dial,
    Failed,
    Frame,
    Hello,
    Here,
    More,
    Move,
    Moved,
    Ping,
    Pong,
    Refusal,
    Sign,
    Signed,
    Start,
    Started,
    Unsigned,
    Visit,
    Welcome,
    Who,
)

_READ_MIN = 256  # bytes


class Party(enum.StrEnum):
    """The ends of a connection: a robot and its server, or two servers of a fleet."""

    ROBOT = "robot"
    SERVER = "server"
    ASKING = "asking server"
    ANSWERING = "answering server"


class State(enum.StrEnum):
    """The state of a connection; see the diagram at the top of the module."""

    OPENING = "opening"
    GREETED = "greeted"
    OPEN = "open"
    STANDBY = "standby"
    STARTING = "starting"
    VISITING = "visiting"
    ASKED = "asked"
    INQUIRED = "inquired"
    TOLD = "told a part"
    RAW = "raw"
    CLOSED = "closed"


CONTROL, DATA, PEER = "control", "data", "peer"

_WELCOMED = {CONTROL: State.OPEN, DATA: State.STANDBY, PEER: State.STANDBY}
_ROLES = {Party.ROBOT: {CONTROL, DATA}, Party.ASKING: {PEER}}  # of who dials
_OTHER = {
    Party.ROBOT: Party.SERVER,
    Party.SERVER: Party.ROBOT,
    Party.ASKING: Party.ANSWERING,
    Party.ANSWERING: Party.ASKING,
}

# (state, speaker, frame) -> next state. HELLO and WELCOME depend on the role, and ANSWER on whether there is
# more; that is resolved in code.
_TRANSITIONS: dict[tuple[State, Party, type[Frame]], State] = {
    (State.OPENING, Party.ROBOT, Hello): State.GREETED,
    (State.OPENING, Party.SERVER, Refusal): State.CLOSED,
    (State.GREETED, Party.SERVER, Refusal): State.CLOSED,
    (State.OPEN, Party.ROBOT, Ping): State.OPEN,
    (State.OPEN, Party.SERVER, Ping): State.OPEN,
    (State.OPEN, Party.ROBOT, Pong): State.OPEN,
    (State.OPEN, Party.SERVER, Pong): State.OPEN,
    (State.OPEN, Party.SERVER, Dial): State.OPEN,
    (State.OPEN, Party.ROBOT, Sign): State.OPEN,
    (State.OPEN, Party.SERVER, Signed): State.OPEN,
    (State.OPEN, Party.SERVER, Unsigned): State.OPEN,
    (State.OPEN, Party.SERVER, Move): State.OPEN,
    (State.OPEN, Party.SERVER, Refusal): State.CLOSED,
    (State.STANDBY, Party.SERVER, Start): State.STARTING,
    (State.STANDBY, Party.SERVER, Refusal): State.CLOSED,
    (State.STARTING, Party.ROBOT, Started): State.RAW,
    (State.STARTING, Party.ROBOT, Failed): State.CLOSED,
    (State.OPENING, Party.ASKING, Hello): State.GREETED,
    (State.OPENING, Party.ANSWERING, Refusal): State.CLOSED,
    (State.GREETED, Party.ANSWERING, Refusal): State.CLOSED,
    (State.STANDBY, Party.ANSWERING, Refusal): State.CLOSED,
    (State.STANDBY, Party.ASKING, Visit): State.VISITING,
    (State.VISITING, Party.ANSWERING, Started): State.RAW,
    (State.VISITING, Party.ANSWERING, Failed): State.STANDBY,
    (State.VISITING, Party.ANSWERING, Moved): State.STANDBY,
    (State.STANDBY, Party.ASKING, Who): State.ASKED,
    (State.ASKED, Party.ANSWERING, Here): State.STANDBY,
    (State.STANDBY, Party.ASKING, Ask): State.INQUIRED,
    (State.INQUIRED, Party.ANSWERING, Answer): State.STANDBY,
    (State.TOLD, Party.ASKING, More): State.INQUIRED,
}


class Conversation:
    """One connection's state, seen from one of its ends.

    Attributes:
        state: the present state.
        role: ``control``, ``data`` or ``peer`` after HELLO, empty before.
        answers: WELCOME said that ASK may be said.
    """

    __slots__ = ("_us", "answers", "role", "state")

    def __init__(self, us: Party, role: str = "", state: State = State.OPENING) -> None:
        self._us = us
        self.role = role
        self.state = state
        self.answers = False

    def sent(self, frame: Frame) -> None:
        """Note that we send ``frame``.

        Raises:
            LocalProtocolError: it may not be sent now.
        """
        self._step(self._us, frame, LocalProtocolError)

    def received(self, frame: Frame) -> None:
        """Note that the peer sent ``frame``.

        Raises:
            FrameError: the peer may not send it now.
        """
        self._step(_OTHER[self._us], frame, FrameError)

    def _step(self, speaker: Party, frame: Frame, error: type[FrameError] | type[LocalProtocolError]) -> None:
        if isinstance(frame, Welcome) and self.state is State.GREETED and speaker not in _ROLES:
            self.state, self.answers = _WELCOMED[self.role], frame.answers
            return
        following = _TRANSITIONS.get((self.state, speaker, type(frame)))
        if following is None or (isinstance(frame, Ask) and not self.answers):
            raise error(f"{type(frame).__name__} from the {speaker} while {self.state}")
        if isinstance(frame, Hello):
            if frame.role not in _ROLES[speaker]:
                raise error(f"Hello with the unknown role {frame.role[:16]!r}")
            self.role = frame.role
        self.state = State.TOLD if isinstance(frame, Answer) and frame.more else following


def speaks_our_version(hello: Hello) -> bool:
    """True if whoever sent this speaks our version of the protocol."""
    return hello.version == PROTOCOL_VERSION


class Budget:
    """How much work the other end of a connection may cause before the visitor's bytes begin.

    Everything it sends costs time. It earns one second each second, and may save up a few. A robot sends one
    frame every half minute; a server asks for a channel for each visitor, and other servers about robots.
    """

    __slots__ = ("_frame", "_rate", "_spent")
    saved = 8.0  # seconds

    def __init__(self, us: Party) -> None:
        """For what is received by ``us``."""
        # Bytes a second, and seconds a frame.
        self._rate, self._frame = (2**14, 1 / 20) if us is Party.SERVER else (2**18, 1 / 2000)
        self._spent = 0.0

    def read(self, size: int, now: float) -> None:
        """``size`` bytes came at once; a few cost as much as ``_READ_MIN``, because each call has a cost.

        Raises:
            FrameError: it has sent too much.
        """
        self._spend(max(size, _READ_MIN) / self._rate, now)

    def frame(self, now: float) -> None:
        """A frame came.

        Raises:
            FrameError: it has sent too many.
        """
        self._spend(self._frame, now)

    def said(self, frame: Frame) -> None:
        """We have said something; what we have asked for costs nothing: one frame, as long as they get."""
        if isinstance(frame, Ask | More):
            self._spent -= (FRAME_MAX + _READ_MIN) / self._rate + self._frame

    def _spend(self, seconds: float, now: float) -> None:
        self._spent = max(self._spent, now) + seconds
        if self._spent > now + self.saved:
            raise FrameError("too many frames in a short time")
