"""What two ends say to each other before a channel carries a visitor's bytes: the frames, and their bounds.

``codec`` makes bytes of them; ``docs/PROTOCOL.md`` says when each is sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

PROTOCOL_VERSION = 1

FRAME_MAX = 2**14  # bytes, header included: one TLS record
TEXT_MAX = 512  # characters of any one string: enough for an error text, too little to flood a log with
SERVICES_MAX = 64  # services that one robot may offer
BLOB_MAX = 4000  # bytes of any one certificate or request: three of them, in base64, fit one frame
FACTS_MAX = 64  # facts in one frame, and things said in any one of them
INTEGER_MAX = 2**53 - 1  # what every JSON implementation represents exactly (RFC 8259, section 6)

Fact = Mapping[str, object]
"""What is said of one thing, by names: texts, numbers, flags, and lists of texts."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Base of all frames; a subclass's fields are the keys of its JSON object."""

    TYPE: ClassVar[int]


@dataclass(frozen=True, slots=True)
class Hello(Frame):
    """The first frame on every connection, from whoever has dialled: a robot, or a server of a fleet.

    Attributes:
        version: protocol version that it speaks.
        role: ``control`` or ``data``; ``peer`` from a server.
        robot: the robot's name, or the server's; must be the one in its certificate.
        services: (control) names of the services offered; the default service is the empty string.
        session: (data) the session id from the control channel's WELCOME.
        software: name and version of the program, for the log.
        boot: (control) random, the same for as long as the program runs, restarts that it survives included.
        attempt: (control) how many HELLOs it has sent on control channels since then, this one included.
        moves: (control) the robot understands MOVE.
        fleet: (peer) the fleet of which both must be servers.
    """

    TYPE: ClassVar[int] = 1
    version: int
    role: str
    robot: str
    services: tuple[str, ...] = ()
    session: str = ""
    software: str = ""
    boot: str = ""
    attempt: int = 0
    moves: bool = False
    fleet: str = ""


@dataclass(frozen=True, slots=True)
class Welcome(Frame):
    """The answer to HELLO: the connection is accepted.

    Attributes:
        version: protocol version to be spoken.
        session: id of the session; data channels name it.
        keepalive: interval between PINGs, in seconds.
        software: name and version of the server, for the log.
        renews: (control) the server has a signer for certificates: the robot may send SIGN.
        dial: (control) HOST:PORT where the session's data channels go; empty: where the control channel went.
        answers: (peer) ASK may be said.
    """

    TYPE: ClassVar[int] = 2
    version: int
    session: str = ""
    keepalive: float = 30.0
    software: str = ""
    renews: bool = False
    dial: str = ""
    answers: bool = False


@dataclass(frozen=True, slots=True)
class Refusal(Frame):
    """To whoever has dialled: the connection is refused and will be closed (REFUSED).

    Attributes:
        code: reason for machines: ``name-mismatch``, ``version``, ``limit``, ``no-session``, …
        text: reason for humans.
        retry: minimum number of seconds to stay away; 0: the robot decides.
    """

    TYPE: ClassVar[int] = 3
    code: str
    text: str = ""
    retry: float = 0.0


@dataclass(frozen=True, slots=True)
class Ping(Frame):
    """Either side on the control channel: are you there? The PONG returns ``stamp``."""

    TYPE: ClassVar[int] = 4
    stamp: float = 0.0


@dataclass(frozen=True, slots=True)
class Pong(Frame):
    """The answer to a PING, with its ``stamp``."""

    TYPE: ClassVar[int] = 5
    stamp: float = 0.0


@dataclass(frozen=True, slots=True)
class Dial(Frame):
    """Server to robot on the control channel: open ``count`` more data channels, visitors are waiting."""

    TYPE: ClassVar[int] = 6
    count: int


@dataclass(frozen=True, slots=True)
class Start(Frame):
    """Server to robot on a standby channel: connect ``service`` for stream ``stream``."""

    TYPE: ClassVar[int] = 7
    service: str
    stream: str


@dataclass(frozen=True, slots=True)
class Started(Frame):
    """The answer to START or VISIT: connected; every byte after this frame is the service's own."""

    TYPE: ClassVar[int] = 8


