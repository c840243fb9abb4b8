"""The robot's side: dialling, coming back, giving up, and what it says about servers it must not trust."""

import asyncio
import contextlib
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from shadow.client.attempts import Attempts
from shadow.client.client import Client, Dialling
from shadow.errors import PeerError, ShadowError, Unreachable
from shadow.pki.certificates import Purpose
from tests.support import (
    CHECKOUT,
    DEADLINE,
    Authority,
    Daemon,
    Service,
    Tunnel,
    echo,
    exchange,
    open_descriptors,
    random_bytes,
    serving,
    wait_for,
)
from tests.support.peer import (
    DIAL,
    PING,
    PONG,
    REFUSED,
    START,
    STARTED,
    WELCOME,
    Peer,
    client_context,
    frame,
    server_context,
)

LOCAL = ["--lhost=127.0.0.1", "--lport=9"]


def start(tunnel: Tunnel, *more: str, rhost: str = "localhost", robot: str = "011") -> Daemon:
    return tunnel.daemon(tunnel.client_arguments(*LOCAL, *more, rhost=rhost, robot=robot))


# Servers a client must not talk to.


@contextlib.contextmanager
def fake_server(
    tunnel: Tunnel, talk: Callable[[ssl.SSLSocket], None], pair: tuple[Path, Path] | None = None
) -> Iterator[None]:
    """A server that is not ours, for one connection after another."""
    context = server_context(tunnel.authority, pair or tunnel.authority.server())

    def handle(raw: socket.socket) -> None:
        # Closing the TLS end must not close the TCP socket: its number may be another's by then.
        with context.wrap_socket(raw.dup(), server_side=True) as sock:
            talk(sock)

    with Service(handle, port=tunnel.port):
        yield


def swallow(sock: ssl.SSLSocket) -> None:
    while sock.recv(65536):
        pass


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda a: a.robot("012"), "unsupported_certificate"),
        (lambda a: a.issue("purposeless2", "localhost", None), "not a server's .serverAuth"),
        (
            lambda a: a.issue("elsewhere", "s", Purpose.SERVER, hosts=("other.example", "192.0.2.1")),
            r"not for localhost but for other\.example, 192\.0\.2\.1 .--server-name",
        ),
        (lambda a: a.issue("old", "s", Purpose.SERVER, days=(-20, -10)), "certificate_expired"),
        (lambda a: a.peer("a"), "the peer's certificate is that of a server among its peers"),
    ],
)
def test_a_server_that_is_not_to_be_trusted(
    tunnel: Tunnel, make: Callable[[Authority], tuple[Path, Path]], complaint: str
) -> None:
    with fake_server(tunnel, swallow, make(tunnel.authority)):
        client = start(tunnel, "--once")
        assert client.wait() == 76
        assert re.search(rf"^shadow-client: .*{complaint}", client.log, re.MULTILINE)


def test_a_server_of_another_ca(tunnel: Tunnel, tmp_path: Path) -> None:
    foreign = Authority(tmp_path / "foreign", "Foreign CA")
    with fake_server(tunnel, swallow, foreign.server()):
        client = start(tunnel, "--once")
        assert client.wait() == 76
        assert "the peer's certificate was refused: unknown_ca: issued by another CA" in client.log


def test_a_server_whose_certificate_lacks_the_name_hears_of_it(own: Authority, tmp_path: Path) -> None:
    """Renewed without it, say: the log of the server is where its operator looks."""
    own.issue("server", "s", Purpose.SERVER, hosts=("other.example",))
    with Tunnel(own, tmp_path) as tunnel:
        server = tunnel.start_server()
        client = start(tunnel, "--once")
        assert client.wait() == 76
        assert "the server's certificate is not for localhost but for other.example" in client.log
        server.wait_for_log(
            r"no handshake with \S+: the peer refused our certificate: certificate_unknown: not for the name"
        )
        assert "cut off" not in server.log


def test_a_robot_whose_certificate_is_refused_hears_why(own: Authority, tmp_path: Path) -> None:
    with Tunnel(own, tmp_path) as tunnel:
        context = client_context(own, own.issue("purposeless", "011", None))
        server = tunnel.start_server()
        with pytest.raises(ssl.SSLError, match=r"(?i)alert.unsupported.certificate"):
            Peer(tunnel.port, context)
        server.wait_for_log("the peer's certificate is not a robot's")


