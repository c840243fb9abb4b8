"""What the relay relies on in the kernel: each fact on its own, on a real kernel, without Shadow.

Where Debian 12's kernel (6.1) and Debian 13's (6.12) differ, the table says so.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .qemu import Machine

GUEST = Path(__file__).parent / "guest"
SCRIPT = "/usr/lib/machine/kernel_tls.py"
CIPHERS = {
    "aes_128_gcm": (51, " cipher: aes-gcm-128"),
    "aes_256_gcm": (52, " cipher: aes-gcm-256"),
    "chacha20_poly1305": (54, ""),  # ss(8) of iproute2 6.1 and 6.15 has no name for it
}

Fact = Callable[..., Any]


@pytest.fixture(scope="module")
def fact(machine: Machine) -> Fact:
    """Runs a case of ``guest/kernel_tls.py`` and returns what it says."""
    machine.copy_to(GUEST, "/usr/lib/machine")
    machine.run("modprobe tls")

    def run(case: str, user: str | None = None) -> Any:
        return json.loads(machine.run(["python3", SCRIPT, case], user=user).stdout)[case]

    return run


@pytest.fixture
def without_module(machine: Machine) -> Iterator[None]:
    """For the length of a test the module is not loaded, nor does a daemon of an earlier test use it."""
    machine.run("systemctl stop 'shadow-server.*' 'shadow-client@*'", check=False)
    machine.wait_until("modprobe --remove tls || { ss -tanpoe state connected; false; }")
    yield
    machine.run("modprobe tls")


# --- the module ---


@pytest.mark.usefixtures("without_module")
def test_without_the_module_an_ordinary_user_is_told_enoent(fact: Fact) -> None:
    said = fact("ulp", user="nobody")
    assert said == {"connected": "ENOENT", "not connected": "ENOENT", "TLS_TX before keys": "ENOTSUP"}


@pytest.mark.usefixtures("without_module")
def test_root_loads_the_module_by_asking(fact: Fact) -> None:
    assert fact("ulp")["connected"] is None


def test_with_the_module_an_ordinary_user_may(fact: Fact) -> None:
    said = fact("ulp", user="nobody")
    assert said == {"connected": None, "not connected": "ENOTCONN", "TLS_TX before keys": "EBUSY"}


# --- data ---


@pytest.mark.parametrize("cipher", CIPHERS)
def test_round_trip(fact: Fact, cipher: str) -> None:
    number, name = CIPHERS[cipher]
    assert fact(f"round_trip_{cipher}") == {
        "there": True,
        "splice there": True,
        "back": True,
        "splice back": True,
        "tx": [0x0303, number],
        "rx": [0x0303, number],
        "ss": f"tcp-ulp-tls version: 1.2{name} rxconf: sw txconf: sw",
    }


EXACT = {"lengths": [16384, 16384, 16384], "lost": 0, "exact": True}
GONE = {"bytes": "", "recvmsg": "timed out"}  # the error was told once, and never again
FORGED = {"poll": ["POLLIN"], "recvmsg": "EBADMSG", "poll after": ["POLLIN", "POLLERR"]}
QUIET = {"recvmsg": "timed out", "poll after": []}

FACTS: dict[str, Any] = {
    # One call takes at most one record, however much there is.
    "splice_takes_one_record": [100, 16384, 200, 16384, 16384, 1, "EAGAIN"],
    "splice_of_less_than_a_record": {"lengths": [1000, 5000, 10384], "exact": True},
    # A full pipe costs nothing, and 17 free slots always take a record.
    "full_pipe": {"full": "EAGAIN", "emptied": 5000, "exact": True},
    "pipe_of_17_slots": EXACT,
    "short_pipe_five_slots_left": EXACT,
    "short_pipe_four_slots_left": EXACT,
    # O_NONBLOCK counts on the pipe, not on the socket.
    "splice_when_nothing_is_there": {
        "socket O_NONBLOCK": "blocks",
        "pipe O_NONBLOCK": "EAGAIN",
        "SPLICE_F_NONBLOCK": "EAGAIN",
    },
    "peek": {"peeked": "onetwo", "lengths": [3, 3], "taken": "onetwo"},
    "non_blocking_splice_is_exact": {"exact": True, "refused": True},
    # A record that is not data stops splice and recv, but stays until recvmsg fetches it.
    "control_record": {
        "data first": 6,
        "poll": ["POLLIN"],
        "splice": "EINVAL",
        "splice again": "EINVAL",
        "recv": "EIO",
        "recvmsg": [21, "0100"],
        "data after": 5,
        "bytes": "beforeafter",
    },
    # recvmsg runs records of data together, but never data and something else.
    "data_by_recvmsg": [[23, b"onetwo".hex()], [21, "0100"]],
    "handshake_record": {
        "poll": ["POLLIN"],
        "splice": ["EINVAL"] * 4,
        "bytes": "",
        "recvmsg": [22, "01000000"],
        "poll after": ["POLLIN"],  # the data behind it
    },
    "empty_alert": {
        "poll": ["POLLIN"],
        "splice": ["EINVAL"] * 4,
        "bytes": "",
        "recvmsg": [21, ""],
        "poll after": [],
    },
    # The end, with and without close_notify, reads as 0 for ever; recvmsg then names no record type.
    "fin_without_close_notify": {"splice": [4, 0, 0], "recv": "", "poll": ["POLLIN", "POLLRDHUP"]},
    "fin_after_close_notify": {
        "splice": "EINVAL",
        "recvmsg": [21, "0100"],
        "splice after": 0,
        "recvmsg after": [None, ""],
        "poll": ["POLLIN", "POLLRDHUP"],
    },
    "half_close": {"alert": [21, "0100"], "back": "still here"},
    # After the error of a reset has been told, splice says 0, as if it were an end.
    "reset": {
        "poll": ["POLLIN", "POLLRDHUP", "POLLHUP", "POLLERR"],
        "splice": [4, "ECONNRESET", 0],
        "send": 1,  # and this byte is taken, and goes nowhere
    },
    # An empty record reads as 0 too, each one. recv and recvmsg pass over it.
    "made_record": {"poll": ["POLLIN"], "splice": [5, *["EAGAIN"] * 3], "bytes": "hello", **QUIET},
    "empty_record": {"poll": ["POLLIN"], "splice": [0, *["EAGAIN"] * 3], "bytes": "", **QUIET},
    "empty_record_then_data": {
        "poll": ["POLLIN"],
        "splice": [0, 5, "EAGAIN", "EAGAIN"],
        "bytes": "hello",
        **QUIET,
    },
    "empty_records_between_data": {"poll": ["POLLIN"], "splice": [2, 0, 0, 3], "bytes": "hello", **QUIET},
    "empty_record_by_recvmsg": [[23, b"hello".hex()], "timed out", "timed out"],
    "empty_record_alone_by_recvmsg": "timed out",
    "empty_record_peeked": {"peeked": "onetwo", "splice": [3, 0, 3, "EAGAIN"], "bytes": "onetwo"},
    # What tells them apart is recvmsg with MSG_PEEK: no record type and no byte is the end, and nothing else.
    "empty_record_or_end": {
        "end": [0, [[], ""], [[], ""], [None, ""]],
        "empty, data": [0, [[23], "h"], [[23], "h"], [23, b"hello".hex()]],
        "empty, data, end": [0, [[23], "h"], [[23], "h"], [23, b"hello".hex()]],
        "empty, end": [0, [[], ""], [[], ""], [None, ""]],
        "empty, alert, end": [0, [[21], "\x01"], [[21], "\x01"], [21, "0100"]],
    },
    # A record cut off by the end is lost without a word.
    "partial_record_then_fin": {
        "poll": ["POLLIN", "POLLRDHUP"],
        "splice": [5, 0, 0, 0],
        "bytes": "hello",
        "recvmsg": [None, ""],
        "poll after": ["POLLIN", "POLLRDHUP"],
    },
    # Forged and replayed records: an error that stays.
    "forged_record": {"splice": ["EBADMSG"] * 4, "bytes": "", **FORGED},
    "repeated_record": {"splice": [5, *["EBADMSG"] * 3], "bytes": "hello", **FORGED},
}

TRIXIE: dict[str, Any] = {
    "partial_record": {"poll": [], "splice": ["EAGAIN"] * 4, "bytes": "", **QUIET},
    # What is no record at all: an error that is told once. Who does not listen waits for ever.
    "too_long_record": {
        "poll": ["POLLERR"],
        "splice": ["EMSGSIZE", *["EAGAIN"] * 3],
        "poll after": [],
        **GONE,
    },
    "wrong_version_record": {
        "poll": ["POLLERR"],
        "splice": ["EINVAL", *["EAGAIN"] * 3],
        "poll after": [],
        **GONE,
    },
}

BOOKWORM: dict[str, Any] = {
    # poll says that there is something to read, and there is not: level-triggered polling would spin.
    "partial_record": {
        "poll": ["POLLIN"],
        "splice": ["EAGAIN"] * 4,
        "bytes": "",
        "recvmsg": "timed out",
        "poll after": ["POLLIN"],
    },
    "too_long_record": {
        "poll": ["POLLIN", "POLLERR"],
        "splice": ["EMSGSIZE", *["EAGAIN"] * 3],
        "poll after": ["POLLIN"],
        **GONE,
    },
    "wrong_version_record": {
        "poll": ["POLLIN", "POLLERR"],
        "splice": ["EINVAL", *["EAGAIN"] * 3],
        "poll after": ["POLLIN"],
        **GONE,
    },
}


@pytest.mark.parametrize("case", FACTS)
def test_fact(fact: Fact, case: str) -> None:
    assert fact(case) == FACTS[case]


@pytest.mark.parametrize("case", TRIXIE)
def test_fact_of_the_release(fact: Fact, case: str, release: str) -> None:
    assert fact(case) == {"trixie": TRIXIE, "bookworm": BOOKWORM}[release][case]


@pytest.mark.parametrize("case", ["short_pipe_one_slot", "short_pipe_one_slot_left"])
def test_a_short_pipe_takes_bytes_in_order(fact: Fact, case: str) -> None:
    """With less room than a record, kernels up to 6.12.107 and 6.1.176 drop the record's last 13 bytes.

    Newer ones keep them. Either way the relay must not splice into a pipe that is short of room.
    """
    said = fact(case)
    assert said["lost"] in {0, 3 * 13}
    assert sum(said["lengths"]) + said["lost"] == 3 * 16384


# --- speed ---


@pytest.mark.parametrize("case", ["throughput_send_and_receive", "throughput_splice"])
def test_throughput(fact: Fact, case: str, record_property: Callable[[str, object], None]) -> None:
    """Rough figures of an emulated machine, to be read with ``-rP``; only that bytes move is checked."""
    said = fact(case)
    for name, rate in said.items():
        record_property(f"{case} {name} MiB/s", rate)
    print(case, said)  # noqa: T201
    assert said["AES-128-GCM"] > 0
