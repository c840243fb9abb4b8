"""An engine that loses members, typed as docs/FLEET.md has it, while two servers of a fleet go on."""

import contextlib
import os
import shutil
import subprocess
import urllib.error
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import Authority, echo, exchange, serving, wait_for
from tests.support.commands import Block, block
from tests.support.engine import Member, Members, b64
from tests.support.peer import START, STARTED, WELCOME, connect
from tests.support.sites import NAME, Fleet

DATA = "/var/lib/etcd/default"
ROOM = 2**24  # bytes that the engine may have


class Repair:
    """What an operator does about the engine, on the machine of one member; ports and files are our own."""

    def __init__(self, members: Members) -> None:
        self.members = members

    def type_in(self, what: Block, at: int = 0) -> None:
        """What the document shows; each line again until it is too soon no more."""
        for command in what.commands:
            wait_for(partial(self._succeeds, command.text, at), command.text)

    def _succeeds(self, text: str, at: int) -> bool:
        """Type a command, behind what says where the engine is."""
        where = [one.text for one in block("fleet: etcdctl").commands]
        said = subprocess.run(
            ["bash", "-ec", self._here("\n".join([*where, text]), at)], cwd=self.members.folder,
            env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        print(text, said.stdout, said.stderr, sep="\n")  # noqa: T201 - for whoever reads of a failure
        return said.returncode == 0

    def _here(self, text: str, at: int) -> str:
        members, authority = self.members, self.members.authority
        me = members.members[at]
        for option in ("--name=", "--initial-advertise-peer-urls=https://"):
            text = text.replace(f"{option}server1", f"{option}{me.name}")
        for member in members.members:
            text = text.replace(f"https://{member.name}.example.com:2379", f"https://{member.endpoint}")
            text = text.replace(f"https://{member.name}.example.com:2380", member.peer_url)
        return (
            text.replace("https://localhost:2379", f"https://{me.endpoint}")
            .replace(DATA, str(members.folder / me.name)).replace("etcd: ", f"{os.getuid()} ")
            .replace("/etc/etcd/engine-ca.crt", str(authority.ca))
            .replace("/etc/etcd/etcd-server1.example.com", str(authority.folder / "member"))
        )  # fmt: skip

    def lose(self, *lost: Member) -> None:
        """Their machines burn down."""
        for member in lost:
            member.kill()
        for member in lost:
            shutil.rmtree(self.members.folder / member.name)

    def start(self, *started: Member, state: str = "new") -> None:
        for member in started:
            self.members.start(member, f"--initial-cluster-state={state}")
        wait_for(lambda: all(map(self.members.is_up, self.members.members)), "all members")


@pytest.fixture
def repair(tmp_path: Path) -> Iterator[Repair]:
    members = Members(tmp_path / "engine", 3, f"--quota-backend-bytes={ROOM}")
    for number, member in enumerate(members.members, 1):
        member.name = f"server{number}"
    with members:
        yield Repair(members)


@pytest.fixture
def fleet(repair: Repair, authority: Authority, tmp_path: Path) -> Iterator[Fleet]:
    """Two servers that follow it."""
    made = Fleet(authority, repair.members, tmp_path, "robots")
    with contextlib.ExitStack() as stack:
        for site in made.sites:
            stack.enter_context(site.tunnel)
            site.start()
            site.follow()
        yield made


@pytest.fixture
def robot(fleet: Fleet) -> Iterator[None]:
    """One at the first server."""
    with serving(echo) as service:
        fleet.sites[0].tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1")
        wait_for(fleet.sites[1].tunnel.socket_path().exists, "its socket at the other server")
        yield


def all_there(fleet: Fleet, expected: dict[str, Any] | None) -> None:
    """The engine has the robot and both servers, and a visitor gets through."""
    keys = ("live/s1", "live/s2")
    wait_for(lambda: fleet.entry() == expected, "the robot's entry, as it was")
    wait_for(lambda: all(map(fleet.value, keys)), "both servers")
    for site in fleet.sites:
        with site.tunnel.visit() as visitor:
            assert exchange(visitor, b"x") == b"x"


def test_members_are_lost_and_the_servers_go_on(repair: Repair, fleet: Fleet, robot: None) -> None:
    """One of three is replaced; then a backup is restored; then all is lost, with what they knew."""
    one, two, three = repair.members.members
    entry = wait_for(fleet.entry, "the robot's entry")
    with fleet.sites[1].tunnel.visit() as visitor:
        repair.type_in(block("fleet: healthy"))
        repair.lose(three)
        repair.type_in(block("fleet: member"))
        settings = block("fleet: existing").written.strip()
        assert settings == "ETCD_INITIAL_CLUSTER_STATE=existing"
        repair.start(three, state=settings.partition("=")[2])
        repair.type_in(block("fleet: healthy"))
        all_there(fleet, entry)

        repair.lose(two, three)
        repair.type_in(block("fleet: backup"))
        one.kill()
        for at in range(3):
            repair.type_in(block("fleet: restore"), at)
        repair.start(one, two, three)
        for site in fleet.sites:
            site.daemon.wait_for_log(r"other entries than we were told \(it is another engine\)")
        all_there(fleet, entry)

        repair.lose(one, two, three)
        repair.start(one, two, three)
        for site in fleet.sites:
            site.daemon.wait_for_log(r"other entries than we were told \(it is another engine\)", 2)
        all_there(fleet, entry)
        assert exchange(visitor, b"all the while") == b"all the while"
    for site in fleet.sites:
        assert "ERROR" not in site.daemon.log


def fill(members: Members) -> None:
    """Write until there is no room any more, as somebody else may do who shares the engine."""
    blob = b64(b"x" * 2**20)
    for _ in range(2 * ROOM // 2**20):
        try:
            members.ask(members.members[0], "kv/put", {"key": b64(b"big"), "value": blob})
        except urllib.error.HTTPError as error:
            error.close()
            return
    raise AssertionError("there is room without end")


@pytest.mark.long  # for a lease to end
def test_a_full_engine_and_a_server_that_comes_back(repair: Repair, fleet: Fleet) -> None:
    """Nobody can be told of it, and its robots are served and found all the same."""
    one, two = fleet.sites
    members = repair.members
    with two.robot("b007"):
        wait_for(one.tunnel.socket_path().exists, "the robot's socket at the other server")
    fill(members)
    two.crash()
    two.start()
    two.daemon.wait_for_log(
        "ERROR: the fleet's engine is full: .*space exceeded; the other servers take this one"
    )
    wait_for(lambda: fleet.value("live/s2") is None, "the end of its lease")
    with two.robot("b008"), one.tunnel.visit() as visitor, connect(two.tunnel) as channel:
        assert two.answer[0] == WELCOME
        channel.hello(NAME, role="data", session=two.answer[1]["session"])
        assert channel.receive()[0] == START
        channel.send(STARTED)
        channel.sock.sendall(b"here")
        assert visitor.recv(4) == b"here"
        revision = members.ask(members.members[0], "kv/range", {"key": b64(b"big")})["header"]["revision"]
        members.ask(members.members[0], "kv/compaction", {"revision": revision, "physical": True})
        repair.type_in(block("fleet: room"))
        two.daemon.wait_for_log("the fleet's engine takes again what we write")
        wait_for(lambda: fleet.value("live/s2"), "the server to be announced")
        fleet.wait_for_home(("s2", 1))
    for site in fleet.sites:
        assert site.daemon.log.count("engine is full") == (site is two)
