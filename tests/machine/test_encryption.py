"""Who encrypts: the kernel, in both directions, on both ends, as it tells itself; and what if it cannot."""

import json
import struct

import pytest

from .fleet import PORT, Fleet

SERVER, CLIENT = "shadow-server.service", "shadow-client@011.service"
TLS_1_2 = 0x0303
# linux/tls.h
CIPHERS = {"AES128-GCM": 51, "AES256-GCM": 52, "CHACHA20-POLY1305": 54}
HELLO, WELCOME = 1, 2  # docs/PROTOCOL.md
NO_MODULE = "/etc/modprobe.d/no-tls.conf"


def only(cipher: str) -> str:
    """A drop-in by which the server speaks one cipher: it is the one who chooses."""
    program = (
        "import sys; from shadow.transport import ktls; from shadow.cli.server import main; "
        f"ktls.SUITES = {{name: suite for name, suite in ktls.SUITES.items() if '{cipher}' in name}}; "
        "sys.exit(main())"
    )
    return f'[Service]\nExecStart=\nExecStart=/usr/bin/python3 -c "{program}"\n'


@pytest.mark.parametrize(
    "cipher",
    [
        "AES128-GCM",
        pytest.param("AES256-GCM", marks=pytest.mark.slow),
        pytest.param("CHACHA20-POLY1305", marks=pytest.mark.slow),
    ],
)
def test_the_kernel_encrypts_both_directions_on_both_ends(fleet: Fleet, cipher: str) -> None:
    fleet.drop_in(SERVER, only(cipher))
    fleet.start("011")
    with fleet.machine.background(fleet.ssh("cat"), user="alice") as visitor:
        assert visitor.ask(b"hello\n") == b"hello\n"
        expected = [TLS_1_2, CIPHERS[cipher]]
        for port in ("sport", "dport"):  # control, a stream, one at least that stands by
            listed = f"ss -tineOH state established '( {port} = {PORT} )'"
            fleet.machine.wait_until(f"(( $({listed} | grep -c 'rxconf: sw txconf: sw') >= 3 ))")
        ends = [fleet.connections(unit) for unit in (SERVER, CLIENT)]
        said = fleet.machine.run(["ss", "-tineOH", "state", "established", f"( sport = {PORT} )"]).stdout
    for connections in ends:
        assert len(connections) >= 3
        for connection in connections:
            assert connection["sends"] == expected
            assert connection["receives"] == expected
    lines = said.splitlines()
    assert len(lines) >= 3
    assert all("tcp-ulp-tls" in line and "rxconf: sw txconf: sw" in line for line in lines), said


@pytest.fixture
def without_module(fleet: Fleet) -> Fleet:
    """A machine whose kernel has no TLS, until the end of the test."""
    fleet.machine.write(NO_MODULE, "install tls /bin/false\n")
    fleet.machine.wait_until("modprobe -r tls")
    return fleet


@pytest.fixture(autouse=True)
def _module_is_back(fleet: Fleet) -> object:
    yield
    fleet.machine.run(f"rm -f {NO_MODULE}")


def test_without_the_module_the_daemons_encrypt_and_say_so(without_module: Fleet) -> None:
    fleet = without_module
    cursor = fleet.machine.cursor()
    fleet.start("011")
    assert fleet.machine.run(fleet.ssh("id -un"), user="alice").stdout == "alice\n"
    for unit in (SERVER, CLIENT):
        fleet.wait_for_event(cursor, "^encrypting in userspace: .*module", "-u", unit)
        fleet.wait_for(unit, "StatusText", "userspace TLS")
        assert all(connection["sends"] is None for connection in fleet.connections(unit))


