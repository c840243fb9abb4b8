"""What happens: each kind of event has a message id, and its facts travel as journal fields.

So ``journalctl ROBOT=011`` and ``journalctl -x`` work.
"""

from .eventlog import LOGGER, STEPS, Event, event_of, fields_of, log, priority_of
from .fleetevents import (
    AnnouncedAgain,
    DrainBegun,
    Drained,
    DrainOver,
    EngineFound,
    EngineLost,
    EntriesCleared,
    KeyIgnored,
    ListLearnt,
    ListNotKept,
    ListPassedOn,
    ListRefused,
    PeerFound,
    PeerLost,
    RebalanceBegun,
    RebalanceOver,
    ViewDoubted,
    WritesRefused,
)

# Passed on: who logs an event needs them.
__all__ = [
    "LOGGER",
    "STEPS",
    "AnnouncedAgain",
    "DrainBegun",
    "DrainOver",
    "Drained",
    "EngineFound",
    "EngineLost",
    "EntriesCleared",
    "Event",
    "KeyIgnored",
    "ListLearnt",
    "ListNotKept",
    "ListPassedOn",
    "ListRefused",
    "PeerFound",
    "PeerLost",
    "RebalanceBegun",
    "RebalanceOver",
    "ViewDoubted",
    "WritesRefused",
    "event_of",
    "fields_of",
    "log",
    "priority_of",
]


class ServerReady(Event, message_id="ff9c565bbf384981aa67044c3dd1b2fc"):
    """The server accepts robots."""


class ClientReady(Event, message_id="508e7f5f0f8a42c285c9c664850aa528"):
    """The client has checked its configuration and begins to dial."""

    robot: str


class Stopping(Event, message_id="6d97d48be35d484e8254ffa283c2d48e"):
    """The daemon was asked to stop."""

    robot: str | None = None
    robots: int | None = None


class Reloaded(Event, message_id="dc63db709d8d408f9899351c0e5016ee"):
    """Certificates and CA were read again."""


class ReloadFailed(Event, message_id="561c137747004cfd8774541433c7163e"):
    """A reload found a broken file; the old ones stay in use."""


class KtlsUnavailable(Event, message_id="851a7b7932114f0ab2467738f8e86470"):
    """The kernel has no TLS; streams are encrypted in the daemon."""

    robot: str | None = None


class RobotConnected(Event, message_id="9b548fc309e84c8da3e286db5005a984"):
    """A robot's session began."""

    robot: str
    peer: str
    session: str
    suite: str
    software: str


class RobotDisconnected(Event, message_id="79184d6587f04e88b7cc05bba0d6d138"):
    """A robot's session ended."""

    robot: str
    peer: str
    session: str
    cause: str
    duration: float


class RobotTakenOver(Event, message_id="1757ac04ae47464f976a33f9250e259d"):
    """A robot's new session replaced one that was still connected."""

    robot: str
    peer: str


class Revoked(Event, message_id="bcdc3e46a63941a3bf18933cc32adc2d"):
    """A reload disconnected robots whose certificates are revoked."""


class ListTooOld(Event, message_id="346fb9bdb8124a7da006e22764de6682"):
    """A reload found a list of revoked certificates that is older than the one in use."""


class Expires(Event, message_id="92089ff28c3e410194fcdb7dec41342b"):
    """Something that the daemon uses expires soon, or has expired."""

    expires: str
    days: int


class RobotExpired(Event, message_id="699fe6d0dbd44554a9468d3065456d1d"):
    """The certificate of a robot that is connected has expired."""

    robot: str
    expires: str


class CertificateIssued(Event, message_id="4d9ff408207e48c9b43ccde14aae1149"):
    """The CA's signer has renewed a robot's certificate."""

    robot: str
    serial: str
    expires: str


class Renewed(Event, message_id="52eac60c71344c2eba0e8c1006b6d3fc"):
    """A robot has a new certificate."""

    robot: str
    serial: str
    expires: str


class RenewalFailed(Event, message_id="0ba2830eb1174d8ba75e8e4d37dd8672"):
    """A robot's certificate could not be renewed; the robot will try again."""

    code: str
    robot: str | None = None


class RobotRefused(Event, message_id="0345d37e47a44e9fbd72571cca5d0f4e"):
    """A robot with a good certificate was refused."""

    robot: str
    peer: str
    code: str


class PeerRefused(Event, message_id="4ac370946bbc48279899dbfe351b9679"):
    """Another server wanted to ask this one about its robots, and may not."""

    server: str
    peer: str
    code: str


class HandshakeFailed(Event, message_id="db5955ad3ec64c2c9b53739867ec7f72"):
    """Somebody connected, and the TLS handshake failed."""

    peer: str
    cause: str


class Crowded(Event, message_id="63b627524b7d4772b32dec04fa6aafb1"):
    """The server dropped connections because too many were still in their handshake."""

    peer: str
    dropped: int


class SocketFailed(Event, message_id="426f44b57fd7473d8173fb55b0e4a5e3"):
    """A robot's unix socket could not be made."""

    robot: str


class SocketRestored(Event, message_id="116904b665a147e8b611dbd9f4734b59"):
    """A robot's unix socket had vanished and was made again."""

    robot: str


