"""What a server knows of the others' robots: what it tells `shadowctl`, whichever is asked."""

import asyncio
import contextlib
import json
import re
import socket
import subprocess
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shadow.admin.methods import Methods
from shadow.fleet.keys import Family, Keys, Live, Progress
from shadow.fleet.survey import Survey
from shadow.fleet.view import View
from shadow.server.overview import Companion, Happening
from tests.support import CHECKOUT, DEADLINE, Authority, echo, serving, wait_for
from tests.support.call import INTERFACE, Call
from tests.support.engine import Members, b64
from tests.support.fleet import entry
from tests.support.looking import command, ctl, get, good, listed, servers
from tests.support.sites import NAME, Fleet, Site


def say(visitor: socket.socket) -> None:
    visitor.sendall(b"x")
    assert visitor.recv(1) == b"x"


@pytest.mark.usefixtures("robot")
def test_a_list_of_all_robots_wherever_one_asks(asked: Fleet) -> None:
    one, two = asked.sites
    (here,), (there,) = listed(one), listed(two)
    assert here["server"] == there["server"] == "s1"
    assert here["connected"] is there["connected"] is True
    assert {name: there[name] for name in ("peer", "services")} == {
        name: here[name] for name in ("peer", "services")
    }
    assert int(there["serial"], 16) == int(here["serial"], 16)
    assert 0 <= there["seconds"] < DEADLINE
    for site in asked.sites:
        head, line, *_rest = good(site, "list").splitlines()
        assert head.split() == ["ROBOT", "SERVER", "FROM", "FOR", "SERVICES", "STREAMS", "TLS"]
        assert line.split()[:2] == [NAME, "s1"]
    assert good(two, "list", "--local") == "0 robots\n"
    assert json.loads(good(one, "list", "--local", "--json"))[0]["name"] == NAME
    # Who knows nothing of fleets is told what it was told before there were any.
    assert get(two, "List")["robots"] == []


@pytest.mark.usefixtures("robot")
def test_who_knows_nothing_of_fleets_learns_that_a_robot_is_not_here(asked: Fleet) -> None:
    """And of its visitors those who reach it through here."""
    two = asked.sites[1]
    with two.tunnel.visit() as visitor:
        say(visitor)
        (found,) = json.loads(good(two, "list", "--json"))
        assert found["streams"] == 1
        (local,) = json.loads(good(two, "list", "--local", "--json"))
        assert (local["connected"], local["streams"], local.get("server")) == (False, 1, None)
        with Call(two.tunnel.ldir / INTERFACE) as call:
            nobody = {"error": f"{INTERFACE}.NoSuchRobot", "parameters": {"name": NAME, "server": "s1"}}
            assert call.ask("Disconnect", {"robot": NAME}) == nobody
            (stream,) = call.get("ListStreams")["streams"]
            assert stream["robot"] == NAME
            assert call.get("Describe", {"name": NAME})["robot"]["connected"] is False
        say(visitor)


@pytest.mark.usefixtures("robot")
def test_the_servers(asked: Fleet) -> None:
    one, two = asked.sites
    for site in asked.sites:
        head, *lines, _empty, total = good(site, "servers").splitlines()
        assert head.split() == ["SERVER", "STATE", "ROBOTS", "PEER", "SOFTWARE"]
        shown = [line.split(maxsplit=4) for line in lines]
        assert [line[:3] for line in shown] == [["s1", "live", "1"], ["s2", "live", "0"]]
        assert [line[3] for line in shown] == [f"127.0.0.1:{one.peer}", f"127.0.0.1:{two.peer}"]
        assert [line[4].endswith(", this one") for line in shown] == [site is one, site is two]
        assert total == "2 servers"
        assert f"Fleet: server {site.name}, 1 robot in all\n" in good(site, "status")
    assert [one["name"] for one in json.loads(good(one, "servers", "--json"))] == ["s1", "s2"]