def test_the_dot_at_the_end_of_a_name_is_dns_s_alone(tunnel: Tunnel) -> None:
    tunnel.start_server()
    start(tunnel, rhost="localhost.").wait_for_log("robot 011 connected")


@pytest.mark.parametrize("name", ["localhost:8443", "*.example.com"])
def test_a_server_name_that_no_certificate_has(tunnel: Tunnel, name: str) -> None:
    client = start(tunnel, f"--server-name={name}")
    assert client.wait() == 78
    assert f"shadow-client: {name!r} is no name that the server's certificate could have" in client.log
    assert "Traceback" not in client.log


def test_the_server_name_can_be_another_than_the_host_dialled(tunnel: Tunnel) -> None:
    pair = tunnel.authority.issue("named", "s", Purpose.SERVER, hosts=("tunnel.example",))

    def welcome(sock: ssl.SSLSocket) -> None:
        sock.recv(65536)
        sock.sendall(frame(WELCOME, version=1, session="s", keepalive=30))
        swallow(sock)

    with fake_server(tunnel, welcome, pair):
        client = start(tunnel, "--server-name=tunnel.example", "--standby=0", rhost="127.0.0.1")
        client.wait_for_log("robot 011 connected to 127.0.0.1")


@pytest.mark.parametrize(
    ("answer", "status", "complaint"),
    [
        (
            frame(REFUSED, code="revoked", text="your certificate is revoked"),
            77,
            r"refused \(revoked\): your",
        ),
        (frame(PING, stamp=1), 76, "Ping from the server while greeted"),
        (frame(99), 76, "unknown frame type 99"),
        (b"\x02\x00\xff\xff", 76, "announces a body of 65535 bytes"),
        (b"\x02\x00\x00", 76, "connection lost|hung up"),
    ],
)
def test_servers_that_answer_badly(tunnel: Tunnel, answer: bytes, status: int, complaint: str) -> None:
    def talk(sock: ssl.SSLSocket) -> None:
        sock.recv(65536)
        sock.sendall(answer)
        if len(answer) > 3:
            swallow(sock)

    with fake_server(tunnel, talk):
        client = start(tunnel, "--once")
        assert client.wait() == status
        assert re.search(rf"^shadow-client: .*({complaint})", client.log, re.MULTILINE)


def test_a_server_that_says_nothing(tunnel: Tunnel) -> None:
    with fake_server(tunnel, swallow):
        client = start(tunnel, "--once", "--connect-timeout=0.5")
        assert client.wait() == 76
        assert "shadow-client: no WELCOME within 0.5 s" in client.log


def test_a_server_that_stalls_in_the_handshake(tunnel: Tunnel) -> None:
    with socket.create_server(("127.0.0.1", tunnel.port)):
        client = start(tunnel, "--once", "--connect-timeout=0.5", rhost="127.0.0.1")
        assert client.wait() == 76
        assert "shadow-client: no handshake within 0.5 s" in client.log


def test_a_server_that_falls_silent_is_given_up_after_three_intervals(tunnel: Tunnel) -> None:
    def talk(sock: ssl.SSLSocket) -> None:
        sock.recv(65536)
        sock.sendall(frame(WELCOME, version=1, session="s", keepalive=0.3))
        swallow(sock)

    with fake_server(tunnel, talk):
        client = start(tunnel, "--standby=0")
        client.wait_for_log(r"no session with .*: nothing heard for 0\.9 s; next try in")


def receive_some(sock: ssl.SSLSocket) -> bytes:
    data = sock.recv(65536)
    assert data, "the client hung up"
    return data


