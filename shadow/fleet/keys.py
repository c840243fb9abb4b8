"""The directory's keys and values: what each server says about itself, and which robot is where.

Under ``/shadow/FLEET/``::

    live/SERVER         a server that is alive: the key hangs on its lease
    r/ROBOT             where a robot is; no lease: it counts while its server's live key does
    crl/CA              which list of revoked certificates is a CA's newest; CA: see ``lists.id_of``
    crl/CA/…            such lists, in pieces: no JSON, but signed by the CA
    op/…                orders

A value is a JSON object with ``"v": 1``; unknown fields are ignored. Other programs may write here, too, and
other versions: what is not of this form is no entry, and why is a ``Stranger``.
"""

import enum
import json
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeGuard

from ..errors import ConfigError
from ..names import check_robot_name, check_server_name, check_service_name, clean_software, is_id
from ..net.address import Endpoint, parse_endpoint
from ..wire.frames import INTEGER_MAX, SERVICES_MAX

VERSION = 1
VALUE_MAX = 4096  # bytes of an entry
_ADDRESS_MAX = 64
_SERIAL = re.compile(r"[0-9a-f]{1,40}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LIST = re.compile(rb"([0-9a-f]{64})(?:/([0-9]{1,49})/([0-9a-f]{64})/[0-9]{1,3})?")
_NUMBER_END = 2**160  # CRL numbers have 20 octets at most (RFC 5280, section 5.2.3)

_ENCODER = json.JSONEncoder(separators=(",", ":"))
_DECODER = json.JSONDecoder()
_WHITE = " \t\n\r"  # white space of JSON: RFC 8259, section 2
_WRONG = (KeyError, TypeError, ValueError, AttributeError, ConfigError)


class Family(enum.Enum):
    """What a key is about."""

    ROBOT = enum.auto()
    SERVER = enum.auto()
    LIST = enum.auto()
    OTHER = enum.auto()


class Strange(enum.StrEnum):
    """Why something is none of our entries."""

    KEY = "a key that is none of ours"
    SIZE = "a value that is too large"
    JSON = "a value that is no JSON object"
    VERSION = "a value of another version of Shadow"
    FIELD = "a value with a field that is missing or wrong"


class Stranger(Exception):
    """A key or a value that is no entry of ours; ``why`` not."""

    def __init__(self, why: Strange) -> None:
        super().__init__(str(why))
        self.why = why


class Progress(NamedTuple):
    """How far a server is that sends robots away. It is for people.

    Attributes:
        visited: robots with streams that are left there while it is drained; None: it does not say.
        ends: seconds until these are ended; None: they end by themselves.
        surplus: how many robots are too many, and go to other servers; None: none goes.
    """

    visited: int | None = None
    ends: int | None = None
    surplus: int | None = None


@dataclass(frozen=True, slots=True)
class Live:
    """A server that is alive.

    Attributes:
        inc: which life of its: other than before after a crash, the same after a planned restart.
        peer: where other servers reach it; None: nowhere.
        dial: where robots dial their data channels; None: the address that they used for the control channel.
        draining: it wants to be rid of its robots.
        software: its program and version.
        progress: how far it is with that; it makes no difference to other servers.
    """

    inc: str
    peer: Endpoint | None = None
    dial: Endpoint | None = None
    draining: bool = False
    software: str = ""
    progress: Progress = field(default=Progress(), compare=False)

    def encode(self) -> bytes:
        """As a value."""
        peer, dial = (None if one is None else str(one) for one in (self.peer, self.dial))
        progress = {name: value for name, value in self.progress._asdict().items() if value is not None}
        return _encode(
            inc=self.inc, peer=peer, dial=dial, draining=self.draining, software=self.software, **progress
        )


class Entry(NamedTuple):
    """Where a robot is.

    Attributes:
        server: at which server.
        inc: in which life of that server.
        sid: id of its session.
        boot: which life of the robot's client.
        attempt: how many sessions that has tried to open, this one included.
        services: the names of what it offers.
        address: where it comes from, for people.
        since: when the session began, in seconds since 1970 by that server's clock; for people.
        serial: serial number of its certificate, in hexadecimal.
        revision: of the key's last change; 0: not written yet. It is not in the value.
    """

    server: str
    inc: str
    sid: str
    boot: str
    attempt: int
    services: tuple[str, ...] = ()
    address: str = ""
    since: float = 0.0
    serial: str = ""
    revision: int = 0

    def encode(self) -> bytes:
        """As a value."""
        return _encode(
            s=self.server, i=self.inc, sid=self.sid, b=self.boot, n=self.attempt,
            o=self.services, p=self.address, t=self.since, c=self.serial,
        )  # fmt: skip


class Pointer(NamedTuple):
    """Which list of revoked certificates is a CA's newest, as far as the engine knows.

    Attributes:
        number: its CRL number.
        since: when the CA made it, in whole seconds since 1970: some CAs do not number their lists.
        sha256: of the list in DER, in hexadecimal.
        chunks: in how many pieces the engine has it.
        server: which server has written that; for people.
    """

    number: int
    since: int
    sha256: str
    chunks: int
    server: str

    @property
    def place(self) -> tuple[int, int]:
        """Its place among the lists of its CA, as ``RevocationList.place``."""
        return self.number, self.since

    def encode(self) -> bytes:
        """As a value."""
        return _encode(
            number=self.number, since=self.since, sha256=self.sha256, chunks=self.chunks, server=self.server
        )


class Keys:
    """The keys of one fleet.

    Attributes:
        prefix: what all of them begin with.
        robots: what those of robots begin with.
        servers: what those of servers begin with.
        lists: what those of lists of revoked certificates begin with.
    """

    def __init__(self, fleet: str) -> None:
        self.prefix = f"/shadow/{fleet}/".encode()
        self.robots = self.prefix + b"r/"
        self.servers = self.prefix + b"live/"
        self.lists = self.prefix + b"crl/"
        self._orders = self.prefix + b"op/"

    def robot(self, name: str) -> bytes:
        """The key of a robot."""
        return self.robots + name.encode()

    def server(self, name: str) -> bytes:
        """The key of a server."""
        return self.servers + name.encode()

    def pointer(self, ca: str) -> bytes:
        """The key that says which list of a CA is the newest."""
        return self.lists + ca.encode()

    def pieces(self, ca: str) -> bytes:
        """What the keys of the pieces of a CA's lists begin with."""
        return self.pointer(ca) + b"/"

    def piece(self, ca: str, pointer: Pointer, place: int) -> bytes:
        """The key of a piece of a list."""
        return self.pieces(ca) + f"{pointer.number}/{pointer.sha256}/{place}".encode()

    def list_of(self, key: bytes) -> tuple[int, str] | None:
        """Number and SHA-256 of the list that a piece belongs to, by its key; None: it is no piece's."""
        found = _LIST.fullmatch(key[len(self.lists) :])
        return (int(found[2]), found[3].decode()) if found is not None and found[2] else None

    def parse(self, key: bytes) -> tuple[Family, str]:
        """What a key is about, and the name of the robot, server or CA.

        Raises:
            Stranger: it is none of ours.
        """
        try:
            if key.startswith(self.robots):
                return Family.ROBOT, check_robot_name(key[len(self.robots) :].decode())
            if key.startswith(self.servers):
                return Family.SERVER, check_server_name(key[len(self.servers) :].decode())
        except (ConfigError, UnicodeDecodeError) as error:
            raise Stranger(Strange.KEY) from error
        if key.startswith(self.lists) and (found := _LIST.fullmatch(key[len(self.lists) :])):
            return (Family.OTHER, "") if found[2] else (Family.LIST, found[1].decode())
        if key.startswith(self._orders):
            return Family.OTHER, ""
        raise Stranger(Strange.KEY)


def parse_entry(value: bytes, revision: int) -> Entry:
    """A robot's entry from its key's value, last changed at ``revision``.

    Raises:
        Stranger: it is none.
    """
    said = _decode(value)
    try:
        return Entry(
            check_server_name(said["s"]), _id(said["i"]), _id(said["sid"]), _id(said["b"]),
            _number(said["n"]), _services(said.get("o", [])), _address(said.get("p", "")),
            _since(said.get("t", 0)), _serial(said.get("c", "")), revision,
        )  # fmt: skip
    except _WRONG as error:
        raise Stranger(Strange.FIELD) from error


def reread_entry(value: bytes, revision: int) -> Entry:
    """The same, of a value that has been parsed before: nothing is wrong with it, and it takes less time."""
    # Not json.loads(), which first finds out how the bytes are encoded: of 300,000 that takes half a second.
    said, _end = _DECODER.raw_decode(value.decode().lstrip(_WHITE))
    return Entry(
        said["s"], said["i"], said["sid"], said["b"], said["n"], tuple(said.get("o", ())), said.get("p", ""),
        float(said.get("t", 0)), said.get("c", ""), revision,
    )  # fmt: skip


def parse_live(value: bytes) -> Live:
    """What a server says about itself, from its key's value.

    Raises:
        Stranger: it is nothing of that kind.
    """
    said = _decode(value)
    try:
        software = said.get("software", "")
        return Live(
            _id(said["inc"]), _endpoint(said.get("peer")), _endpoint(said.get("dial")),
            said.get("draining") is True, clean_software(software) if isinstance(software, str) else "",
            _progress(said),
        )  # fmt: skip
    except _WRONG as error:
        raise Stranger(Strange.FIELD) from error


def _progress(said: dict[str, Any]) -> Progress:
    """It is for people: nonsense is none, rather than that the server is."""
    found = {name: said.get(name) for name in Progress._fields}
    return Progress(**{name: value for name, value in found.items() if _is_number(value)})


def parse_pointer(value: bytes, chunks_max: int) -> Pointer:
    """Which list is a CA's newest, from its key's value; it may have so many pieces at most.

    Raises:
        Stranger: it is nothing of that kind.
    """
    said = _decode(value)
    try:
        return Pointer(
            _number(said["number"], _NUMBER_END - 1), _number(said["since"]), _sha256(said["sha256"]),
            _number(said["chunks"], chunks_max), check_server_name(said["server"]),
        )  # fmt: skip
    except _WRONG as error:
        raise Stranger(Strange.FIELD) from error


def _encode(**fields: Any) -> bytes:
    return _ENCODER.encode({"v": VERSION, **fields}).encode()


def _decode(value: bytes) -> dict[str, Any]:
    if len(value) > VALUE_MAX:
        raise Stranger(Strange.SIZE)
    try:
        said = json.loads(value.decode())  # not the bytes themselves: they might be UTF-16
    except (ValueError, RecursionError) as error:
        raise Stranger(Strange.JSON) from error
    if not isinstance(said, dict):
        raise Stranger(Strange.JSON)
    if type(said.get("v")) is not int or said["v"] != VERSION:
        raise Stranger(Strange.VERSION)
    return said


def _id(said: str) -> str:
    if not is_id(said):
        raise ValueError(said)
    return said


def _number(said: object, most: int = INTEGER_MAX) -> int:
    if not _is_number(said, most):
        raise ValueError(said)
    return said


def _is_number(said: object, most: int = INTEGER_MAX) -> TypeGuard[int]:
    return type(said) is int and 0 <= said <= most


def _since(said: object) -> float:
    if type(said) not in {int, float} or not 0 <= said <= INTEGER_MAX:  # type: ignore[operator]
        raise ValueError(said)
    return float(said)  # type: ignore[arg-type]


def _services(said: list[str]) -> tuple[str, ...]:
    if type(said) is not list or len(said) > SERVICES_MAX:
        raise TypeError("services")
    return tuple("" if name == "" else check_service_name(name) for name in said)


def _address(said: str) -> str:
    if len(said) > _ADDRESS_MAX or not said.isprintable():
        raise ValueError("address")
    return said


def _serial(said: str) -> str:
    if said and not _SERIAL.fullmatch(said):
        raise ValueError("serial")
    return said


def _sha256(said: str) -> str:
    if not _SHA256.fullmatch(said):
        raise ValueError("sha256")
    return said


def _endpoint(said: str | None) -> Endpoint | None:
    return None if said is None else parse_endpoint(said)
