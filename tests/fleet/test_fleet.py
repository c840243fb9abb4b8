"""Servers that join a fleet, leave it for a moment, or cannot."""

import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shadow.fleet.fleet import Fleet as OurFleet
from tests.support import CHECKOUT, DEADLINE, Authority, Tunnel, echo, exchange, serving, wait_for
from tests.support.engine import Members
from tests.support.peer import WELCOME
from tests.support.sites import Fleet, Site


def test_a_restart_is_nothing_that_the_others_notice_unless_the_robot_has_to_return(both: Fleet) -> None:
    one, two = both.sites
    with serving(echo) as service:
        client = one.tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        before = both.entry()
        assert before is not None
        assert before["s"] == "s1"
        one.daemon.stop()
        one.start()
        client.wait_for_log("connected to", 2)
        wait_for(lambda: (both.entry() or {}).get("n", 0) > before["n"], "the robot's next claim")
        with one.tunnel.visit() as visitor:
            assert exchange(visitor, b"x") == b"x"
        one.crash()
        one.start()
        client.wait_for_log("connected to", 3)
        both.wait_for_home(("s1", 3))
        assert (both.entry() or {})["i"] != before["i"]
    assert "ERROR" not in two.daemon.log


def test_a_reload_is_told_to_what_is_between_servers_and_to_who_passes_lists_on() -> None:
    told: list[str] = []
    between = SimpleNamespace(cut_off_revoked=lambda: told.append("between"))
    upkeep = SimpleNamespace(revoking=SimpleNamespace(look=lambda: told.append("revoking")))
    fleet: Any = SimpleNamespace(_between=between, _upkeep=upkeep)
    OurFleet.cut_off_revoked(fleet)
    assert told == ["between", "revoking"]


def test_two_servers_with_one_name(both: Fleet) -> None:
    third = Site(both, "s3")
    with third.tunnel:
        daemon = third.tunnel.daemon(third.tunnel.server_arguments(*both.options("s1")))
        assert daemon.process.wait(60) == 78
        assert "another server with --server-id=s1 is alive" in daemon.log
    assert both.sites[0].daemon.process.poll() is None


def test_who_cannot_join_says_why_in_one_line(fleet: Fleet, members: Members) -> None:
    (site, _), files, authority = fleet.sites, members.files(), fleet.authority
    robot = authority.robot("099")
    wrong = {
        f"--engine-ca={authority.ca} --engine-crt={robot[0]} --engine-key={robot[1]}": "it is the robots' CA",
        "--engine-ca=/nowhere": "engine's CA certificate /nowhere: No such file or directory",
        f"--engine-crt={robot[0]}": f"does not match certificate {robot[0]}",
        f"--peer-crt={robot[0]} --peer-key={robot[1]}": f"{robot[0]} is a robot's certificate; a peer needs",
        f"--engine-key={files.crt}": f"private key {files.crt}",
        "--engine=http://127.0.0.1:1": "is not https://HOST:PORT",
        "--server-id=a/b": "server id 'a/b'",
    }
    for words, complaint in wrong.items():
        daemon = site.tunnel.daemon(site.tunnel.server_arguments(*fleet.options("s1"), *words.split()))
        assert daemon.process.wait(60) in {2, 78}
        (line,) = [line for line in daemon.log.splitlines() if "shadow-server: " in line]
        assert complaint in line


def test_who_is_not_let_in_by_the_engine_serves_all_the_same(
    fleet: Fleet, members: Members, tmp_path: Path
) -> None:
    """A certificate of another CA: it says so, and what is there goes on."""
    stranger = Authority(tmp_path / "stranger", "Nobody's CA")
    crt, key = stranger.robot("x")
    both = tmp_path / "both.crt"
    both.write_bytes(stranger.ca.read_bytes() + members.files().ca.read_bytes())
    site = fleet.sites[0]
    site.start(f"--engine-crt={crt}", f"--engine-key={key}", f"--engine-ca={both}")
    site.daemon.wait_for_log("ERROR: the fleet's engine refuses us: .*does not accept our certificate")
    with site.robot():
        assert site.answer[0] == WELCOME


def test_who_is_alone_does_not_even_load_what_a_fleet_needs() -> None:
    """Not the library, which takes longer to import than all of ours, nor anything of ours on top of it."""
    code = "import shadow.cli.server, sys; print(*sys.modules)"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=CHECKOUT)
    loaded = set(done.stdout.split())
    assert "shadow.server.directory" in loaded
    assert not {name for name in loaded if name.startswith(("aiohttp", "shadow.fleet."))}
    assert "shadow.fleet" not in loaded


def test_a_fleet_needs_everything_or_nothing(tunnel: Tunnel) -> None:
    files = "--peer-crt, --peer-key, --engine-ca, --engine-crt, --engine-key"
    for words, complaint in (
        (["--fleet=f"], f"--fleet needs --server-id, --peer, --engine, {files} as well"),
        (["--server-id=a"], "--server-id without --fleet"),
        (["--peer=localhost:2223"], "--peer without --fleet"),
    ):
        daemon = tunnel.daemon(tunnel.server_arguments(*words))
        assert daemon.process.wait(60) == 2
        assert complaint in daemon.log


def test_the_others_are_told_where_to_reach_it(fleet: Fleet) -> None:
    one = fleet.sites[0]
    one.start()
    one.follow()
    live = wait_for(lambda: fleet.value("live/s1"), "the server's key")
    assert live["peer"] == f"127.0.0.1:{one.peer}"
    socket.create_connection(("127.0.0.1", one.peer), DEADLINE).close()


def test_a_server_looks_after_the_fleet(fleet: Fleet) -> None:
    """It compares what it knows with the engine, and removes what leads nowhere: the page has both tasks."""
    one = fleet.sites[0]
    one.start()
    one.follow()
    one.daemon.process.send_signal(signal.SIGUSR1)
    one.daemon.wait_for_log(r"task \S+: .*Audit\.run")
    one.daemon.wait_for_log(r"task \S+: .*Janitor\.run")