def test_start_right_behind_welcome_is_not_lost(tunnel: Tunnel) -> None:
    """A server with a visitor waiting sends both at once; the channel must not drop the second."""
    answered = threading.Event()

    def talk(sock: ssl.SSLSocket) -> None:
        if b'"control"' in sock.recv(65536):
            sock.sendall(frame(WELCOME, version=1, session="s", keepalive=30) + frame(DIAL, count=1))
            swallow(sock)
            return
        sock.sendall(frame(WELCOME, version=1, session="s") + frame(START, service="", stream="1"))
        heard = b""
        while frame(STARTED) not in heard:  # not before it: then the channel carries bytes and no frames
            heard += receive_some(sock)
        sock.sendall(b"hello service")
        while b"hello service" not in heard:
            heard += receive_some(sock)
        answered.set()
        swallow(sock)

    with serving(echo) as service, fake_server(tunnel, talk):
        tunnel.daemon(tunnel.client_arguments(f"--lport={service.port}", "--lhost=127.0.0.1", "--standby=0"))
        assert answered.wait(DEADLINE)


# Nobody there.


def test_once_leaves_with_the_reason(tunnel: Tunnel) -> None:
    client = start(tunnel, "--once")
    assert client.wait() == 69
    assert re.search(r"^shadow-client: cannot connect to .*: Connection refused$", client.log, re.MULTILINE)


def test_a_host_that_does_not_exist(tunnel: Tunnel) -> None:
    client = start(tunnel, "--once", rhost="no-such-host.invalid")
    assert client.wait() == 69
    assert "shadow-client: cannot resolve no-such-host.invalid: " in client.log


def test_without_once_it_tries_again_until_there_is_a_server(tunnel: Tunnel) -> None:
    client = start(tunnel)
    client.wait_for_log(
        r"no session with localhost:\d+: .*Connection refused; next try in \d+\.\d s", count=2
    )
    tunnel.start_server()
    client.wait_for_log("robot 011 connected to ")


def test_it_comes_back_after_a_server_restart_and_its_sockets_with_it(tunnel: Tunnel) -> None:
    with serving(echo) as service:
        server = tunnel.start_server()
        client = tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        server.stop()
        client.wait_for_log("no session with .*; next try in")
        tunnel.start_server()
        client.wait_for_log("robot 011 connected to ", count=2)
        wait_for(tunnel.socket_path().exists, "011.sock")
        with tunnel.visit() as visitor:
            assert exchange(visitor, b"again") == b"again"


def test_streams_outlive_the_control_channel(tunnel: Tunnel) -> None:
    """A second client takes the name over; the first one's streams go on."""
    with serving(echo) as service:
        server = tunnel.start_server()
        first = tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        with tunnel.visit() as visitor:
            visitor.sendall(b"one")
            assert visitor.recv(10) == b"one"
            first.process.send_signal(signal.SIGSTOP)
            second = tunnel.daemon(tunnel.client_arguments(f"--lport={service.port}", "--lhost=127.0.0.1"))
            second.wait_for_log("robot 011 connected")
            server.wait_for_log("robot 011 came back from .*; its session from .* ends")
            with tunnel.visit() as another:
                assert exchange(another, b"new session") == b"new session"
            first.process.send_signal(signal.SIGCONT)
            visitor.sendall(b"two")
            assert visitor.recv(10) == b"two"
            first.wait_for_log(r"refused \(superseded\): the same name connected from ")


def test_two_devices_that_fight_over_a_name_are_told_of(tunnel: Tunnel) -> None:
    server = tunnel.start_server()
    for _ in range(2):
        start(tunnel)
    server.wait_for_log("WARNING: robot 011: two devices seem to fight over this name")


# The two legs, in every combination of families.


@pytest.mark.long
@pytest.mark.parametrize("local", ["127.0.0.1", "::1", "localhost"])
@pytest.mark.parametrize("remote", ["127.0.0.1", "::1", "localhost"])
@pytest.mark.parametrize("family", ["-4", "-6", "both"])
def test_all_combinations_of_families(tunnel: Tunnel, family: str, remote: str, local: str) -> None:
    addresses = {"127.0.0.1", "::1"} if remote == "localhost" else {remote}
    if family in {"-4", "-6"} and not any((":" in address) == (family == "-6") for address in addresses):
        tunnel.start_server(family)
        client = start(tunnel, "--once", rhost=remote)
        assert client.wait() == 69
        return
    with serving(echo, "::1" if local == "::1" else "127.0.0.1") as service:
        tunnel.start_server(*([] if family == "both" else [family]))
        tunnel.start_client(f"--lport={service.port}", f"--lhost={local}", rhost=remote)
        data = random_bytes(300_000, 6)
        with tunnel.visit() as visitor:
            assert exchange(visitor, data) == data


