"""Bytes through the units' tunnel, with kernel TLS: all of them, in order, and the end as it was meant."""

import json
from typing import Any

import pytest

from .fleet import Fleet
from .qemu import Background

SERVICE_PORT = 9000
SOCKET = "/run/shadow-tunnel/data@011.sock"
MIB = 2**20


@pytest.fixture
def data(fleet: Fleet) -> Fleet:
    """A robot with a second service."""
    fleet.settings("client", rhost="localhost", rport=2222, service=f"data=127.0.0.1:{SERVICE_PORT}")
    fleet.start("011")
    fleet.machine.wait_until(f"[[ -S {SOCKET} ]]")
    return fleet


def serve(fleet: Fleet, size: int, *options: object) -> Background:
    words = ["python3", "/srv/guest/traffic.py", "serve", str(SERVICE_PORT), str(size), *map(str, options)]
    service = fleet.machine.background(words)
    fleet.machine.wait_until(f"ss -tlnH 'sport = {SERVICE_PORT}' | grep .")
    return service


def counted(service: Background) -> dict[str, Any]:
    assert service.process.stdout is not None
    said: dict[str, Any] = json.loads(service.process.stdout.readline())
    return said


def assert_whole(here: dict[str, Any], there: dict[str, Any], sizes: tuple[int, int]) -> None:
    """Each end has received what the other has sent, and an orderly end after it."""
    assert not {name for end in (here, there) for name in end if "error" in name}, (here, there)
    assert (here["sent"], there["sent"]) == sizes
    assert (there["received"], there["received_sha256"]) == (here["sent"], here["sent_sha256"])
    assert (here["received"], here["received_sha256"]) == (there["sent"], there["sent_sha256"])


@pytest.mark.slow
def test_200_mib_both_ways_at_once(data: Fleet) -> None:
    with serve(data, 200 * MIB) as service:
        visitor = data.traffic("visit", SOCKET, 200 * MIB)
        assert_whole(visitor, counted(service), (200 * MIB, 200 * MIB))


def test_many_small_writes(data: Fleet) -> None:
    with serve(data, 100_000) as service:
        visitor = data.traffic("visit", SOCKET, 300_000, "--chunk", 7)
        assert_whole(visitor, counted(service), (300_000, 100_000))


@pytest.mark.slow
def test_a_slow_reader_gets_everything_and_holds_up_nobody(data: Fleet) -> None:
    slow_words = ["python3", "/srv/guest/traffic.py", "visit", SOCKET, "1000", "--slow", str(4 * MIB)]
    with serve(data, 24 * MIB) as service:
        with data.machine.background(slow_words, user="alice") as slow:
            quick = data.traffic("visit", SOCKET, 1000)
            assert slow.process.poll() is None  # the quick one came later and was done first
            assert_whole(quick, counted(service), (1000, 24 * MIB))
            status, output, _errors = slow.finish()
        assert status == 0
        assert_whole(json.loads(output), counted(service), (1000, 24 * MIB))


def test_an_answer_that_comes_after_the_end_of_the_question(data: Fleet) -> None:
    line = f"socat TCP-LISTEN:{SERVICE_PORT},bind=127.0.0.1,reuseaddr,fork EXEC:sha256sum"
    with data.machine.background(line):
        data.machine.wait_until(f"ss -tlnH 'sport = {SERVICE_PORT}' | grep .")
        for size in (0, 1, 5 * MIB):
            ours = data.machine.run(f"head -c {size} /dev/zero | sha256sum").stdout
            line = f"head -c {size} /dev/zero | socat -t 60 - UNIX-CONNECT:{SOCKET}"
            assert data.machine.run(line, user="alice").stdout == ours


def test_an_abort_of_the_service_is_no_end_of_file(data: Fleet) -> None:
    cursor = data.machine.cursor()
    with serve(data, 0, "--abort", MIB) as service:
        visitor = data.traffic("visit", SOCKET, 64 * MIB)
        assert MIB <= counted(service)["received"] < 64 * MIB
    assert visitor["sent"] < 64 * MIB
    assert "send_error" in visitor
    data.wait_for_event(cursor, "stream .* cut off by the", "ROBOT=011", "-u", "shadow-client@011")
    data.wait_for_event(cursor, "stream .* cut off by the", "ROBOT=011", "-u", "shadow-server")


def test_an_abort_of_the_visitor_is_no_end_of_file(data: Fleet) -> None:
    words = ["python3", "/srv/guest/traffic.py", "visit", SOCKET, str(64 * MIB), "--slow", "1000"]
    with serve(data, 64 * MIB) as service:
        with data.machine.background(words, user="alice") as visitor:
            # Bytes that it has not read: without them the end of a unix socket is an end of file.
            unread = "ss -xH src '*/data@011.sock' | awk '$2 == \"ESTAB\" && $4 > 0 {n++} END {exit !n}'"
            data.machine.wait_until(unread)
            visitor.signal("KILL")
        there = counted(service)
    assert "reset" in there.get("receive_error", "").lower() + there.get("send_error", "").lower(), there


# The tests of the modules that touch the kernel, where it has TLS. Elsewhere they run on OpenSSL alone.
MODULES = (
    "relay/test_pool",
    "relay/test_splice",
    "relay/test_two_links",
    "transport/test_handshake",
    "transport/test_link",
)


@pytest.mark.slow
def test_the_modules_own_tests_on_kernel_tls(fleet: Fleet) -> None:
    from .package import CHECKOUT  # noqa: PLC0415

    there = "/srv/checkout"
    for name in ("bench", "tests", "pyproject.toml"):
        fleet.machine.copy_to(CHECKOUT / name, f"{there}/{name}")
    fleet.machine.run("modprobe tls")
    files = [f"tests/{name}.py" for name in MODULES]
    # As anybody: what is tested needs no privilege.
    fleet.machine.run(f"chmod -R a+rX {there}")
    options = "-q -n 2 --durations=5 -p no:cacheprovider --basetemp=/tmp/tests"
    # Hypothesis keeps its examples elsewhere: beside the tests nobody may write.
    environment = "HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis"
    command = f"cd {there} && {environment} python3 -m pytest {options} {' '.join(files)} 2>&1"
    done = fleet.machine.run(command, timeout=500, check=False, user="alice")
    assert done.returncode == 0, done.stdout[-5000:]
    assert "skipped" not in done.stdout.splitlines()[-1]
