"""Load balancers: what they have to say first, who is believed, and whose place it is."""

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from shadow import events
from shadow.net.networks import parse_networks
from shadow.server.introduction import Introductions
from shadow.server.newcomer import Newcomer
from tests.support import DEADLINE, Daemon, Tunnel
from tests.support.log import Said
from tests.support.peer import WELCOME, Peer, client_context, still_works

BALANCER = "127.0.0.2"
LINE = b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 2222\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
BINARY = SIGNATURE + struct.pack(">BBH4s4sHH", 0x21, 0x11, 12, b"\xcb\0\x71\x08", bytes(4), 4712, 2222)
ADDRESS = b"\x20\1\x0d\xb8" + b"\1" * 12
SIX = SIGNATURE + struct.pack(">BBH16s16sHH", 0x21, 0x21, 36, ADDRESS, bytes(16), 4713, 2222)
HEADERS = [
    pytest.param(LINE, "203.0.113.7:4711", id="1"),
    pytest.param(BINARY, "203.0.113.8:4712", id="2"),
    pytest.param(SIX, "[2001:db8:101:101:101:101:101:101]:4713", id="2 with IPv6"),
]
PROBES = (b"PROXY UNKNOWN\r\n", SIGNATURE + b"\x20\0\0\0", SIGNATURE + b"\x21\0\0\0")
HELLO_OF_TLS = b"\x16\x03\x01\x02\0"


def claim(host: str, port: int = 1) -> bytes:
    return f"PROXY TCP4 {host} 192.0.2.1 {port} 2222\r\n".encode()