# Configuration.


@pytest.mark.parametrize("option", ["ca", "crt", "key"])
@pytest.mark.parametrize("state", ["missing", "malformed", "empty", "folder"])
def test_broken_files_are_named(tunnel: Tunnel, tmp_path: Path, option: str, state: str) -> None:
    path = tmp_path / f"broken.{option}"
    if state == "folder":
        path.mkdir()
    elif state != "missing":
        path.write_text("" if state == "empty" else "-----BEGIN CERTIFICATE-----\nnope\n")
    client = start(tunnel, f"--{option}={path}")
    assert client.wait() == 78
    (line,) = [line for line in client.log.splitlines() if line.startswith("shadow-client: ")]
    assert str(path) in line


def test_another_robots_certificate(tunnel: Tunnel) -> None:
    crt, key = tunnel.authority.robot("012")
    client = start(tunnel, f"--crt={crt}", f"--key={key}")
    assert client.wait() == 78
    assert f"shadow-client: {crt} is for robot '012', not for '011' (--robot)" in client.log


def test_our_own_certificate_without_a_name(tunnel: Tunnel) -> None:
    crt, key = tunnel.authority.issue("nameless", "", Purpose.ROBOT)
    client = start(tunnel, f"--crt={crt}", f"--key={key}")
    assert client.wait() == 78
    assert f"shadow-client: {crt}" in client.log


def test_a_key_of_another_certificate(tunnel: Tunnel) -> None:
    _crt, key = tunnel.authority.robot("012")
    client = start(tunnel, f"--key={key}")
    assert client.wait() == 78
    assert str(key) in client.log


def test_an_expired_certificate_is_a_configuration_error(tunnel: Tunnel) -> None:
    crt, key = tunnel.authority.issue("expired", "011", Purpose.ROBOT, days=(-20, -10))
    client = start(tunnel, f"--crt={crt}", f"--key={key}")
    assert client.wait() == 78
    assert re.search(rf"^shadow-client: .*{re.escape(str(crt))}.* expired", client.log, re.MULTILINE)


def test_a_certificate_not_valid_yet_is_the_clocks_fault_and_waits(tunnel: Tunnel) -> None:
    crt, key = tunnel.authority.issue("future", "011", Purpose.ROBOT, days=(10, 20))
    arguments = [f"--crt={crt}", f"--key={key}"]
    client = start(tunnel, *arguments)
    client.wait_for_log("not valid (yet|before).*clock.*; next try in")
    assert client.stop() == 0
    once = start(tunnel, *arguments, "--once")
    assert once.wait() == 75


def test_a_servers_certificate_is_no_robots(tunnel: Tunnel) -> None:
    crt, key = tunnel.authority.server()
    client = start(tunnel, f"--crt={crt}", f"--key={key}")
    assert client.wait() == 78
    assert "shadow-ca robot" in client.log


def test_usage_errors(tunnel: Tunnel) -> None:
    client = start(tunnel, "--robot=../x")
    assert client.wait() == 2
    assert re.search(r"^shadow-client: argument --robot: robot name '\.\./x'", client.log, re.MULTILINE)


def test_the_environment_is_enough(tunnel: Tunnel) -> None:
    tunnel.start_server()
    crt, key = tunnel.authority.robot()
    environment = {
        "SHADOW_RHOST": "localhost",
        "SHADOW_RPORT": str(tunnel.port),
        "SHADOW_CA": str(tunnel.authority.ca),
        "SHADOW_CRT": str(crt),
        "SHADOW_KEY": str(key),
        "SHADOW_ROBOT": "011",
        "SHADOW_LPORT": "9",
    }
    client = tunnel.daemon(["shadow.cli.client"], environment)
    client.wait_for_log("robot 011 connected")


def test_pings_are_answered_and_sent(tunnel: Tunnel) -> None:
    seen: list[int] = []

    def talk(sock: ssl.SSLSocket) -> None:
        sock.recv(65536)
        sock.sendall(frame(WELCOME, version=1, session="s", keepalive=0.2))
        while data := sock.recv(65536):
            seen.append(data[0])
            sock.sendall(frame(PONG, stamp=0))

    with fake_server(tunnel, talk):
        start(tunnel, "--standby=0")
        wait_for(lambda: seen.count(PING) >= 5, "five pings")


