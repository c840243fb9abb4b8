"""What people see: tables that line up, spans of time, sizes, and colours only where they are wanted."""

import datetime as dt
import sys
from typing import Any

import pytest

from shadow.ctl import tables

ROBOT: dict[str, Any] = {
    "name": "011", "connected": True, "peer": "[::1]:40312", "seconds": 7512.3, "services": ["", "web"],
    "suite": "ECDHE-ECDSA-AES128-GCM-SHA256", "kernelTls": True, "serial": "0" * 40, "software": "crab 1",
    "certificateEnds": "2100-01-02T03:04:05+00:00", "standbys": 2, "waiting": 0, "streams": 1,
}  # fmt: skip
GONE = {
    "name": "robot-2", "connected": False, "services": [], "standbys": 0, "waiting": 0, "streams": 1,
}  # fmt: skip
ELSEWHERE: dict[str, Any] = {
    "name": "012", "connected": True, "server": "s2", "peer": "192.0.2.7:3", "seconds": 61, "services": [""],
    "serial": "0c", "standbys": 0, "waiting": 0, "streams": 2,
}  # fmt: skip
SERVERS: list[dict[str, Any]] = [
    {
        "name": f"s{number}", "here": number == 2, "live": number < 4, "draining": number == 3,
        "software": "crab 1" if number < 4 else "", "peer": "h:2223" if number < 4 else "", "robots": number,
    }
    for number in (1, 2, 3, 4)
]  # fmt: skip
STREAM: dict[str, Any] = {
    "id": "1f", "robot": "011", "service": "", "uid": 0, "pid": 4711, "seconds": 61, "bytesToRobot": 1000,
    "bytesFromRobot": 1234567890, "suite": "ECDHE-ECDSA-AES128-GCM-SHA256", "kernelTls": True,
    "protected": True,
}  # fmt: skip


def test_robots() -> None:
    assert tables.robots([ROBOT, GONE]).splitlines() == [
        "ROBOT    FROM         FOR      SERVICES     STREAMS  TLS",
        "011      [::1]:40312  2h 5min  default,web  1        kernel",
        "robot-2  -            -        -            1        -",
        "",
        "1 robot",
    ]


def test_robots_of_a_fleet() -> None:
    here = {**ROBOT, "server": "s1"}
    assert tables.robots([here, ELSEWHERE, GONE]).splitlines() == [
        "ROBOT    SERVER  FROM         FOR      SERVICES     STREAMS  TLS",
        "011      s1      [::1]:40312  2h 5min  default,web  1        kernel",
        "012      s2      192.0.2.7:3  1min 1s  default      2        -",
        "robot-2  -       -            -        -            1        -",
        "",
        "2 robots",
    ]


def test_a_robot_at_another_server() -> None:
    assert tables.robot({"robot": ELSEWHERE, "streams": [STREAM]}).splitlines()[:5] == [
        "● 012 - connected to server s2 from 192.0.2.7:3 for 1min 1s",
        "     Services: default",
        "  Certificate: 0c",
        "         More: only server s2 knows; below: visitors from here",
        "",
    ]
    gone = tables.robot({"robot": {**ELSEWHERE, "connected": False}, "streams": []})
    assert gone == "○ 012 - not connected; it was at server s2, which is gone\n\n0 streams"


def test_a_robot_of_which_its_server_has_told_everything() -> None:
    facts = {**ROBOT, "server": "s2"}
    first = tables.robot({"robot": facts, "streams": []}).splitlines()[0]
    assert first == f"● {ROBOT['name']} - connected to server s2 from {ROBOT['peer']} for 2h 5min"


def test_streams_of_a_fleet_are_shown_with_the_server_whose_they_are() -> None:
    lines = tables.streams([{**STREAM, "at": "s2", "user": "al\x1bice", "server": "s1"}, STREAM]).splitlines()
    assert lines[0].split()[:2] == ["STREAM", "SERVER"]
    assert [line.split()[1] for line in lines[1:3]] == ["s2", "-"]
    assert "al?ice@s1" in lines[1]
    assert "SERVER" not in tables.streams([STREAM])


def test_servers() -> None:
    table = [
        "SERVER  STATE     ROBOTS  PEER    SOFTWARE",
        "s1      live      1       h:2223  crab 1",
        "s2      live      2       h:2223  crab 1, this one",
        "s3      draining  3       h:2223  crab 1",
        "s4      gone      4       -       -",
        "",
        "3 servers",
    ]
    assert tables.servers(SERVERS).splitlines() == table
    facts = {"version": "1", "status": "", "streams": 0, "protected": 0, "revoked": 0, "terms": []}
    text = tables.server({**facts, "server": "s2"}, SERVERS).splitlines()
    assert text[-8:] == ["", *table]
    assert text[-9] == "      Fleet: server s2, 6 robots in all"


