"""Lines that lose packets cost no stream, nor do outages shorter than the limit; longer ones cost all.

Idle, half-closed, busy, talking and stuck streams (guest/endurance.py) from a server to a robot behind NAT,
on kernel TLS. The limit is three keepalive intervals.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .fleet import OPERATOR, PORT, Fleet
from .nat import OUTSIDE
from .qemu import Background
from .test_network import CLIENT, SERVER, behind_nat

__all__ = ["behind_nat"]

SERVICE_PORT = 7000
ENDURANCE = "python3 /srv/guest/endurance.py"
KINDS = "ihbts"


def quality(loss: float) -> str:
    """What netem does to each direction."""
    return f"delay 25ms 10ms loss {loss}% reorder 5%"


def set_line(fleet: Fleet, what: str) -> str:
    """Commands that make the line so, both ways."""
    del fleet
    return f"tc -n nat qdisc change dev wan root netem {what}; tc qdisc change dev uplink root netem {what}"


@contextmanager
def streams(
    fleet: Fleet, number: int, keepalive: int, kinds: str = KINDS
) -> Iterator[tuple[Background, Background]]:
    """``number`` streams of each kind: the service, and its visitors."""
    fleet.settings("server", keepalive=keepalive)
    fleet.settings("client@011", rhost=OUTSIDE, rport=PORT, server_name="localhost", lport=SERVICE_PORT)
    fleet.machine.run(set_line(fleet, "delay 5ms"))
    cursor = fleet.machine.cursor()
    fleet.machine.run(f"systemctl stop {CLIENT} {SERVER}; systemctl start {SERVER} {CLIENT}")
    fleet.wait_for_event(cursor, "^robot 011 connected to", "-u", CLIENT)
    fleet.wait_for_robot()
    with fleet.machine.background(f"ip netns exec robot {ENDURANCE} service {SERVICE_PORT}") as service:
        assert service.process.stdout is not None
        assert service.process.stdout.readline() == b"ready\n"
        visit = f"{ENDURANCE} visitors /run/shadow-tunnel/011.sock {number} {kinds}"
        with fleet.machine.background(visit, user=OPERATOR) as visitors:
            assert visitors.process.stdout is not None
            assert visitors.process.stdout.readline() == b"ready\n"
            yield service, visitors


def left(visitors: Background, word: bytes = b"count\n") -> dict[str, int]:
    counted: dict[str, int] = json.loads(visitors.ask(word))
    return counted


def outage(fleet: Fleet, seconds: float, then: str) -> None:
    """Nothing arrives for so long, measured where it happens."""
    line = f"{set_line(fleet, 'loss 100%')}; sleep {seconds:g}; {set_line(fleet, then)}"
    fleet.machine.run(line, timeout=seconds + 60)


def for_this_machine(fleet: Fleet, keepalive: int) -> int:
    """On a machine that takes seconds to begin or end an outage, all lasts longer."""
    return math.ceil(keepalive * max(1.0, fleet.machine.slowness / 4))


def assert_all_survive(fleet: Fleet, number: int, keepalive: int, loss: float, span: float) -> None:
    keepalive = for_this_machine(fleet, keepalive)
    everybody = dict.fromkeys(KINDS, number)
    limit = 3 * keepalive
    with streams(fleet, number, keepalive) as (service, visitors):
        fleet.machine.run(set_line(fleet, quality(loss)))
        until = time.monotonic() + span
        while time.monotonic() < until:
            time.sleep(1)
            assert left(visitors) == everybody
        for share in (0.3, 0.6, 0.9):
            outage(fleet, share * limit, quality(loss))
            time.sleep(keepalive)
            assert left(visitors) == everybody, f"after {share * limit:g} s without a line"
        fleet.machine.run(set_line(fleet, "delay 5ms"))  # or the stuck ones would take their time
        assert service.process.stdin is not None
        service.process.stdin.write(b"\n")
        service.process.stdin.flush()
        assert left(visitors, b"finish\n") == everybody


def assert_none_stays(fleet: Fleet, number: int, keepalive: int) -> None:
    limit = 3 * keepalive
    with streams(fleet, number, keepalive) as (_service, visitors):
        time.sleep(2 * keepalive)  # all stores and windows are full
        assert left(visitors) == dict.fromkeys(KINDS, number)
        fleet.machine.run(set_line(fleet, "loss 100%"))
        began = time.monotonic()
        while any(left(visitors).values()):
            time.sleep(0.2)
        took = time.monotonic() - began
        for unit in (SERVER, CLIENT):
            fleet.wait_for(unit, "NFileDescriptorStore", "^1$")
            fleet.machine.wait_until(
                f"! ss -tnpH state established state close-wait | grep -F pid={fleet.pid(unit)},"
            )
        # The machine is emulated, and asking it takes its time.
        assert limit * 0.8 < took < 1.25 * limit + 3 * fleet.machine.slowness


@pytest.mark.slow
@pytest.mark.timeout(900, func_only=True)
def test_a_line_that_loses_packets_costs_no_stream(behind_nat: Fleet) -> None:
    assert_all_survive(behind_nat, 6, 4, 5, 10)


@pytest.mark.slow
@pytest.mark.timeout(900, func_only=True)
def test_a_dead_line_leaves_no_stream_behind(behind_nat: Fleet) -> None:
    assert_none_stays(behind_nat, 6, 4)


@pytest.mark.slow
@pytest.mark.timeout(2400, func_only=True)
def test_a_robot_without_a_route_is_back_in_time_for_its_only_stream(behind_nat: Fleet) -> None:
    """It dials in vain when its session is over, and who talks both ways goes by the next one."""
    keepalive = for_this_machine(behind_nat, 12)
    limit = 3 * keepalive
    unreachable = f"ip -n robot route add unreachable {OUTSIDE}"
    cursor = behind_nat.machine.cursor()
    with streams(behind_nat, 1, keepalive, "t") as (_service, visitors):
        behind_nat.machine.run(set_line(behind_nat, quality(0)))
        for share in (0.75, 0.8, 0.85, 0.9, 0.94) * 2:
            time.sleep(2 * keepalive)  # its session says a word, and TCP its best time
            behind_nat.machine.run(unreachable)
            outage(behind_nat, share * limit, quality(0))
            behind_nat.machine.run(unreachable.replace(" add ", " delete "))
            time.sleep(keepalive)
            assert left(visitors) == {"t": 1}, f"after {share * limit:g} s without a line"
    behind_nat.wait_for_event(cursor, "^no session with .*No route to host", "-u", CLIENT)


@pytest.mark.slow
@pytest.mark.timeout(2400, func_only=True)
@pytest.mark.parametrize("loss", [1, 5, 10])
def test_forty_of_each_kind_survive(behind_nat: Fleet, loss: int) -> None:
    assert_all_survive(behind_nat, 40, 5, loss, 120)


@pytest.mark.slow
@pytest.mark.timeout(2400, func_only=True)
def test_none_of_forty_of_each_kind_stays(behind_nat: Fleet) -> None:
    assert_none_stays(behind_nat, 40, 5)
