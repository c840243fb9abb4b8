"""Thousands of robots and a planned restart of their server."""

import json
import re
from collections.abc import Callable

import pytest

from .fleet import PORT, Fleet

SERVER = "shadow-server.service"
STREAMS = 50
SERVICE_PORT = 9000
MIB = 2**20
HOLD = "/run/hold"


def cpu_of_init(fleet: Fleet) -> float:
    """Seconds of CPU time that PID 1 has used."""
    fields = fleet.machine.run("cat /proc/1/stat").stdout.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def when(fleet: Fleet, cursor: str, pattern: str) -> float:
    """When a message of the server's came, by CLOCK_MONOTONIC."""
    (entry,) = (
        event for event in fleet.events(cursor, "-u", SERVER) if re.match(pattern, str(event["MESSAGE"]))
    )
    return int(entry["__MONOTONIC_TIMESTAMP"]) / 1e6


@pytest.mark.slow
@pytest.mark.timeout(1500, func_only=True)
@pytest.mark.parametrize("count", [250, 2000])
def test_thousands_of_robots_and_fifty_streams_notice_nothing(
    fleet: Fleet, count: int, record_property: Callable[[str, object], None]
) -> None:
    machine = fleet.machine
    fleet.settings("client", rhost="localhost", rport=PORT, service=f"data=127.0.0.1:{SERVICE_PORT}")
    # The crowd says nothing by itself, and takes its time to say who it is.
    fleet.settings("server", keepalive=3600, handshake_timeout=600)
    # Thousands of robots are left and taken up again within these times, on a machine that is not emulated.
    start, stop = (round(seconds * machine.slowness) for seconds in (90, 15))
    fleet.drop_in(SERVER, f"[Service]\nTimeoutStartSec={start}\nTimeoutStopSec={stop}\n")
    fleet.start("011")
    machine.wait_until("[[ -S /run/shadow-tunnel/data@011.sock ]]")
    crowd = ["bash", "-c", f"ulimit -n 8192; exec python3 /srv/guest/crowd.py {count} {PORT} /srv/fleet"]
    traffic = ["python3", "/srv/guest/traffic.py"]
    service = [*traffic, "serve", str(SERVICE_PORT), str(MIB)]
    visitors = [*traffic, "visit", "/run/shadow-tunnel/data@011.sock", str(MIB)]
    # None of them ends before the restart, however long it takes to begin them all.
    machine.run(["rm", "-f", HOLD])
    many = f"for _ in $(seq {STREAMS}); do {' '.join(visitors)} --hold {HOLD} & done; wait"
    with machine.background(crowd) as robots, machine.background(service) as serving:
        assert robots.process.stdout is not None
        assert robots.process.stdout.readline() == f"connected {count}\n".encode()
        machine.wait_until(f"(($(ls /run/shadow-tunnel/*.sock | wc -l) == {count + 2}))")
        with machine.background(["bash", "-c", many]) as visiting:
            fleet.wait_for(SERVER, "NFileDescriptorStore", f"^{STREAMS + 1}$")
            cursor, before = machine.cursor(), cpu_of_init(fleet)
            machine.run(["systemctl", "restart", SERVER], timeout=600)
            used = cpu_of_init(fleet) - before
            assert json.loads(robots.ask(b"ping\n")) == {"heard": count, "lost": 0}
            machine.run(["touch", HOLD])
            status, output, errors = visiting.finish(timeout=600)
        assert status == 0, errors
        ends = [json.loads(line) for line in output.splitlines()]
        assert serving.process.stdout is not None
        ends += [json.loads(serving.process.stdout.readline()) for _ in range(STREAMS)]
        assert {(end["sent"], end["received"]) for end in ends} == {(MIB, MIB)}, ends
        assert len({end[name] for end in ends for name in ("sent_sha256", "received_sha256")}) == 1
        fleet.wait_for(SERVER, "NFileDescriptorStore", "^1$")
    stopping = when(fleet, cursor, "stopping")
    streams = when(fleet, cursor, f"resumed {STREAMS} streams") - stopping
    robots_ = when(fleet, cursor, f"resumed {count + 1} sessions") - stopping
    measured = f"streams moved again after {streams:.1f} s, robots were back after {robots_:.1f} s"
    record_property("measured", f"{measured}, PID 1 used {used:.2f} s of CPU time")