@pytest.mark.parametrize(
    ("progress", "state"),
    [
        ({}, "draining"),
        ({"visited": 0}, "draining"),
        ({"visited": 0, "ends": 61}, "draining"),
        ({"visited": 0, "ends": 61, "robots": 0}, "drained"),
        ({"robots": 0}, "draining"),
        ({"visited": 3}, "draining, 3 robots with streams left"),
        ({"visited": 3, "robots": 0}, "draining, 3 robots with streams left"),
        ({"visited": 1, "ends": 725}, "draining, 1 robot with streams left, ends in 12min 5s"),
        ({"draining": False, "surplus": 90}, "live, 90 robots too many"),
    ],
)
def test_a_server_that_sends_robots_away(progress: dict[str, Any], state: str) -> None:
    line = tables.servers([{**SERVERS[2], **progress}]).splitlines()[1]
    assert line.split("  ")[3].strip() == state


def test_nobody() -> None:
    assert tables.robots([]) == "0 robots"
    assert tables.streams([]) == "0 streams"


def test_streams() -> None:
    head, line, *_rest = tables.streams(
        [STREAM, {**STREAM, "protected": False, "kernelTls": False}]
    ).splitlines()
    assert head.split() == ["STREAM", "ROBOT", "SERVICE", "USER", "PID", "FOR", "TO", "FROM", "TLS"]
    assert line.split() == [
        "1f", "011", "default", "root", "4711", "1min", "1s", "1000B", "1.1G", "kernel,", "kept",
    ]  # fmt: skip
    assert head.index("TLS") == line.index("kernel")


@pytest.mark.parametrize(("user", "shown"), [("alice", "alice@server2"), ("", "0@server2")])
def test_a_visitor_at_another_server_is_no_user_of_this_one(user: str, shown: str) -> None:
    """Here, uid 0 would be root."""
    line = tables.streams([{**STREAM, "user": user, "server": "server2"}]).splitlines()[1]
    assert line.split()[3] == shown


def test_one_robot() -> None:
    until = dt.datetime.now(dt.UTC) + dt.timedelta(days=12, hours=1)
    robot = {**ROBOT, "certificateEnds": until.isoformat()}
    text = tables.robot({"robot": robot, "streams": [STREAM]})
    assert text.startswith(
        "● 011 - connected from [::1]:40312 for 2h 5min\n     Software: crab 1\n     Servi"
    )
    assert f"until {until:%Y-%m-%d}, 12 days from now\n" in text
    assert "ECDHE-ECDSA-AES128-GCM-SHA256, by the kernel" in text
    assert text.endswith("1 stream")
    text = tables.robot({"robot": GONE, "streams": []})
    assert text == "○ robot-2 - not connected, but some streams of it go on\n\n0 streams"


def test_a_robot_whose_certificate_has_expired() -> None:
    robot = {**ROBOT, "certificateEnds": "2000-01-02T03:04:05+00:00"}
    assert tables.robots([robot]).splitlines()[1].endswith("kernel, certificate EXPIRED")
    assert "until 2000-01-02, EXPIRED: no visitor gets through\n" in tables.robot(
        {"robot": robot, "streams": []}
    )


def test_the_server() -> None:
    term = {"what": "certificate a.crt", "until": "2030-01-02T03:04:05+00:00", "days": 1}
    facts = {"version": "1", "status": "fine", "streams": 3, "protected": 2, "revoked": 0, "terms": [term]}
    assert tables.server(facts).splitlines() == [
        "● shadow-server 1",
        "     Status: fine",
        "    Streams: 3, 2 of them would survive a restart",
        "    Revoked: 0 certificates",
        "       Ends: 2030-01-02, in 1 day: certificate a.crt",
    ]
    for lists, words in ("", ""), ("2", ", by list 2"), ("2 of 'CN=\x1b'", ", by list 2 of 'CN=?'"):
        line = tables.server(facts | {"lists": lists}).splitlines()[3]
        assert line == f"    Revoked: 0 certificates{words}"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0s"), (-5, "0s"), (59.9, "59s"), (60, "1min"), (3661, "1h 1min"), (90061, "1d 1h")],
)
def test_spans(seconds: float | None, text: str) -> None:
    assert tables._ago(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1023, "1023B"), (1024, "1.0K"), (1536, "1.5K"), (2**30, "1.0G"), (2**52, "4096.0T")],
)
def test_sizes(size: int, text: str) -> None:
    assert tables._size(size) == text


def test_a_user_without_a_name() -> None:
    assert tables._user(4_000_000_000) == "4000000000"


def test_a_peers_own_words_stay_words() -> None:
    assert "\033" not in tables.robots([{**ROBOT, "peer": "\033[2J"}])
    assert "\033" not in tables.event({"message": "\033[2J", "priority": 6})


def test_colours_only_on_a_terminal_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    event = {"message": "x", "priority": 3}
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert tables.event(event) == "x"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert tables.event(event) == "\033[31mx\033[0m"
    assert tables.event({**event, "priority": 4}) == "\033[1mx\033[0m"
    assert tables.event({**event, "priority": 6}) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert tables.event(event) == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert tables.event(event) == "x"
