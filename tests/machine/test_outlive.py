"""Live connections outlive the daemons: killed, restarted, upgraded, shot by the watchdog."""

import contextlib
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import commands

from .fleet import PORT, Fleet
from .qemu import Background

SERVER, CLIENT = "shadow-server.service", "shadow-client@011.service"
SERVICE_PORT = 9000
SOCKET = "/run/shadow-tunnel/data@011.sock"
MIB = 2**20
QUICK = "[Service]\nRestartSec=100ms\nRestartSteps=0\n"


@pytest.fixture
def data(fleet: Fleet) -> Fleet:
    """A robot with a second service; keepalives as users have them, for the machine is busy here."""
    fleet.settings("client", rhost="localhost", rport=PORT, service=f"data=127.0.0.1:{SERVICE_PORT}")
    fleet.settings("server", keepalive=10)
    for unit in (SERVER, CLIENT):
        fleet.drop_in(unit, QUICK)
    fleet.start("011")
    fleet.machine.wait_until(f"[[ -S {SOCKET} ]]")
    return fleet


@contextlib.contextmanager
def serving(fleet: Fleet, size: int, pause: float = 0) -> Iterator[Background]:
    """A service that exchanges so many bytes with each visitor, and pauses after each 64 KiB it sends."""
    words = ["python3", "/srv/guest/traffic.py", "serve", str(SERVICE_PORT), str(size), "--pause", str(pause)]
    with fleet.machine.background(words) as running:
        fleet.machine.wait_until(f"ss -tlnH 'sport = {SERVICE_PORT}' | grep .")
        yield running


@pytest.fixture
def service(data: Fleet) -> Iterator[Background]:
    """Exchanges 64 MiB with each visitor."""
    with serving(data, 64 * MIB) as running:
        yield running


def visitor(fleet: Fleet, *options: object) -> Background:
    """Somebody who exchanges 64 MiB, so slowly that much happens meanwhile."""
    words = ["python3", "/srv/guest/traffic.py", "visit", SOCKET, str(64 * MIB), *map(str, options)]
    return fleet.machine.background(words, user="alice")


def kill(fleet: Fleet, unit: str) -> None:
    """End a daemon where it stands, and wait until systemd has another one."""
    before = fleet.pid(unit)
    fleet.machine.run(f"kill -KILL {before}")
    fleet.machine.wait_until(f"[[ $(systemctl show --value -p MainPID {unit}) != @(0|{before}) ]]")
    fleet.wait_for(unit, "ActiveState", "^active$")


def streams(fleet: Fleet, unit: str) -> int:
    """Streams that the service manager keeps: all descriptors but the progress table."""
    return int(fleet.show(unit, "NFileDescriptorStore")) - 1


def assert_whole(output: bytes, service: Background, size: int = 64 * MIB) -> None:
    """All ends have received exactly what the others have sent, and an orderly end."""
    ends: list[dict[str, Any]] = [json.loads(line) for line in output.splitlines()]
    assert service.process.stdout is not None
    ends += [json.loads(service.process.stdout.readline()) for _ in list(ends)]
    assert not {name for end in ends for name in end if "error" in name}, ends
    assert {end[name] for end in ends for name in ("sent", "received")} == {size}
    # Everybody sends the same.
    assert len({end[name] for end in ends for name in ("sent_sha256", "received_sha256")}) == 1


def assert_nothing_left(fleet: Fleet) -> None:
    for unit in (SERVER, CLIENT):
        fleet.machine.wait_until(f"[[ $(systemctl show --value -p NFileDescriptorStore {unit}) == 1 ]]")


def test_every_stream_is_kept_while_it_runs_and_no_longer(data: Fleet, service: Background) -> None:
    with visitor(data, "--slow", 8 * MIB) as running:
        for unit in (SERVER, CLIENT):
            data.wait_for(unit, "NFileDescriptorStore", "^2$")
        status, output, _errors = running.finish()
    assert status == 0
    assert_whole(output, service)
    assert_nothing_left(data)


