"""A daemon is killed at every step of a stream's life: what was protected goes on, all else ends in order.

guest/steps/sitecustomize.py shoots it, at the very call. Neither side is ever left hanging, the service
manager is left with nothing, and neither daemon leaks a descriptor.
"""

import json
from collections.abc import Iterator

import pytest

from .fleet import PORT, Fleet

SERVER, CLIENT = "shadow-server.service", "shadow-client@011.service"
SERVICE_PORT = 9000
SIZE = 2**20

# The step; before or after which call; and what becomes of the stream.
SERVER_STEPS = {
    "accepted": ("before shadow.server.visitors Visitors came", "ended"),
    "START sent": ("after shadow.server.visitors Visitors expect_answer", "ended"),
    "STARTED received": ("before shadow.server.visitors Visitors _start_answered", "ended"),
    "bundle stored": ("after shadow.relay.durable DurableStreams keep", "whole"),
    "first byte up": ("after shadow.relay.splice PlainToLink drain", "whole"),
    "first byte down": ("after shadow.relay.splice LinkToPlain drain", "whole"),
    "end heard": ("before shadow.relay.flow Flow end", "whole"),
    "half-closed": ("after shadow.relay.flow Flow end", "whole"),
    "end to be passed up": ("before shadow.relay.splice PlainToLink finish", "whole"),
    "end passed up": ("after shadow.relay.splice PlainToLink finish", "whole"),
    "end to be passed down": ("before shadow.relay.splice LinkToPlain finish", "whole"),
    "end passed down": ("after shadow.relay.splice LinkToPlain finish", "whole"),
    "ended": ("before shadow.relay.durable DurableStreams ended", "whole"),
}
CLIENT_STEPS = {
    "START received": ("before shadow.client.services Services connect", "ended"),
    "service connected": ("before shadow.client.services Services _begin_stream", "ended"),
    "STARTED sent": ("before shadow.relay.pool Relay make", "ended"),
} | {step: how for step, how in SERVER_STEPS.items() if how[1] == "whole"}


@pytest.fixture
def data(fleet: Fleet) -> Iterator[Fleet]:
    """A robot whose second service exchanges a few bytes with each visitor."""
    fleet.settings("client", rhost="localhost", rport=PORT, service=f"data=127.0.0.1:{SERVICE_PORT}")
    fleet.settings("server", keepalive=10)
    fleet.start("011")
    wait_until_settled(fleet)
    yield fleet
    fleet.machine.run("rm -rf /run/shadow-steps")


def wait_until_settled(fleet: Fleet) -> None:
    """The robot is connected, its channels stand by, and nothing is kept but the progress tables."""
    fleet.wait_for(CLIENT, "StatusText", "^Connected to .* 0 streams")
    fleet.machine.wait_until(f"(($(ss -tnH state established 'sport = {PORT}' | wc -l) == 3))")
    for unit in (SERVER, CLIENT):
        fleet.wait_for(unit, "NFileDescriptorStore", "^1$")


def descriptors(fleet: Fleet) -> list[str]:
    """How many descriptors each daemon has open."""
    pids = [fleet.pid(unit) for unit in (SERVER, CLIENT)]
    return [fleet.machine.run(f"ls /proc/{pid}/fd | wc -l").stdout.strip() for pid in pids]


def arm(fleet: Fleet, unit: str, step: str) -> None:
    """Have the unit's daemon shot at this step."""
    fleet.machine.run("rm -rf /run/shadow-steps; install -d -o shadow-tunnel /run/shadow-steps")
    fleet.drop_in(
        unit,
        "[Service]\nRestartSec=100ms\nRestartSteps=0\nReadWritePaths=/run/shadow-steps\n"
        "Environment=PYTHONPATH=/srv/guest/steps SHADOW_TEST_SHOT=/run/shadow-steps/shot\n"
        f'Environment="SHADOW_TEST_STEP={step}"\n',
    )
    fleet.machine.run(["systemctl", "restart", unit])
    wait_until_settled(fleet)


def outcome(fleet: Fleet) -> str:
    """Visit once; ``whole`` or ``ended``. Both ends must come to an end by themselves."""
    serve = ["python3", "/srv/guest/traffic.py", "serve", str(SERVICE_PORT), str(SIZE)]
    with fleet.machine.background(serve) as service:
        fleet.machine.wait_until(f"ss -tlnH 'sport = {SERVICE_PORT}' | grep .")
        here = fleet.traffic("visit", "/run/shadow-tunnel/data@011.sock", SIZE, timeout=60)
        fleet.machine.wait_until("[[ -e /run/shadow-steps/shot ]]")  # or the step was never reached
        fleet.machine.wait_until(f"! ss -tnH state established 'sport = {SERVICE_PORT}' | grep .", timeout=60)
        if here.get("received") != SIZE:
            return "ended"
        assert service.process.stdout is not None
        there = json.loads(service.process.stdout.readline())
    assert not (here.keys() | there.keys()) & {"send_error", "receive_error"}, (here, there)
    assert (there["received"], there["received_sha256"]) == (here["sent"], here["sent_sha256"])
    assert (here["received"], here["received_sha256"]) == (there["sent"], there["sent_sha256"])
    return "whole"


@pytest.mark.slow
@pytest.mark.timeout(1500, func_only=True)
@pytest.mark.parametrize(("unit", "steps"), [(SERVER, SERVER_STEPS), (CLIENT, CLIENT_STEPS)])
def test_a_kill_at_every_step(data: Fleet, unit: str, steps: dict[str, tuple[str, str]]) -> None:
    before = descriptors(data)
    outcomes = {}
    for name, (call, _wanted) in steps.items():
        arm(data, unit, call)
        outcomes[name] = outcome(data)
        wait_until_settled(data)
        assert descriptors(data) == before, name
    assert outcomes == {name: wanted for name, (_call, wanted) in steps.items()}