@pytest.mark.slow
def test_an_operator_who_requires_the_kernel_gets_nothing_less(without_module: Fleet) -> None:
    fleet = without_module
    fleet.settings("client@011", ktls="require")
    cursor = fleet.machine.cursor()
    fleet.machine.run("systemctl start shadow-server.socket; systemctl start --no-block shadow-client@011")
    fleet.wait_for_event(cursor, "--ktls=require, but the kernel module .tls. is not loaded", "-u", CLIENT)
    assert fleet.machine.run("[[ -e /run/shadow-tunnel/011.sock ]]", check=False).returncode == 1
    fleet.machine.run(f"rm {NO_MODULE} && modprobe tls")  # and as soon as there is one, it works
    fleet.wait_for_robot()
    assert all(connection["sends"] == [TLS_1_2, 51] for connection in fleet.connections(CLIENT))


def frame(kind: int, **body: object) -> bytes:
    """A frame by hand, from docs/PROTOCOL.md."""
    text = json.dumps(body).encode()
    return struct.pack(">BBH", kind, 0, len(text)) + text


def s_client(*options: str) -> list[str]:
    keys = "/srv/fleet"
    return [
        *("openssl", "s_client", "-tls1_2", "-connect", f"localhost:{PORT}", "-verify_return_error"),
        *("-CAfile", f"{keys}/ca.crt", "-cert", f"{keys}/013.crt", "-key", f"{keys}/013.key", *options),
    ]


def test_openssls_own_client_is_a_robot_like_any_other(fleet: Fleet) -> None:
    fleet.start("011")
    with fleet.machine.background(s_client("-quiet")) as robot:
        assert robot.process.stdin is not None
        assert robot.process.stdout is not None
        robot.process.stdin.write(frame(HELLO, version=1, role="control", robot="013", services=[""]))
        robot.process.stdin.flush()
        kind, zero, length = struct.unpack(">BBH", robot.process.stdout.read(4))
        assert (kind, zero) == (WELCOME, 0)
        assert json.loads(robot.process.stdout.read(length))["version"] == 1
        fleet.wait_for_robot("013")
        mine = fleet.machine.run(["ss", "-tinpeOH", "state", "established", f"( dport = {PORT} )"]).stdout
        port = next(
            int(line.split()[2].rpartition(":")[2]) for line in mine.splitlines() if '"openssl"' in line
        )
        (end,) = (found for found in fleet.connections(SERVER) if found["peer"] == port)
        assert end["sends"] == end["receives"] == [TLS_1_2, 51]
        robot.signal("KILL")
    fleet.machine.wait_until("[[ ! -e /run/shadow-tunnel/013.sock ]]")


def test_a_renegotiation_attempt_ends_its_own_connection_only(fleet: Fleet) -> None:
    fleet.start("011")
    before, cursor = (fleet.pid(SERVER), fleet.pid(CLIENT)), fleet.machine.cursor()
    with (
        fleet.machine.background(fleet.ssh("cat"), user="alice") as visitor,
        fleet.machine.background(s_client()) as robot,
    ):
        assert robot.process.stdin is not None
        robot.process.stdin.write(frame(HELLO, version=1, role="control", robot="013", services=[""]))
        robot.process.stdin.flush()
        fleet.wait_for_robot("013")
        robot.process.stdin.write(b"R\n")  # s_client's word for it
        robot.process.stdin.flush()
        fleet.wait_for_event(cursor, "^robot 013 disconnected: ", "ROBOT=013")
        assert robot.wait() != 0
        output, _errors = visitor.process.communicate(b"still here\n", timeout=60)
        assert output == b"still here\n"
    assert (fleet.pid(SERVER), fleet.pid(CLIENT)) == before
    (said,) = (
        event["MESSAGE"] for event in fleet.events(cursor, "ROBOT=013") if "disconnected" in event["MESSAGE"]
    )
    assert said.endswith("the peer tried to renegotiate: TLS record of type 22"), said


@pytest.mark.slow
def test_records_of_length_zero_do_no_harm(fleet: Fleet) -> None:
    fleet.start("011")
    said = fleet.machine.run(["python3", "/srv/guest/empty_record.py"]).stdout
    assert json.loads(said) == "onetwo"  # all of it, and an end behind it
    assert fleet.machine.run(fleet.ssh("id -un"), user="alice").stdout == "alice\n"
