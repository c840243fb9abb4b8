"""docs/DEBUGGING.md under systemd: the page, tracebacks on demand and of a daemon that hangs, the steps."""

import re

from .fleet import OPERATOR, Fleet

SERVER, CLIENT = "shadow-server.service", "shadow-client@011.service"
PAGE = "264e283f980d4ca7bcb5db78a52ac1d8"


def test_the_page_and_tracebacks(fleet: Fleet) -> None:
    fleet.start("011")
    with fleet.machine.background(fleet.ssh("cat"), user=OPERATOR) as session:
        assert session.ask(b"hello\n") == b"hello\n"
        cursor = fleet.machine.cursor()
        fleet.machine.run("systemctl kill -s USR1 shadow-server")
        fleet.wait_for_event(cursor, "thread MainThread at ", "-u", SERVER)
        page = fleet.machine.run(f"journalctl -o cat -u shadow-server MESSAGE_ID={PAGE}").stdout
        assert re.search(r"^server: 1 robot, 1 stream, kernel TLS$", page, re.M)
        assert re.search(r"^<Robot 011: \d+ standing by, 0 waiting, 0 starting, 1 running>$", page, re.M)
        assert re.search(r"<Visitor 1 of default, uid \d+, .*> has <Pump .*<KernelLink", page)
        fleet.machine.run("systemctl kill -s USR2 shadow-server")
        fleet.wait_for_event(cursor, 'File ".*/daemon/life.py", line [0-9]+ in run', "-u", SERVER)
        said = fleet.machine.run("journalctl -u shadow-server").stdout
        assert "most recent call first" in said
        assert "Active: active (running)" in fleet.machine.run("systemctl status shadow-server").stdout
        assert session.ask(b"still here\n") == b"still here\n"
    assert "robot 011 connected from" in fleet.machine.run("journalctl -u shadow-server ROBOT=011").stdout
    last = fleet.machine.run("journalctl -u shadow-server ROBOT=011 -n 1").stdout.splitlines()
    assert len([line for line in last if not line.startswith("--")]) == 1


def test_a_daemon_that_hangs_says_where(fleet: Fleet) -> None:
    """systemd ends it with SIGABRT when its watchdog was not fed; its streams go on."""
    fleet.start("011")
    before = fleet.pid(SERVER)
    with fleet.machine.background(fleet.ssh("cat"), user=OPERATOR) as session:
        assert session.ask(b"hello\n") == b"hello\n"
        cursor = fleet.machine.cursor()
        fleet.machine.run("systemctl kill -s ABRT shadow-server")
        fleet.wait_for_event(cursor, "Fatal Python error: Aborted", "-u", SERVER)
        fleet.wait_for_event(cursor, 'File ".*/daemon/life.py", line [0-9]+ in run', "-u", SERVER)
        fleet.wait_for_event(cursor, "resumed 1 stream", "-u", SERVER)
        assert fleet.pid(SERVER) != before
        assert session.ask(b"still here\n") == b"still here\n"


def test_steps(fleet: Fleet) -> None:
    fleet.settings("client@011", log_level="debug")
    cursor = fleet.machine.cursor()
    fleet.start("011")
    fleet.wait_for_event(cursor, "<Client 011: Connected", "-u", CLIENT, "-p", "debug")
