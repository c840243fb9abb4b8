"""Streams between two links that the kernel encrypts, as between servers: whole, whatever happens."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from .fleet import Fleet
from .qemu import Background

UNIT = "two-links.service"
SCRIPT = "/srv/guest/two_links.py"
MIB = 2**20
NEAR, LINK = 9001, 9002

# Where the daemon is killed: before or after which call; see guest/steps/sitecustomize.py.
STEPS = [
    "after shadow.relay.flow Flow end",
    "after shadow.transport.ktls - send_alert",
    "after shadow.relay.durable DurableStreams keep",
    "after shadow.relay.splice LinkToLink drain",
    "before shadow.relay.flow Flow end",
    "before shadow.relay.splice LinkToLink finish",
    "after shadow.relay.splice LinkToLink finish",
    "before shadow.relay.durable DurableStreams ended",
]
HOLD = "/run/two-links"  # until it is there, both ends stop reading half-way


@pytest.fixture
def relay(fleet: Fleet) -> Iterator[Fleet]:
    """A machine with a unit that joins links."""
    fleet.machine.run("modprobe tls")
    yield fleet
    fleet.machine.run(f"systemctl stop {UNIT}; rm -rf /run/shadow-steps {HOLD}", check=False)


def start(fleet: Fleet, **environment: str) -> None:
    """Start the unit."""
    properties = {
        "Type": "notify",
        "NotifyAccess": "main",
        "Restart": "always",
        "RestartSec": "100ms",
        "StartLimitIntervalSec": "0",
        "FileDescriptorStoreMax": "16",
    }
    words = [f"--property={name}={value}" for name, value in properties.items()]
    words += [f"--setenv={name}={value}" for name, value in {"FDSTORE_MAX": "16", **environment}.items()]
    fleet.machine.run(["systemd-run", "--quiet", f"--unit={UNIT}", *words, "python3", SCRIPT, "relay"])


def end(fleet: Fleet, port: int, size: int, *options: object) -> Background:
    """An outer end; the one of the second port is there last."""
    fleet.machine.wait_until(f"ss -tlnH 'sport = {port}' | grep .")
    return fleet.machine.background(["python3", SCRIPT, "end", str(port), str(size), *map(str, options)])


@contextlib.contextmanager
def stream(fleet: Fleet, *sizes: int, options: tuple[object, ...] = ()) -> Iterator[list[Background]]:
    """Both outer ends of a stream, while they exchange so many bytes."""
    with end(fleet, NEAR, sizes[0], *options) as near, end(fleet, LINK, sizes[1], *options) as link:
        yield [near, link]


def assert_whole(ends: list[Background], *sizes: int) -> None:
    """Each has received exactly what the other has sent, and an orderly end."""
    outcomes = [running.finish() for running in ends]
    assert [status for status, _output, _errors in outcomes] == [0, 0], outcomes
    here, there = (json.loads(output) for _status, output, _errors in outcomes)
    said: dict[str, Any] = here | there
    assert not [name for name in said if "error" in name], (here, there)
    assert (here["sent"], there["sent"]) == sizes
    assert (there["received"], there["received_sha256"]) == (here["sent"], here["sent_sha256"])
    assert (here["received"], here["received_sha256"]) == (there["sent"], there["sent_sha256"])


def assert_nothing_left(fleet: Fleet) -> None:
    """Of the stream: the progress table stays."""
    fleet.wait_for(UNIT, "NFileDescriptorStore", "^1$")


@pytest.mark.slow
def test_both_ways_at_once_and_one_half_after_the_other(relay: Fleet) -> None:
    cursor = relay.machine.cursor()
    start(relay)
    for sizes in ((32 * MIB, 24 * MIB), (0, 5 * MIB), (5 * MIB, 1)):
        with stream(relay, *sizes) as ends:
            assert_whole(ends, *sizes)
        assert_nothing_left(relay)
        numbers = f"{sizes[0]} bytes to the peer, {sizes[1]} bytes from it"
        relay.wait_for_event(cursor, f"stream 1 ended: {numbers}", "-u", UNIT)


@pytest.mark.slow
def test_a_cut_is_passed_on_as_one(relay: Fleet) -> None:
    cursor = relay.machine.cursor()
    start(relay)
    for victim in (0, 1):
        with stream(relay, 64 * MIB, 64 * MIB, options=("--slow", MIB)) as ends:
            relay.wait_for(UNIT, "NFileDescriptorStore", "^2$")
            ends[victim].signal("KILL")
            _status, output, _errors = ends[1 - victim].finish()
        # What is on its way may be lost with the reset; but never is it an end in order.
        said = str(json.loads(output)).lower()
        assert "reset" in said or "cut off" in said
        who = ("near peer", "peer")[victim]
        relay.wait_for_event(cursor, f"stream 1 cut off by the {who} ", "-u", UNIT)
        assert_nothing_left(relay)


@pytest.mark.slow
def test_it_outlives_its_daemon_again_and_again(relay: Fleet) -> None:
    """Killed and restarted in the middle, with full buffers both ways."""
    cursor = relay.machine.cursor()
    start(relay)
    size = 16 * MIB
    with stream(relay, size, size, options=("--slow", MIB, "--hold", HOLD)) as ends:
        relay.wait_for(UNIT, "NFileDescriptorStore", "^2$")
        for how in ("kill", "restart", "kill"):
            before = relay.pid(UNIT)
            relay.machine.run(f"kill -KILL {before}" if how == "kill" else f"systemctl restart {UNIT}")
            relay.machine.wait_until(f"[[ $(systemctl show --value -p MainPID {UNIT}) != @(0|{before}) ]]")
            relay.wait_for(UNIT, "ActiveState", "^active$")
        relay.machine.run(f"touch {HOLD}")
        assert_whole(ends, size, size)
    relay.wait_for_event(cursor, "^resumed 1 stream of", "-u", UNIT)
    assert_nothing_left(relay)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_each_step(relay: Fleet, step: str) -> None:
    """Above all while the ends are passed on: twice close_notify, or none, would not be an orderly end."""
    relay.machine.run("rm -rf /run/shadow-steps; mkdir /run/shadow-steps")
    start(
        relay,
        PYTHONPATH="/srv/guest/steps",
        SHADOW_TEST_SHOT="/run/shadow-steps/shot",
        SHADOW_TEST_STEP=step,
    )
    with stream(relay, MIB, MIB) as ends:
        assert_whole(ends, MIB, MIB)
    relay.machine.run("[[ -e /run/shadow-steps/shot ]]")  # or the step was never reached
    assert_nothing_left(relay)