@pytest.mark.parametrize(
    ("how", "unit"),
    [
        ("kill", SERVER),
        pytest.param("kill", CLIENT, marks=pytest.mark.slow),
        pytest.param("restart", SERVER, marks=pytest.mark.slow),
        ("restart", CLIENT),
    ],
)
def test_a_transfer_goes_on(data: Fleet, service: Background, unit: str, how: str) -> None:
    cursor = data.machine.cursor()
    with visitor(data, "--slow", 8 * MIB) as running:
        data.wait_for(unit, "NFileDescriptorStore", "^2$")
        if how == "kill":
            kill(data, unit)
        else:
            data.machine.run(["systemctl", "restart", unit])
        data.wait_for_event(cursor, "^resumed 1 stream of", "-u", unit)
        assert running.process.poll() is None  # it was in the middle
        status, output, errors = running.finish()
    assert status == 0, errors
    assert_whole(output, service)
    assert_nothing_left(data)


@pytest.mark.slow
def test_without_the_store_a_transfer_is_lost(data: Fleet, service: Background) -> None:
    """The control: were the store not what saves streams, the other tests would show nothing."""
    data.drop_in(SERVER, "[Service]\nFileDescriptorStoreMax=0\nEnvironment=FDSTORE_MAX=0\n")
    cursor = data.machine.cursor()
    data.machine.run(f"systemctl stop {SERVER}; systemctl start {SERVER}")
    data.wait_for_event(cursor, "^robot 011 connected to", "-u", CLIENT)
    data.machine.wait_until(f"[[ -S {SOCKET} ]]")
    with visitor(data, "--slow", 8 * MIB) as running:
        data.wait_for(CLIENT, "NFileDescriptorStore", "^2$")
        kill(data, SERVER)
        _status, output, _errors = running.finish()
    assert json.loads(output)["received"] < 64 * MIB
    assert service.process.stdout is not None
    service.process.stdout.readline()


def test_what_systemd_keeps_is_what_the_server_says(data: Fleet, service: Background, release: str) -> None:
    """FileDescriptorStoreMax= alone in a drop-in: since systemd 254 it says so itself."""
    del service
    data.drop_in(SERVER, "[Service]\nFileDescriptorStoreMax=2\n")
    data.machine.run(f"systemctl stop {SERVER}; systemctl start {SERVER}")
    data.wait_for_robot()
    with visitor(data, "--slow", MIB), visitor(data, "--slow", MIB), visitor(data, "--slow", MIB):
        data.wait_for(SERVER, "StatusText", "3 streams")
        kept = "2 not kept over a restart" in data.show(SERVER, "StatusText")
        assert kept is (release != "bookworm")


@pytest.mark.slow
@pytest.mark.timeout(1500, func_only=True)
@pytest.mark.parametrize(
    ("kills", "streams", "size", "slow", "pause"),
    # One whose buffers are always full; several that keep theirs empty: 500 MiB in buffers is more than
    # the machine has.
    [
        pytest.param(12, 1, 64 * MIB, MIB, 0.0, marks=pytest.mark.slow),
        (3, 8, 4 * MIB, 0, 1.0),
        pytest.param(18, 20, 13 * MIB, 0, 1.0, marks=pytest.mark.slow),
    ],
)
def test_kills_at_random_moments(
    data: Fleet, kills: int, streams: int, size: int, slow: int, pause: float
) -> None:
    """As many rounds as it takes, 500 MiB and more in the long ones; now and then a restart or a reload."""
    choice = random.Random(4)  # noqa: S311 - the moments are random, the order of victims repeats
    visit = f"python3 /srv/guest/traffic.py visit {SOCKET} {size} --slow {slow} --pause {pause}"
    together = f"for _ in $(seq {streams}); do {visit} & done; wait"
    killed = 0
    with serving(data, size, pause) as service:
        while killed < kills:
            with data.machine.background(["bash", "-c", together], user="alice") as running:
                data.wait_for(SERVER, "NFileDescriptorStore", f"^{1 + streams}$")
                while killed < kills and running.process.poll() is None:
                    killed += 1
                    disturb(data, choice.choice([SERVER, CLIENT]), killed)
                    time.sleep(choice.random())  # not waiting for anything: the moment of the next one
                status, output, errors = running.finish(timeout=900)
            assert status == 0, errors
            assert len(output.splitlines()) == streams
            assert_whole(output, service, size)
            assert_nothing_left(data)
            data.wait_for(CLIENT, "StatusText", "^Connected to ")  # for the next visitor
            data.machine.wait_until(f"[[ -S {SOCKET} ]]")