class StreamStarted(Event, message_id="808e53f6632f4ea1aef5ee2b854639a9"):
    """A visitor reached a service."""

    robot: str
    service: str
    stream: str
    ktls: str
    standby: str | None = None
    wait: float | None = None
    visitor_uid: int | None = None
    visitor_pid: int | None = None
    visitor_user: str | None = None
    visitor_host: str | None = None
    visitor_stream: str | None = None
    server: str | None = None


class StreamEnded(Event, message_id="2643c48ee01e4c65b1ae73a1b8a7e384"):
    """A stream ended normally."""

    robot: str
    service: str
    stream: str
    duration: float
    bytes_to_robot: int
    bytes_from_robot: int
    visitor_uid: int | None = None
    visitor_pid: int | None = None
    visitor_user: str | None = None
    visitor_host: str | None = None
    visitor_stream: str | None = None


class StreamAborted(Event, message_id="bf5b09a5aa864c3c922b4f8d9c62287c"):
    """A stream was cut off by one of its ends."""

    robot: str
    service: str
    stream: str
    duration: float
    bytes_to_robot: int
    bytes_from_robot: int
    visitor_uid: int | None = None
    visitor_pid: int | None = None
    visitor_user: str | None = None
    visitor_host: str | None = None
    visitor_stream: str | None = None


class StreamsResumed(Event, message_id="02d50218d0a848469cc2be26bdd4aec6"):
    """Streams of the previous daemon continue in this one."""

    streams: int


class StreamGivenUp(Event, message_id="518d021be1a549ea84fab3d33b23c4a6"):
    """A stream of the previous daemon cannot continue."""


class SessionsResumed(Event, message_id="197337d598734dcebf04dc4e1abd8211"):
    """Robots that were connected to the previous daemon remain connected to this one."""

    robot: str | None = None
    robots: int | None = None


class SessionGivenUp(Event, message_id="22d623d5a813434ea46913242a0ec312"):
    """Something that belonged to a robot's session cannot continue in the next daemon."""

    robot: str | None = None


class StoreFull(Event, message_id="e7c3407764f04dbfb5d7becda6f7fc14"):
    """The service manager keeps no more streams for us."""


class VisitorFailed(Event, message_id="622b825f2940457589df9c73926ea027"):
    """A visitor could not be served."""

    robot: str
    service: str
    stream: str
    visitor_uid: int
    visitor_pid: int
    visitor_user: str | None = None
    visitor_host: str | None = None
    visitor_stream: str | None = None


class GateFailed(Event, message_id="9444d95ce779671b17674f9909bd1215"):
    """Somebody at the gate has not said which robot to visit."""

    visitor_uid: int
    visitor_pid: int


class ServiceFailed(Event, message_id="d2b23739173b4988b0a05f53701b2754"):
    """The robot could not connect to a local service."""

    robot: str
    service: str
    stream: str
    visitor_uid: int | None = None
    visitor_pid: int | None = None
    visitor_user: str | None = None
    visitor_host: str | None = None
    visitor_stream: str | None = None


class SessionStarted(Event, message_id="dd21377bb30148c392ca82a24243d065"):
    """The client is connected to its server."""

    robot: str
    peer: str
    session: str
    suite: str


class SessionLost(Event, message_id="3e983511c6bc4dbd81ad265493b43f1f"):
    """The client lost its server, or did not reach it, and will try again."""

    robot: str


class MoveFailed(Event, message_id="4690c9ccfb3349cd9c13a9d5ae9b6615"):
    """The server asked the robot to go to another one, and none takes it."""

    robot: str


class AddressFailed(Event, message_id="60bbbb14084c461198cf0ee79805788b"):
    """The client did not reach its server at one of several addresses, or where it advertises one."""

    robot: str
    peer: str


class ApiUnavailable(Event, message_id="1ed797ae4aad4028bd941d0b5d312acc"):
    """There is a socket for the API, but the library to answer with is missing."""


class MetricsUnavailable(Event, message_id="26b139dd28294a23a37467d7982592d9"):
    """There is a socket for metrics, but the library to answer with is missing."""


class CallersCrowded(Event, message_id="4b3e6c799049486ea1fcc6aa14101968"):
    """More callers or scrapers connected than we serve at once; some were dropped."""


class AcceptPaused(Event, message_id="a63116895daa4282829e2ffac5828775"):
    """No descriptors or memory left; accepting pauses."""


class AcceptResumed(Event, message_id="b686d87184d642d2a6bb201cbfafb194"):
    """Descriptors are available again; accepting resumes."""


class LogLost(Event, message_id="0916627610da4d099f6ac2044de3d0f4"):
    """Nobody read the log for a while, and some lines were lost."""


class ClockWrong(Event, message_id="afa7830ff7af4e0ca910bd862c21275d"):
    """A certificate is not valid yet; most likely this machine's clock is wrong."""

    robot: str


class UnknownSetting(Event, message_id="c572d9555f5d48f286cbdf4688673f8d"):
    """A variable looks like a setting of ours but is none."""


class SettingsChanged(Event, message_id="cb7e024b44f540c8a8010589a2bd87bb"):
    """A reload found changed settings that only take effect after a restart."""


class Described(Event, message_id="264e283f980d4ca7bcb5db78a52ac1d8"):
    """Part of the page about everything the daemon does, which SIGUSR1 asks for."""


class Failed(Event, message_id="15fa5bc3e54b49128c7fbb93d468f959"):
    """The daemon cannot continue."""