class Stage:
    """Introductions for balancers in 10.0.0.0/8; the sockets are unix sockets, which is nobody's business."""

    def __init__(self, places: int = 9, deadline: float = DEADLINE) -> None:
        self.introduced: list[Newcomer] = []
        self.dropped: list[Newcomer] = []
        self.theirs: list[socket.socket] = []
        networks = parse_networks("10.0.0.0/8")
        self.introductions = Introductions(networks, deadline, places, self.introduced.append)

    def connect(self, host: str = "10.0.0.1") -> socket.socket:
        """The balancer's end of a new connection."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(DEADLINE)
        self.theirs.append(theirs)
        newcomer = Newcomer(ours, host, len(self.theirs))
        assert self.introductions.needs(newcomer)
        if loser := self.introductions.came(newcomer):
            self.dropped.append(loser)
        return theirs

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                await asyncio.sleep(0.001)


def on_stage(body: Callable[[Stage], Awaitable[None]], places: int = 9, deadline: float = DEADLINE) -> None:
    async def run() -> None:
        stage = Stage(places, deadline)
        try:
            await body(stage)
        finally:
            await stage.introductions.close()
            assert len(stage.introductions) == 0
            for newcomer in stage.introduced:
                newcomer.sock.close()
            for sock in stage.theirs:
                with sock, contextlib.suppress(ConnectionResetError):  # nothing of ours is left open
                    assert sock.recv(1) == b""

    asyncio.run(run())


@pytest.mark.parametrize(("header", "peer"), HEADERS)
@pytest.mark.parametrize("whole", [True, False])
def test_exactly_the_header_is_read(header: bytes, peer: str, whole: bool) -> None:  # noqa: FBT001
    """And none of TLS, whether all comes at once or each byte alone."""

    async def body(stage: Stage) -> None:
        theirs = stage.connect()
        stream = header + HELLO_OF_TLS
        for part in [stream] if whole else [stream[at : at + 1] for at in range(len(stream))]:
            theirs.sendall(part)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await stage.until(lambda: stage.introduced)
        (newcomer,) = stage.introduced
        assert newcomer.sock.recv(999) == HELLO_OF_TLS
        assert (newcomer.peer, newcomer.proxy) == (peer, "10.0.0.1:1")
        assert 0 < newcomer.spent < DEADLINE

    on_stage(body)


@pytest.mark.parametrize(
    ("what", "kind", "complaint"),
    [
        (
            HELLO_OF_TLS,
            "proxy",
            "no PROXY header; it began with .* in 10.0.0.0/8, from where --proxy",
        ),
        (b"PROXY nonsense\r\n", "proxy", "bad PROXY header: b'PROXY nonsense"),
        (BINARY[:-1], "proxy", "it hung up within its PROXY header"),
        (b"", "silent", "it has left without a word"),
        *((probe, "silent", "a load balancer only looked whether we are here") for probe in PROBES),
    ],
)
def test_what_is_no_introduction(
    what: bytes, kind: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[events.HandshakeFailed, str]] = []
    monkeypatch.setattr(events, "log", lambda event, _level, text: said.append((event, text)))

    async def body(stage: Stage) -> None:
        theirs = stage.connect()
        theirs.sendall(what)
        theirs.shutdown(socket.SHUT_WR)
        await stage.until(lambda: said)
        assert stage.introduced == []

    on_stage(body)
    ((event, text),) = said
    assert (event.peer, event.cause) == ("10.0.0.1:1", kind)
    assert re.search(complaint, text)


def test_a_header_that_does_not_come(said: Said) -> None:
    """However busy its sender is: the time counts from the beginning."""

    async def body(stage: Stage) -> None:
        theirs = stage.connect()
        for byte in b"PROXY UNKNOWN" + b" " * 90:
            with contextlib.suppress(OSError):
                theirs.send(bytes([byte]))
            await asyncio.sleep(0.01)
        await stage.until(lambda: said)
        assert stage.introduced == []

    on_stage(body, deadline=0.1)
    assert "no PROXY header within 0.1 s (its address is in 10.0.0.0/8" in said[0][1]


def test_who_says_nothing_keeps_nobody_out() -> None:
    async def body(stage: Stage) -> None:
        silent = [stage.connect() for _ in range(5)]
        for number in range(5):
            stage.connect("10.0.0.2" if number % 2 else "10.0.0.1").sendall(claim("203.0.113.7", number))
            await stage.until(lambda: len(stage.introduced) > number)  # noqa: B023 - it is awaited here
        assert [newcomer.port for newcomer in stage.introduced] == list(range(5))
        # The oldest gave way, and only as many as had to.
        assert [newcomer.port for newcomer in stage.dropped] == [1, 2, 3]
        assert [sock.recv(1) for sock in silent[:3]] == [b""] * 3
        for sock in silent[3:]:
            sock.sendall(LINE)
        await stage.until(lambda: len(stage.introduced) == 7)

    on_stage(body, places=3)


# A real server.


@pytest.fixture
def server(tunnel: Tunnel) -> Daemon:
    return tunnel.start_server(f"--proxy-protocol={BALANCER}/32,10.0.0.0/8", "--log-level=debug")


def through_balancer(tunnel: Tunnel, header: bytes, robot: str = "011") -> Peer:
    context = client_context(tunnel.authority, tunnel.authority.robot(robot))
    return Peer(tunnel.port, context, source=BALANCER, header=header)


def say(tunnel: Tunnel, what: bytes, source: str = BALANCER) -> None:
    """Connect, say it, and wait to be sent away."""
    where = ("127.0.0.1", tunnel.port)
    with socket.create_connection(where, DEADLINE, (source, 0)) as sock:
        sock.sendall(what)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""


@pytest.mark.parametrize(("header", "peer"), HEADERS)
def test_a_robot_behind_a_balancer(tunnel: Tunnel, server: Daemon, header: bytes, peer: str) -> None:
    with through_balancer(tunnel, header) as robot:
        assert robot.hello()[0] == WELCOME
        server.wait_for_log(re.escape(f"robot 011 connected from {peer} ("))
    assert BALANCER not in re.sub("Link.*", "", server.log)
    still_works(tunnel)  # who comes directly


def test_who_must_say_it_and_who_must_not(tunnel: Tunnel, server: Daemon) -> None:
    say(tunnel, HELLO_OF_TLS)
    server.wait_for_log(rf"WARNING: no handshake with {BALANCER}:\d+: no PROXY header; it began with b'.x16")
    for number, header in enumerate((LINE, BINARY, SIX), 1):
        say(tunnel, header, "127.0.0.1")
        server.wait_for_log(
            r"WARNING: no handshake with 127.0.0.1:\d+: it sent a PROXY header, and --proxy-protocol does "
            "not name its address; add 127.0.0.1 if it is a load balancer of yours",
            number,
        )
    say(tunnel, LINE + BINARY)
    server.wait_for_log(
        rf"WARNING: no handshake with 203.0.113.7:4711: {BALANCER}:\d+ sent a PROXY header in front"
    )
    assert "203.0.113.8" not in server.log
    still_works(tunnel)


def test_without_the_setting_nobody_is_believed(tunnel: Tunnel) -> None:
    server = tunnel.start_server()
    say(tunnel, LINE)
    server.wait_for_log(
        rf"no handshake with {BALANCER}:\d+: it sent a PROXY header, .*; add {BALANCER} if it is"
    )


def test_probes_of_balancers_are_not_worth_a_line(tunnel: Tunnel, server: Daemon) -> None:
    for probe in (*PROBES, b""):
        where = ("127.0.0.1", tunnel.port)
        with socket.create_connection(where, DEADLINE, (BALANCER, 0)) as sock:
            sock.sendall(probe)
            if not probe:  # some are rude about it
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for probe in PROBES:
        say(tunnel, probe)
    server.wait_for_log("DEBUG: no handshake with .*: a load balancer only looked", 2 * len(PROBES))
    assert "WARNING: no handshake" not in server.log


def test_who_stalls_behind_a_balancer_holds_his_own_share(tunnel: Tunnel) -> None:
    """The same as in test_handshakes, by the address in the header."""
    server = tunnel.start_server(
        f"--proxy-protocol={BALANCER}", "--handshake-timeout=60", "--max-handshakes=8"
    )
    with contextlib.ExitStack() as stack:
        for number in range(40):
            sock = socket.create_connection(("127.0.0.1", tunnel.port), DEADLINE, (BALANCER, 0))
            stack.enter_context(sock).sendall(claim("203.0.113.7", number))
        with through_balancer(tunnel, claim("203.0.113.9")) as peer:
            assert peer.hello()[0] == WELCOME
        still_works(tunnel)
        assert "no HELLO" not in server.log


def test_the_header_and_the_handshake_have_one_deadline(tunnel: Tunnel) -> None:
    server = tunnel.start_server(f"--proxy-protocol={BALANCER}", "--handshake-timeout=0.5")
    say(tunnel, LINE)
    server.wait_for_log("no handshake with 203.0.113.7:4711: no HELLO within 0.5 s")
    say(tunnel, LINE[:-1])
    server.wait_for_log(rf"no handshake with {BALANCER}:\d+: no PROXY header within 0.5 s .its address is in")
