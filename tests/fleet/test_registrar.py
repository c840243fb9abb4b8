"""Robots that move between the servers of a fleet: real servers, a real engine."""

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.errors import Refused
from shadow.fleet.claims import WELCOME_WITHIN
from shadow.fleet.keys import Keys
from shadow.fleet.registrar import Registrar
from tests.support import DEADLINE, wait_for
from tests.support.engine import Members
from tests.support.peer import REFUSED, WELCOME
from tests.support.sites import Fleet


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
        one.daemon.wait_for_log("robot 011 disconnected: ")
        wait_for(lambda: (fleet.home() or "")[0] == "s2", "the living one's entry")
        assert two.tunnel.socket_path().exists()
        assert "superseded" not in two.daemon.log


def test_two_devices_that_fight_over_a_name_are_named(both: Fleet) -> None:
    one, two = both.sites
    with contextlib.ExitStack() as stack:
        for attempt in range(1, 4):
            for site, boot in ((one, "b1"), (two, "b2")):
                stack.enter_context(site.robot(boot=boot, attempt=attempt))
                assert site.answer[0] == WELCOME
        said = one.daemon.wait_for_log("WARNING: robot 011: two devices seem to fight over this name, at .*")
        assert "at server s2" in said[0]
        assert one.daemon.log.count("seem to fight") == 1


class Waiting:
    """A candidate."""

    def __init__(self, name: str, attempt: int) -> None:
        self.name = name
        certificate = SimpleNamespace(serial_number=1)
        channel = SimpleNamespace(link=SimpleNamespace(certificate=certificate))
        self.session: Any = SimpleNamespace(
            sid=f"{name}-{attempt}", boot="boot", attempt=attempt, since=0.0, channel=channel, services=("",)
        )
        self.waits = True
        self.welcomed = asyncio.Event()

    def welcome(self) -> None:
        self.waits = False
        self.welcomed.set()

    def refuse(self, refused: Refused) -> None:
        raise AssertionError(refused)


class Deaf:
    """An engine that never answers, and is there all the same."""

    members = 1

    async def swap(self, _swaps: object) -> object:
        return await asyncio.Event().wait()


def registrar() -> Registrar:
    robots: Any = type("Robots", (dict,), {"directory": None})()
    engine: Any = Deaf()
    made = Registrar(robots, "s1", "inc", Keys("f"), engine)
    made.on_engine(up=True)
    return made


def test_a_second_is_a_second() -> None:
    """Whatever the pace at which the registrar looks around."""

    async def body() -> None:
        made, candidate = registrar(), Waiting("011", 1)
        began = asyncio.get_running_loop().time()
        made.came(candidate)
        async with asyncio.timeout(DEADLINE):
            await candidate.welcomed.wait()
        assert asyncio.get_running_loop().time() - began >= WELCOME_WITHIN
        await made.close()

    asyncio.run(body())


def test_nothing_remains_of_a_candidate_that_has_left() -> None:
    async def body() -> None:
        made, candidate = registrar(), Waiting("011", 1)
        made.came(candidate)
        candidate.waits = False
        made.note("011", None)
        assert (made._candidates, made._tracked) == ({}, {})
        await made.close()

    asyncio.run(body())