def test_waiting_for_a_robot_that_comes_to_another_server(asked: Fleet) -> None:
    one, two = asked.sites
    words, out = command(two, "wait", NAME), subprocess.PIPE
    with subprocess.Popen(words, cwd=CHECKOUT, stdout=out, stderr=out) as waiting:
        # It watches before it looks: so long as that lasts, its end says nothing.
        wait_for(lambda: watchers(two), "somebody who watches")
        assert waiting.poll() is None
        with one.robot():
            assert waiting.communicate(timeout=DEADLINE) == (b"", b"")
            assert waiting.returncode == 0
            assert ctl(two, "wait", NAME, f"--timeout={DEADLINE}") == (0, "", "")  # it is there already


def watchers(site: Site) -> bool:
    """Whether somebody is connected to a server's API; nobody else is."""
    done = subprocess.run(["ss", "-xH", "state", "established"], capture_output=True, text=True, check=True)
    return str(site.tunnel.ldir / INTERFACE) in done.stdout


def test_robots_elsewhere_come_and_go_for_those_who_watch(asked: Fleet) -> None:
    one, two = asked.sites
    with Call(two.tunnel.ldir / INTERFACE) as call:
        call.say("Watch", more=True)
        assert call.hear()["parameters"] == {"ready": True}

        def hear() -> tuple[str, dict[str, str]]:
            event = call.hear()["parameters"]["event"]
            return event["event"], event["fields"]

        with one.robot():
            kind, fields = hear()
            assert kind == "robot-connected"
            assert fields.pop("PEER").startswith("127.0.0.1:")
            assert fields == {"ROBOT": NAME, "SERVER": "s1"}
        assert hear() == ("robot-disconnected", {"ROBOT": NAME, "SERVER": "s1"})
        with two.robot(attempt=2):
            kind, fields = hear()
            assert kind == "robot-connected"
            assert "SERVER" not in fields, "of those here, the log says it, and nothing else does"
        assert hear()[0] == "robot-disconnected"
        one.daemon.stop()
        while kind != "server-left":  # it is out of reach, too, before or after
            kind, fields = hear()
        assert fields == {"SERVER": "s1"}
        one.start_with_api()
        while kind != "server-joined":
            kind, fields = hear()
    assert "to server s1" not in two.daemon.log, "it is no event here"


def test_robots_of_a_server_that_is_gone_are_not_listed(asked: Fleet) -> None:
    one, two = asked.sites
    with one.robot():
        wait_for(lambda: listed(two), "the second server to know the robot")
        one.crash()
        asked.ask("kv/deleterange", key=b64(f"/shadow/{asked.name}/live/s1".encode()))  # or it takes 10 s
        wait_for(lambda: not listed(two), "the end of its lease")
        assert [(found["live"], found["robots"]) for found in servers(two)] == [(False, 1), (True, 0)]
        assert "s1      gone " in good(two, "servers")
        assert good(two, "status", NAME).startswith(
            f"○ {NAME} - not connected; it was at server s1, which is gone\n"
        )
        assert ctl(two, "wait", NAME, "--timeout=0.2")[0] == 69
        assert "not connected" in ctl(two, "disconnect", NAME)[2]


@pytest.mark.long
def test_how_old_it_is_what_it_says(authority: Authority, tmp_path: Path) -> None:
    with Members(tmp_path / "engine", 1) as members, contextlib.ExitStack() as stack:
        fleet = Fleet(authority, members, tmp_path, "own")
        one, two = fleet.sites
        for site in fleet.sites:
            stack.enter_context(site.tunnel)
            site.start_with_api()
        stack.enter_context(one.robot())
        wait_for(lambda: listed(two), "the second server to know the robot")
        assert get(two, "List", fleet=True)["age"] == 0
        members.members[0].kill()
        for site in fleet.sites:
            site.daemon.wait_for_log("the fleet's engine does not answer")
        for words in (["list"], ["servers"], ["status"]):
            status, output, errors = ctl(two, *words)
            assert status == 0
            assert "s1" in output
            assert re.fullmatch(r"shadowctl: view is \d+ s old: the fleet's engine is away\n", errors)
        good(one, "list", "--local")  # of its own it knows everything
        good(one, "status", NAME)
        good(two, "status", NAME)  # the robot's server is asked
        members.start(members.members[0])
        wait_for(lambda: get(two, "List", fleet=True)["age"] == 0, "the engine")