@dataclass(frozen=True, slots=True)
class Failed(Frame):
    """The answer to START or VISIT: it could not be connected. From a robot: the channel will be closed.

    Attributes:
        code: ``refused``, ``unreachable``, ``timeout``, ``no-such-service`` or ``limit``; from a server also
            ``visitor``.
        text: reason for humans.
    """

    TYPE: ClassVar[int] = 9
    code: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Sign(Frame):
    """Robot to server on the control channel, and server to signer: renew my certificate.

    Attributes:
        request: for the new certificate, with the new key (RFC 2986, in DER).
        certificate: the present one, the same as in the connection's handshake (in DER).
        proof: a signature of the request with the present key; see ``request.prove``.
    """

    TYPE: ClassVar[int] = 10
    request: bytes
    certificate: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class Signed(Frame):
    """The answer to SIGN: the new ``certificate`` (in DER)."""

    TYPE: ClassVar[int] = 11
    certificate: bytes


@dataclass(frozen=True, slots=True)
class Unsigned(Frame):
    """The answer to SIGN: refused.

    Attributes:
        code: reason for machines: ``revoked``, ``early``, ``limit``, …
        text: reason for humans.
    """

    TYPE: ClassVar[int] = 12
    code: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Visit(Frame):
    """Server to server, on a channel that stands by: connect a visitor of mine with a robot of yours.

    Attributes:
        robot: its name.
        service: which of its services.
        stream: the number that the stream has at the visitor's server.
        sid: names the session that the robot is taken to have there; see ``session.Session.sid``.
        revision: of the directory's entry that says so: the fencing token. 0: no entry does.
        uid: the visitor's user there; ``user``: the name for that; ``pid``: its process.
    """

    TYPE: ClassVar[int] = 13
    robot: str
    service: str
    stream: str
    sid: str
    revision: int
    uid: int
    user: str
    pid: int


@dataclass(frozen=True, slots=True)
class Moved(Frame):
    """The answer to VISIT: the robot is not here, or not any more.

    Attributes:
        server: where it is, if known; ``revision``: of the directory's entry that says so, or 0.
    """

    TYPE: ClassVar[int] = 14
    server: str = ""
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Who(Frame):
    """Server to server, on a channel that stands by, while no directory answers: do you have this robot?"""

    TYPE: ClassVar[int] = 15
    robot: str


@dataclass(frozen=True, slots=True)
class Here(Frame):
    """The answer to WHO.

    Attributes:
        sid: of the session that the robot has here; empty: it has none, and the rest means nothing.
        boot: as in its HELLO; ``attempt``: the same.
        heard: how many seconds ago we heard it last.
    """

    TYPE: ClassVar[int] = 16
    sid: str = ""
    boot: str = ""
    attempt: int = 0
    heard: float = 0.0


@dataclass(frozen=True, slots=True)
class Move(Frame):
    """Server to robot on the control channel: begin a session with another server, and end this one then."""

    TYPE: ClassVar[int] = 17


@dataclass(frozen=True, slots=True)
class Ask(Frame):
    """Server to server, on a channel that stands by: what one of my users wants to know of you, or have done.

    Attributes:
        what: a word for it; see ``server.desk``.
        name: of which robot, or the number of which stream; may be empty.
        uid: the user there; ``user``: the name for that.
        seconds: how long something may take; 0: for ever, or it does not matter.
    """

    TYPE: ClassVar[int] = 18
    what: str
    name: str
    uid: int
    user: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer(Frame):
    """The answer to ASK, or a part of it.

    Attributes:
        code: why there is none, for machines; empty: there is one. ``text``: the same for humans.
        facts: what was asked for.
        more: there are more facts than these; MORE asks for them.
    """

    TYPE: ClassVar[int] = 19
    code: str = ""
    text: str = ""
    facts: tuple[Fact, ...] = ()
    more: bool = False


@dataclass(frozen=True, slots=True)
class More(Frame):
    """Server to server, after a part of an answer: say the next one."""

    TYPE: ClassVar[int] = 20


KINDS: tuple[type[Frame], ...] = (
    *(Hello, Welcome, Refusal, Ping, Pong, Dial, Start, Started, Failed),
    *(Sign, Signed, Unsigned),
    *(Visit, Moved, Who, Here, Move),
    *(Ask, Answer, More),
)
"""All there are."""