def disturb(fleet: Fleet, unit: str, number: int) -> None:
    """Kill a daemon; every tenth time restart it, every seventh reload it first."""
    if number % 7 == 0:
        fleet.machine.run(["systemctl", "reload", unit])
    if number % 10 == 0:
        fleet.machine.run(["systemctl", "restart", unit])
    else:
        kill(fleet, unit)


@pytest.mark.slow
def test_the_lines_of_the_readme(data: Fleet) -> None:
    """As they stand there, but with less to send, and waiting for what a human's pauses are for."""
    lines = [command.text for command in commands.block("outlive").commands]
    script = "\n".join(lines).replace("1G", "192M").replace("you@", "alice@")
    cursor = data.machine.cursor()
    for pause, look in (
        ("sleep 1", f"systemctl show --value -p NFileDescriptorStore {SERVER} | grep -q '^2$'"),
        # Not the status: for a moment it is still what the killed daemon said of itself.
        ("sleep 4", f"journalctl -q -o cat --cursor='{cursor}' -u {SERVER} | grep -q '^robot 011 connected'"),
    ):
        assert pause in script
        script = script.replace(pause, f"until {look}; do sleep 0.1; done")
    options = "-F none -o BatchMode=yes -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR"
    stubs = f'sudo() {{ "$@"; }}\nssh() {{ runuser -u alice -- ssh {options} "$@"; }}\n'
    sums = data.machine.run(["bash", "-ec", stubs + script]).stdout.splitlines()
    assert len(sums) == 2
    assert sums[0] == sums[1]
    data.wait_for_event(cursor, "^resumed 1 session of", "-u", SERVER)
    said = [str(entry["MESSAGE"]) for entry in data.events(cursor, "-u", SERVER)]
    assert sum(text.startswith("resumed 1 stream of") for text in said) == 2, said


def test_an_interactive_session_survives_both(data: Fleet) -> None:
    with data.machine.background(data.ssh("cat"), user="alice") as session:
        assert session.process.stdin is not None
        assert session.process.stdout is not None
        for number, unit in enumerate((SERVER, CLIENT, SERVER)):
            line = f"line {number}\n".encode()
            assert session.ask(line) == line
            kill(data, unit)
        session.process.stdin.write(b"last\n")
        session.process.stdin.close()
        assert session.process.stdout.read() == b"last\n"
        assert session.wait() == 0
    assert_nothing_left(data)


@pytest.mark.slow
def test_stop_ends_streams_for_both_sides(data: Fleet, service: Background) -> None:
    with visitor(data, "--slow", MIB) as running:
        data.wait_for(SERVER, "NFileDescriptorStore", "^2$")
        data.machine.run("systemctl stop shadow-server.socket shadow-server.service")
        _status, output, _errors = running.finish()
        assert json.loads(output)["received"] < 64 * MIB
    assert service.process.stdout is not None
    assert "error" in service.process.stdout.readline().decode()
    data.wait_for(CLIENT, "NFileDescriptorStore", "^1$")


@pytest.mark.slow
def test_a_visitor_who_leaves_in_the_gap_is_noticed(data: Fleet, service: Background) -> None:
    data.drop_in(SERVER, "[Service]\nRestartSec=5\nRestartSteps=0\n")
    with visitor(data, "--slow", MIB) as running:
        data.wait_for(SERVER, "NFileDescriptorStore", "^2$")
        data.machine.run(f"kill -KILL {data.pid(SERVER)}")
        running.signal("KILL")
        data.wait_for(SERVER, "ActiveState", "^active$")
    assert service.process.stdout is not None
    there = json.loads(service.process.stdout.readline())
    assert "error" in " ".join(there), there
    assert_nothing_left(data)


def test_the_service_that_dies_in_the_gap_is_noticed(data: Fleet, service: Background) -> None:
    data.drop_in(CLIENT, "[Service]\nRestartSec=5\nRestartSteps=0\n")
    with visitor(data, "--slow", MIB) as running:
        data.wait_for(CLIENT, "NFileDescriptorStore", "^2$")
        data.machine.run(f"kill -KILL {data.pid(CLIENT)}")
        service.signal("KILL")
        _status, output, _errors = running.finish()
    assert json.loads(output)["received"] < 64 * MIB
    data.wait_for(CLIENT, "ActiveState", "^active$")
    assert_nothing_left(data)