def test_visits_are_counted_on_both_sides(fleet: Fleet) -> None:
    one, two = fleet.sites
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(serving(echo))
        urls = []
        for site in fleet.sites:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            site.start_with(("shadow-metrics", listening))
            urls.append(f"http://127.0.0.1:{listening.getsockname()[1]}/metrics")

        def figures(url: str) -> dict[str, float]:
            with urllib.request.urlopen(url, timeout=DEADLINE) as answer:  # noqa: S310
                lines = answer.read().decode().splitlines()
            found = (line.rpartition(" ") for line in lines if line.startswith("shadow_fleet_"))
            return {name.removeprefix("shadow_fleet_"): float(value) for name, _space, value in found}

        one.tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1", "--service=dead=127.0.0.1:9")
        wait_for(two.tunnel.socket_path(f"dead@{NAME}").exists, "the robot's sockets at the other server")
        with two.tunnel.visit() as visitor:
            say(visitor)
        with two.tunnel.visit(f"dead@{NAME}") as visitor:
            assert visitor.recv(1) == b""
        here, there = map(figures, urls)
        for found in (here, there):
            assert found['servers{state="live"}'] == 2
            assert found["robots"] == found["engine_up"] == 1
            assert found["view_age_seconds"] == found["unclaimed_sessions"] == 0
        assert here['claims_total{result="written"}'] == 1
        assert here['visits_total{path="in",result="taken"}'] == 2
        assert there['visits_total{path="out",result="connected"}'] == 1
        assert there['visits_total{path="out",result="turned away"}'] == 1
        assert sum(value for name, value in here.items() if "visits_total" in name) == 2
        assert sum(value for name, value in there.items() if "visits_total" in name) == 2


class Known:
    """A view as if an engine had filled it, and what is made of it at server s1."""

    def __init__(self) -> None:
        self.view = View(cast("Any", None), Keys("f"), self)
        drainer = SimpleNamespace(moves={("draining", "gone"): 9})
        robots: Any = SimpleNamespace(connected=7, drainer=drainer)
        registrar: Any = SimpleNamespace(
            name="s1", view=self.view, claims=SimpleNamespace(unclaimed=4),
            writer=SimpleNamespace(done=1, lost=2, failed=3),
        )  # fmt: skip
        nobody: Any = None
        visits = {"out": {"connected": 5}, "in": {"taken": 6}}
        self.survey = Survey(robots, registrar, visits, nobody, nobody)
        self.told: list[Happening] = []
        self.survey.watch(self.told.append)
        self.on_change, self.on_live = self.survey.on_change, self.survey.on_live

    def on_reset(self) -> None: ...

    def on_engine(self, *, up: bool) -> None: ...

    def server(self, name: str, live: Live | None, revision: int = 1) -> None:
        key = self.view._keys.server(name)
        if live is None:
            self.view._remove(Family.SERVER, name, revision)
        else:
            self.view._put(key, live.encode(), revision)

    def robot(self, name: str, server: str, inc: str = "1", revision: int = 1) -> None:
        self.view._put(self.view._keys.robot(name), entry(server, inc).encode(), revision)

    def kinds(self) -> list[tuple[str, str]]:
        """What was told since the last time."""
        told = [(one.kind, one.fields.get("ROBOT", "") + "@" + one.fields["SERVER"]) for one in self.told]
        self.told.clear()
        return told


