"""Bad days of real servers: cut off from some of the others, among robots and entries of other versions."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import CHECKOUT, wait_for
from tests.support.call import INTERFACE, Call
from tests.support.engine import b64
from tests.support.peer import REFUSED, START, STARTED, WELCOME, Peer, connect
from tests.support.sites import NAME, Fleet, Site
from tests.support.tap import Tap


def serve(site: Site, session: str, words: bytes) -> Peer:
    """A data channel of the robot's that takes a visitor, and says something to it."""
    channel = connect(site.tunnel, NAME)
    assert channel.hello(NAME, role="data", session=session)[0] == WELCOME
    assert channel.receive()[0] == START
    channel.send(STARTED)
    channel.sock.sendall(words)
    return channel


def visited(site: Site, home: Site, session: str) -> None:
    """Somebody gets through from there."""
    with site.tunnel.visit() as visitor, serve(home, session, b"here"):
        assert visitor.recv(4) == b"here"


@pytest.fixture
def taps(fleet: Fleet) -> Iterator[list[Tap]]:
    """The first server's lines to the engine; both servers run."""
    one, two = fleet.sites
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(Tap(member.client)) for member in fleet.members.members]
        one.start("--engine=" + ",".join(f"https://127.0.0.1:{tap.port}" for tap in made))
        two.start()
        for site in fleet.sites:
            site.follow()
        yield made
        one.daemon.stop()


def test_a_server_that_is_cut_off_from_the_engine_only(fleet: Fleet, taps: list[Tap]) -> None:
    """It is taken for gone, and its robots are visited all the same; who has moved meanwhile ends there."""
    one, two = fleet.sites
    with one.robot(attempt=1) as robot:
        session = one.answer[1]["session"]
        wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
        visited(two, one, session)
        for tap in taps:
            tap.cut()
        one.daemon.wait_for_log("WARNING: the fleet's engine does not answer: .*served all the same")
        wait_for(lambda: fleet.value("live/s1") is None, "the end of its lease")
        for site in fleet.sites:
            visited(site, one, session)
        with two.robot(attempt=2):
            assert two.answer[0] == WELCOME
            assert fleet.home() == ("s2", 2)
            visited(two, two, two.answer[1]["session"])
            for tap in taps:
                tap.mend()
            one.daemon.wait_for_log("robot 011 disconnected: the robot is connected to server s2 now")
            kind, body = robot.receive()
            while kind != REFUSED:
                kind, body = robot.receive()
            assert body["code"] == "superseded"
            wait_for(lambda: fleet.value("live/s1"), "it to be announced again")
            one.daemon.wait_for_log("server s1 was taken for dead; it announces itself again")
            visited(one, two, two.answer[1]["session"])
            assert fleet.home() == ("s2", 2)
    assert "ERROR" not in one.daemon.log


@pytest.mark.slow
def test_a_server_that_is_cut_off_from_its_peers_only(fleet: Fleet) -> None:
    """Its robots are known everywhere, and visited where they are; it is within reach again by itself."""
    one, two = fleet.sites
    with socket.create_server(("127.0.0.1", 0)) as port:
        tap = Tap(port.getsockname()[1], one.peer)
        with tap:
            one.start_with(("shadow-peer", port))
            two.start_with_api("--start-timeout=3")
            for site in fleet.sites:
                site.follow()
            with one.robot():
                session = one.answer[1]["session"]
                wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
                visited(two, one, session)
                tap.cut()
                with two.tunnel.visit() as visitor:
                    assert visitor.recv(1) == b""
                two.daemon.wait_for_log("visitor with uid .* turned away: server s1: no answer within 12 s")
                visited(one, one, session)
                with Call(two.tunnel.ldir / INTERFACE) as call:
                    (listed,) = call.get("List", {"fleet": True})["robots"]
                assert (listed["name"], listed["server"], listed["connected"]) == (NAME, "s1", True)
                tap.mend()
                visited(two, one, session)


def test_robots_of_before_there_were_fleets(both: Fleet) -> None:
    """They say neither boot nor attempt: each HELLO is a new life, and the last one wins, wherever it is."""
    one, two = both.sites

    def hello(site: Site) -> Peer:
        peer = connect(site.tunnel, NAME)
        kind, body = peer.hello(NAME, session="", software="shadow-client 0.0.9")
        assert kind == WELCOME
        site.answer = kind, body
        return peer

    with hello(one) as first:
        assert both.home() == ("s1", 0)
        before = both.entry() or {}
        wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
        with hello(two):
            assert both.home() == ("s2", 0)
            assert (both.entry() or {})["b"] != before["b"]
            kind, body = first.receive()
            assert (kind, body["code"]) == (REFUSED, "superseded")
            for site in both.sites:
                visited(site, two, two.answer[1]["session"])
            with hello(one):
                both.wait_for_home(("s1", 0))
                visited(two, one, one.answer[1]["session"])


def test_entries_of_other_versions_and_programs_are_in_nobodys_way(both: Fleet) -> None:
    one, two = both.sites
    strange = {
        f"r/{NAME}": b'{"v":2,"where":"somewhere"}',
        "r/012": b"no JSON",
        "live/s9": b"[]",
        "odd": b"x",
        "r/a b": b"{}",
    }
    for key, value in strange.items():
        both.ask("kv/put", key=b64(f"/shadow/{both.name}/{key}".encode()), value=b64(value))
    for site in both.sites:
        for why in ("another version of Shadow", "no JSON object", "key that is none of ours"):
            site.daemon.wait_for_log(f"WARNING: the fleet's engine has a (.* )?{why}, which is ignored")
    with one.robot():
        assert one.answer[0] == WELCOME
        assert both.home() == ("s1", 1)
        wait_for(two.tunnel.socket_path().exists, "the robot's socket at the other server")
        visited(two, one, one.answer[1]["session"])
    both.wait_for_home(None)
    for site in both.sites:
        assert site.daemon.log.count("which is ignored") == 3
        assert "ERROR" not in site.daemon.log


def test_a_clock_that_is_wrong_is_wrong_for_people_only(fleet: Fleet, tmp_path: Path) -> None:
    """That of the first server is three days ahead; who is newer does not depend on it."""
    one, two = fleet.sites
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import time\nright = time.time\ntime.time = lambda: right() + 3 * 86400\n"
    )
    words = one.tunnel.server_arguments(*fleet.options(one.name, one.peer))
    one.daemon = one.tunnel.daemon(words, {"PYTHONPATH": f"{tmp_path / 'site'}:{CHECKOUT}"})
    one.daemon.wait_for_log("accepting robots")
    two.start_with_api()
    for site in fleet.sites:
        site.follow()

    def listed() -> Any:
        with Call(two.tunnel.ldir / INTERFACE) as call:
            return call.get("List", {"fleet": True})["robots"]

    with one.robot(attempt=1):
        (found,) = wait_for(listed, "the other server to know the robot")
        assert (found["server"], found["seconds"]) == ("s1", 0)
        visited(two, one, one.answer[1]["session"])
        with two.robot(attempt=2):
            assert fleet.home() == ("s2", 2)
            one.daemon.wait_for_log("robot 011 disconnected: the robot is connected to server s2 now")
            with one.robot(attempt=3):
                assert one.answer[0] == WELCOME
                assert fleet.home() == ("s1", 3)
