"""Servers that are one fleet: real ones, with a real engine."""

import base64
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shadow.fleet.keys import Keys
from tests.support import CHECKOUT, Authority, Daemon, Tunnel, echo, exchange, serving, wait_for
from tests.support.engine import Members, b64
from tests.support.peer import REFUSED, WELCOME, Peer, connect

NAME = "011"


class Site:
    """One server of the fleet, at which robots land."""

    def __init__(self, fleet: "Fleet", name: str) -> None:
        self.fleet, self.name = fleet, name
        folder = fleet.folder / name
        folder.mkdir()
        self.tunnel = Tunnel(fleet.authority, folder)
        self.daemon: Daemon

    def start(self, *more: str) -> None:
        self.daemon = self.tunnel.start_server(*self.fleet.options(self.name), *more)

    def follow(self) -> None:
        self.daemon.wait_for_log("following the fleet's engine")

    def crash(self) -> None:
        self.daemon.process.kill()
        self.daemon.process.wait()

    def robot(self, boot: str = "b007", attempt: int = 1) -> "contextlib.AbstractContextManager[Peer]":
        peer = connect(self.tunnel, NAME)
        self.answer = peer.hello(NAME, boot=boot, attempt=attempt)
        return peer


class Fleet:
    """Some servers, and the engine where they meet."""

    def __init__(self, authority: Authority, members: Members, folder: Path, name: str) -> None:
        self.authority, self.members, self.folder, self.name = authority, members, folder, name
        self.sites = [Site(self, f"s{number}") for number in (1, 2)]

    def options(self, server: str) -> list[str]:
        files = self.members.files()
        engine = ",".join(f"https://{endpoint}" for endpoint in self.members.endpoints)
        return [
            f"--fleet={self.name}", f"--server-id={server}", f"--engine={engine}",
            f"--engine-ca={files.ca}", f"--engine-crt={files.crt}", f"--engine-key={files.key}",
        ]  # fmt: skip

    def ask(self, path: str, **body: Any) -> Any:
        return self.members.ask(self.members.members[0], path, body)

    def entry(self, name: str = NAME) -> dict[str, Any] | None:
        found = self.ask("kv/range", key=b64(f"/shadow/{self.name}/r/{name}".encode())).get("kvs")
        if not found:
            return None
        value: dict[str, Any] = json.loads(base64.b64decode(found[0]["value"]))
        return value

    def home(self, name: str = NAME) -> tuple[str, int] | None:
        """At which server the engine has a robot, and by which attempt."""
        entry = self.entry(name)
        return None if entry is None else (entry["s"], entry["n"])

    def wait_for_home(self, home: tuple[str, int] | None) -> None:
        wait_for(lambda: self.home() == home, f"the robot's entry to be {home}")


@pytest.fixture
def fleet(authority: Authority, members: Members, tmp_path: Path, keys: Keys) -> Iterator[Fleet]:
    made = Fleet(authority, members, tmp_path, keys.prefix.decode().split("/")[2])
    with contextlib.ExitStack() as stack:
        for site in made.sites:
            stack.enter_context(site.tunnel)
        yield made


@pytest.fixture
def both(fleet: Fleet) -> Fleet:
    """The same, and its servers run."""
    for site in fleet.sites:
        site.start()
    for site in fleet.sites:
        site.follow()
    return fleet


def test_the_newest_session_wins_wherever_it_is(both: Fleet) -> None:
    one, two = both.sites
    with one.robot(attempt=1) as first:
        assert one.answer[0] == WELCOME
        assert both.home() == ("s1", 1), "it is welcomed when all can know"
        assert one.tunnel.socket_path().exists()
        with two.robot(attempt=2):
            assert two.answer[0] == WELCOME
            assert both.home() == ("s2", 2)
            kind, answer = first.receive()
            assert (kind, answer["code"]) == (REFUSED, "superseded")
            assert "server s2" in answer["text"]
            one.daemon.wait_for_log("robot 011 disconnected: the robot is connected to server s2 now")
            # And one that was overtaken is refused, wherever it lands.
            with one.robot(attempt=1):
                assert (one.answer[0], one.answer[1]["code"]) == (REFUSED, "superseded")
            assert both.home() == ("s2", 2)
        both.wait_for_home(None)


def test_a_robot_that_reboots_is_believed(both: Fleet) -> None:
    one, two = both.sites
    with one.robot(boot="b1", attempt=7), two.robot(boot="b2", attempt=1):
        assert two.answer[0] == WELCOME
        assert both.home() == ("s2", 1)
        one.daemon.wait_for_log("robot 011 disconnected: the robot is connected to server s2 now")


def test_without_the_engine_robots_are_welcome_all_the_same(fleet: Fleet, members: Members) -> None:
    one, two = fleet.sites
    one.start()
    one.follow()
    with contextlib.ExitStack() as stack:
        for member in members.members:
            stack.enter_context(member.stopped())
        with one.robot():
            assert one.answer[0] == WELCOME
            one.daemon.wait_for_log("the fleet's engine does not answer")
            # One that starts meanwhile serves, too.
            two.start()
            with two.robot(attempt=2) as later:
                assert two.answer[0] == WELCOME
                stack.close()
                fleet.wait_for_home(("s2", 2))
                one.daemon.wait_for_log("robot 011 disconnected: the robot is connected to server s2 now")
                two.follow()
                later.sock.settimeout(0.2)
                with pytest.raises(TimeoutError):
                    later.receive()


def test_who_comes_late_has_to_prove_that_it_is_there(fleet: Fleet, members: Members) -> None:
    """Two boots, both welcomed while nobody could compare them: the one that answers lives on."""
    one, two = fleet.sites
    for site in fleet.sites:
        site.start("--keepalive=2")
        site.follow()
    with contextlib.ExitStack() as stack:
        stopped = stack.enter_context(contextlib.ExitStack())
        for member in members.members:
            stopped.enter_context(member.stopped())
        two.tunnel.start_client("--lport=9", "--lhost=127.0.0.1")
        stack.enter_context(one.robot(boot="dead"))  # it never says anything more
        assert one.answer[0] == WELCOME
        stopped.close()
        wait_for(lambda: not one.tunnel.socket_path().exists(), "the dead one to be given up")
        wait_for(lambda: (fleet.home() or "")[0] == "s2", "the living one's entry")
        assert two.tunnel.socket_path().exists()
        assert "superseded" not in two.daemon.log


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
    assert not {name for name in loaded if name.startswith(("aiohttp", "shadow.fleet"))}


def test_a_fleet_needs_everything_or_nothing(tunnel: Tunnel) -> None:
    for words, complaint in (
        (
            ["--fleet=f"],
            "--fleet needs --server-id, --engine, --engine-ca, --engine-crt, --engine-key as well",
        ),
        (["--server-id=a"], "--server-id without --fleet"),
    ):
        daemon = tunnel.daemon(tunnel.server_arguments(*words))
        assert daemon.process.wait(60) == 2
        assert complaint in daemon.log