@pytest.mark.long
def test_a_session_that_is_over_opens_no_more_channels(tunnel: Tunnel) -> None:
    client = start(tunnel, "--standby=4")
    for _ in range(3):
        server = tunnel.start_server()
        server.wait_for_log("robot 011 connected")
        server.stop(signal.SIGKILL)
    last = tunnel.start_server()
    last.wait_for_log("robot 011 connected")
    wait_for(lambda: _standbys(client) == 5, "one control channel and four standing by")
    assert "no-session" not in last.log


def _standbys(client: Daemon) -> int:
    """Established TCP connections of a process."""
    inodes = set()
    for path in Path(f"/proc/{client.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(path.readlink()))
    count = 0
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            count += words[3] == "01" and f"socket:[{words[9]}]" in inodes
    return count


def test_a_bug_ends_the_client_with_its_trace_instead_of_leaving_it_idle(tunnel: Tunnel) -> None:
    program = (
        "import sys\nfrom shadow.client import approach\nfrom shadow.cli.client import main\n"
        "def broken(*_, **__): raise ZeroDivisionError('a bug')\n"
        "approach.resolve = broken\nsys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *tunnel.client_arguments("--lport=9")[1:]],
        cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 70
    assert "ZeroDivisionError: a bug" in done.stderr


def test_a_server_of_another_version(tunnel: Tunnel) -> None:
    def talk(sock: ssl.SSLSocket) -> None:
        sock.recv(65536)
        sock.sendall(frame(WELCOME, version=9, session="s", keepalive=30))
        swallow(sock)

    with fake_server(tunnel, talk):
        client = start(tunnel, "--once")
        assert client.wait() == 76
        assert "shadow-client: the server speaks protocol version 9" in client.log


def test_channels_that_nobody_needs_any_more_are_given_up(tunnel: Tunnel) -> None:
    """Within a keepalive interval, and in order; whoever else sees to that."""
    standing_by: set[ssl.SSLSocket] = set()
    most, cut_off = [0], []

    def talk(sock: ssl.SSLSocket) -> None:
        if b'"control"' in sock.recv(65536):
            sock.sendall(frame(WELCOME, version=1, session="s", keepalive=2) + frame(DIAL, count=20))
            while sock.recv(65536):
                sock.sendall(frame(PONG, stamp=0))
            return
        sock.sendall(frame(WELCOME, version=1, session="s"))
        standing_by.add(sock)
        most[0] = max(most[0], len(standing_by))
        try:
            swallow(sock)
        except OSError as error:
            cut_off.append(error)
        standing_by.discard(sock)

    with fake_server(tunnel, talk):
        client = start(tunnel)
        wait_for(lambda: most[0] > 10, "channels that were asked for")
        wait_for(lambda: len(standing_by) == 2, "no more than wanted")
        assert cut_off == []
        assert client.process.poll() is None


def test_a_burst_of_visitors_who_leave_costs_nothing_for_long(tunnel: Tunnel) -> None:
    server = tunnel.start_server("--keepalive=2")
    with serving(echo) as service:
        client = tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        wait_for(lambda: _standbys(client) == 3, "one control channel and two standing by")
        client.process.send_signal(signal.SIGSTOP)
        before = open_descriptors(server.process.pid)
        visitors = [tunnel.visit() for _ in range(40)]
        wait_for(lambda: open_descriptors(server.process.pid) >= before + 40, "DIAL for each of them")
        for visitor in visitors:
            visitor.close()
        client.process.send_signal(signal.SIGCONT)
        wait_for(lambda: _standbys(client) > 10, "channels for all of them")
        wait_for(lambda: _standbys(client) == 3, "no more than before")
        with tunnel.visit() as visitor:
            assert exchange(visitor, b"as before") == b"as before"


@pytest.mark.long
def test_a_server_that_starts_what_cannot_be_started_does_not_keep_us_busy(tunnel: Tunnel) -> None:
    began: list[float] = []
    failed = []

    def talk(sock: ssl.SSLSocket) -> None:
        if b'"control"' in sock.recv(65536):
            sock.sendall(frame(WELCOME, version=1, session="s", keepalive=30))
        else:
            began.append(time.monotonic())
            sock.sendall(frame(WELCOME, version=1, session="s") + frame(START, service="secret", stream="1"))
            failed.append(receive_some(sock))
        swallow(sock)

    with fake_server(tunnel, talk):
        start(tunnel)
        wait_for(lambda: began and time.monotonic() - began[0] > 3, "three seconds of that")
    assert 2 <= len(began) < 30  # there was time for hundreds
    assert all(b"no-such-service" in answer for answer in failed)


class Opened:
    """A session that has ended already; to dial for it takes long, to close it takes a while."""

    certificate = ""
    agreed = SimpleNamespace(interval=30.0)

    def __init__(self, clock: list[float]) -> None:
        self._clock = clock
        self.lost = asyncio.get_running_loop().create_future()
        self.lost.set_result(PeerError("the server hung up"))
        self.unwanted = asyncio.get_running_loop().create_future()

    def use(self, _settings: object) -> None:
        pass

    def close(self) -> None:
        self._clock[0] += 5.0


def supervise(open_one: Callable[[float], Awaitable[object]], streams: int, attempts: Attempts) -> None:
    """Have a client's one task run, with this in the place of dialling."""

    async def body() -> None:
        client = Client.__new__(Client)
        settings = SimpleNamespace()
        client.__dict__ |= {
            "_state": Dialling(), "_streams": [None] * streams, "_attempts": attempts,
            "_config": SimpleNamespace(once=False, whither="server:1", robot="011"),
            "_opener": SimpleNamespace(open=lambda _settings, reach: open_one(reach)),
            "_trust": SimpleNamespace(settings=settings, refresh=lambda: settings, welcomed=print),
            "_renewer": SimpleNamespace(patience=None, connected=lambda: None),
        }  # fmt: skip
        with contextlib.suppress(asyncio.CancelledError):
            await client._supervise()

    asyncio.run(body())


def test_dialling_is_not_living(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is slow to welcome us and then hangs up has not had a healthy minute."""
    now = [1000.0]
    lived: list[float] = []

    class Enough(Attempts):
        def lived(self, seconds: float) -> None:
            lived.append(seconds)

        def wait(self, _error: ShadowError, _streams: int) -> float:
            raise asyncio.CancelledError

    async def open_one(_reach: float) -> Opened:
        now[0] += 100.0
        return Opened(now)

    monkeypatch.setattr("shadow.client.client.time.monotonic", lambda: now[0])
    supervise(open_one, 0, Enough())
    assert lived == [5.0]


def test_it_tries_as_often_as_its_streams_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    reached: list[float] = []

    class Counting(Attempts):
        def reach(self, streams: int) -> float:
            return 100.0 + streams

        def wait(self, error: ShadowError, streams: int) -> float:
            assert isinstance(error, Unreachable)
            return 200.0 + streams

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise asyncio.CancelledError

    async def open_one(reach: float) -> None:
        reached.append(reach)
        raise Unreachable("no route")

    monkeypatch.setattr("shadow.client.client.asyncio.sleep", sleep)
    supervise(open_one, 2, Counting())
    assert (reached, slept) == ([102.0] * 3, [202.0] * 3)


def test_it_shows_its_state(tunnel: Tunnel) -> None:
    """In a page, and a line at each step."""
    server = tunnel.start_server()
    with serving(echo) as service:
        client = tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1", "--log-level=debug")
        with tunnel.visit() as visitor:
            visitor.sendall(b"x")
            assert visitor.recv(1) == b"x"
            client.process.send_signal(signal.SIGUSR1)
            client.wait_for_log(
                r"<Client 011: Connected\(session=<Session '\w{8}' with \S+ since .*>\), 1 stream>"
            )
            client.wait_for_log(
                r"  <Opener to localhost:\d+, <Services default; 0 visitors being connected>>"
            )
            client.wait_for_log(r"  <Stream '\w+' to 'default' for \d+\.\d s, ")
    server.stop()
    client.wait_for_log(r"DEBUG: <Client 011: Waiting\(error=\w+\('.*'\), retry='[\d:]+'\), 0 streams>")
    states = re.findall(r"DEBUG: <Client 011: (\w+)", client.log)
    assert states[:2] == ["Dialling", "Connected"]