def test_what_counts_and_what_does_not() -> None:
    async def body() -> None:
        known = Known()
        survey = known.survey
        assert 0 <= survey.age < DEADLINE, "not for ever"
        known.server("s1", Live("1"))
        progress = Progress(visited=3, ends=4)
        known.server("s2", Live("1", draining=True, software="crab 1", progress=progress))
        for name, server, inc in (
            ("here", "s1", "1"), ("there", "s2", "1"), ("before", "s2", "0"), ("lost", "s3", "1"),
        ):  # fmt: skip
            known.robot(name, server, inc)
        assert survey.names() == ["there"]
        assert survey.find("here") is None
        assert survey.find("nobody") is None
        assert survey.find("there") == ("s2", True, ("",), "192.0.2.1:7", 1.5, "0c")
        assert [(survey.find(name) or ("", None))[1] for name in ("before", "lost")] == [False, False]
        assert survey.servers == [
            Companion("s1", True, True, False, "", "", 7),
            Companion("s2", False, True, True, "crab 1", "", 1, 3, 4),
            Companion("s3", False, False, False, "", "", 1),
        ]
        assert survey.figures.robots == 8
        assert survey.figures.unclaimed == 4
        assert survey.figures.claims == {"written": 1, "overtaken": 2, "unanswered": 3}
        assert survey.figures.moves == {("draining", "gone"): 9}
        assert survey.figures.visits == {("out", "connected"): 5, ("in", "taken"): 6}
        known.server("s1", None)
        assert survey.servers[0].live, "we are, whatever the engine has"
        known.view.up = True
        assert survey.age == 0

    asyncio.run(body())


def test_what_happens_elsewhere_and_nothing_else() -> None:
    async def body() -> None:
        known = Known()
        known.robot("early", "s2")
        assert known.kinds() == [], "its server has not said that it is there"
        known.server("s2", Live("1"))
        assert known.kinds() == [("server-joined", "@s2")]
        known.server("s2", Live("1", draining=True), 2)
        known.server("s1", Live("1"))
        assert known.kinds() == [], "that is no news, and we are here"
        known.robot("011", "s2")
        known.robot("011", "s1", revision=2)
        known.robot("012", "s1")
        known.view._remove(Family.ROBOT, "012", 3)
        assert known.kinds() == [("robot-connected", "011@s2")]
        known.robot("011", "s2", revision=4)
        known.view._remove(Family.ROBOT, "011", 5)
        assert known.kinds() == [("robot-connected", "011@s2"), ("robot-disconnected", "011@s2")]
        known.server("s2", Live("2"), 3)
        assert known.kinds() == [("server-joined", "@s2")], "in another life: its robots are others"
        known.server("s2", None, 4)
        assert known.kinds() == [("server-left", "@s2")]
        known.survey.watch(None)
        known.server("s2", Live("2"), 5)
        known.robot("013", "s2", "2")
        assert known.kinds() == []

    asyncio.run(body())


class Robots(dict[str, Any]):
    elsewhere: Any


def test_a_list_of_very_many_is_made_in_turns_and_leaves_out_who_has_gone_meanwhile() -> None:
    """Each reply looks at a hundred robots, however few of them are still there."""

    async def body() -> None:
        known = Known()
        known.server("s2", Live("1"))
        for number in range(1000):
            known.robot(f"{number:03}", "s2")
        robots = Robots()
        robots["here"] = SimpleNamespace(name="here", session=None, streams=[], is_here=True)
        robots.elsewhere = SimpleNamespace(overview=known.survey)
        methods = Methods(cast("Any", SimpleNamespace(robots=robots)))
        replies = methods.List(fleet=True, _more=True)
        first = next(replies)
        assert len(first["robots"]) == 100
        assert first["robots"][0] == {
            "name": "here", "connected": False, "services": [], "standbys": 0, "waiting": 0, "streams": 0,
        }  # fmt: skip
        assert first["age"] > 0
        known.server("s2", None)
        rest = list(replies)
        assert len(rest) == 10
        assert not any(reply["robots"] for reply in rest)
        assert [reply["_continues"] for reply in rest] == [True] * 9 + [False]

    asyncio.run(body())
