"""What an operator finds at three in the morning: journalctl with our fields and explanations."""

import json

from .fleet import Fleet

SERVER, CLIENT = "shadow-server.service", "shadow-client@011.service"


def visit(fleet: Fleet) -> str:
    """Robots that come, a visitor who comes and goes; the journal's cursor from before."""
    cursor = fleet.machine.cursor()
    fleet.start("011", "012")
    fleet.machine.run(fleet.ssh("true"), user="alice")
    for unit in (SERVER, CLIENT):
        fleet.wait_for_event(cursor, "stream .* ended", "ROBOT=011", "-u", unit)
    return cursor


def test_everything_about_one_robot_and_nothing_of_another(fleet: Fleet) -> None:
    cursor = visit(fleet)
    said = fleet.machine.journal("ROBOT=011", after=cursor)
    for words in ("robot 011 connected from", "stream", "started", "ended"):
        assert words in said
    assert "012" not in said
    both = {event["_SYSTEMD_UNIT"] for event in fleet.events(cursor, "ROBOT=011")}
    assert both == {SERVER, CLIENT}


def test_the_fields_of_a_stream_are_the_same_on_both_sides(fleet: Fleet) -> None:
    cursor = visit(fleet)
    alice = fleet.machine.run("id -u alice").stdout.strip()
    ends = [event for event in fleet.events(cursor, "ROBOT=011") if " ended" in event["MESSAGE"]]
    assert {event["_SYSTEMD_UNIT"] for event in ends} == {SERVER, CLIENT}
    (stream,) = {event["STREAM"] for event in ends}
    assert stream
    (on_server,) = (event for event in ends if event["_SYSTEMD_UNIT"] == SERVER)
    assert on_server["VISITOR_UID"] == alice
    for event in ends:
        assert len(event["MESSAGE_ID"]) == 32
        assert event["PRIORITY"] == "6"
        assert event["SYSLOG_IDENTIFIER"] in {"shadow-server", "shadow-client"}


def test_the_units_log_as_json(fleet: Fleet) -> None:
    visit(fleet)
    said = fleet.machine.run("journalctl -u shadow-client@011 -o json --no-pager").stdout
    ours = [event for event in map(json.loads, said.splitlines()) if event.get("ROBOT")]
    assert ours
    assert {event["ROBOT"] for event in ours} == {"011"}


def test_every_event_is_explained(fleet: Fleet) -> None:
    cursor = visit(fleet)
    for event in fleet.events(cursor, "-u", SERVER, "-u", CLIENT):
        if "MESSAGE_ID" not in event or event["SYSLOG_IDENTIFIER"] == "systemd":
            continue
        said = fleet.machine.run(
            [
                "journalctl",
                "--no-pager",
                "-x",
                f"--cursor={cursor}",
                f"MESSAGE_ID={event['MESSAGE_ID']}",
            ]
        ).stdout
        assert "░░ Defined-By: Shadow" in said, said
        assert "@" not in "".join(line for line in said.splitlines() if line.startswith("░░ Subject")), said


def test_the_log_has_no_secrets(fleet: Fleet) -> None:
    cursor = visit(fleet)
    said = fleet.machine.journal("-u", SERVER, "-u", CLIENT, after=cursor)
    keys = fleet.machine.run("grep -hv -- ----- /etc/shadow-tunnel/*.key").stdout.split()
    assert keys
    assert not [line for line in keys if line in said]


def test_a_wrong_clock_is_named_and_waited_for(fleet: Fleet) -> None:
    library = fleet.machine.run("ls /usr/lib/*/faketime/libfaketime.so.1").stdout.strip()
    clock = "/run/shadow-test-clock"  # libfaketime reads it again each time
    fleet.machine.write(clock, "@1970-01-01 00:10:00\n")
    settings = (
        f"LD_PRELOAD={library} FAKETIME_TIMESTAMP_FILE={clock} FAKETIME_NO_CACHE=1 "
        "FAKETIME_DONT_FAKE_MONOTONIC=1"
    )
    fleet.drop_in(CLIENT, f"[Service]\nEnvironment={settings}\n")
    cursor = fleet.machine.cursor()
    fleet.machine.run("systemctl start shadow-server.socket; systemctl start --no-block shadow-client@011")
    fleet.wait_for_event(cursor, "clock", "-u", CLIENT)
    (first, *_) = (
        event["MESSAGE"] for event in fleet.events(cursor, "-u", CLIENT) if "clock" in event["MESSAGE"]
    )
    assert "1970" in first
    assert fleet.show(CLIENT, "ActiveState") in {"active", "activating"}  # it has not given up
    fleet.machine.write(clock, "+0\n")
    fleet.wait_for_robot()
