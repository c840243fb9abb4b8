"""A visit by way of another server, beside one at the robot's own server: two servers, one robot.

``local`` goes from the visitor to the robot's server and the robot; ``across`` from the visitor to a server
that does not have it, to the one that has, and to the robot. Then both again with the robot and the servers
far from each other.
"""

import argparse
import contextlib
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from .engine import HOST, Engine
from .processes import Group, free_port, listens
from .questions import Answer, Question, all_questions, now_and_then
from .servers import Server, member_options
from .tunnels import CHECKOUT, Keys, client_command, start_service

Figures = dict[str, float]

_ROUND_TRIP = 0.05  # seconds, of the way to the robot and of the way between the servers
_NEAR = "bulk", "ask-1", "visits"
_ROBOT = "011"


def measure(words: argparse.Namespace, keys: Keys, folder: Path) -> Figures:
    """Ratios of across to local, and what they are of."""
    questions = {question.name: question for question in all_questions(words.scale)}
    figures: Figures = {}
    with Engine(folder / "engine") as engine:
        with _pair(0.0, engine, keys, folder / "near") as (group, places):
            for name in _NEAR:
                figures |= _compare(questions[name], group, places, words.rounds)
        with _pair(_ROUND_TRIP, engine, keys, folder / "far") as (group, places):
            figures |= _distance(now_and_then(words.scale), group, places)
    return figures


@contextlib.contextmanager
def _pair(
    round_trip: float, engine: Engine, keys: Keys, folder: Path
) -> Iterator[tuple[Group, dict[str, str]]]:
    """Two servers and a robot at the first: their processes, and where to visit it at each."""
    fleet = folder.name
    with Group(folder / "service") as service, Group(folder / "tunnel") as group:
        port = start_service(service)
        robots, peers = free_port(), free_port()
        far_robots, far_peers = (free_port(), free_port()) if round_trip else (robots, peers)
        if round_trip:
            way = [f"{round_trip / 2}", *map(str, (far_robots, robots, far_peers, peers))]
            service.start("delay", sys.executable, CHECKOUT / "bench" / "delay.py", *way)
            service.wait_for(lambda: listens(far_robots) and listens(far_peers), "the long way")
        passed = {"shadow-server": f"{HOST}:{robots}", "shadow-peer": f"{HOST}:{peers}"}
        near = Server(keys, folder / "a", *member_options(fleet, "a", engine, keys, far_peers), passed=passed)
        other = Server(keys, folder / "b", *member_options(fleet, "b", engine, keys))
        with contextlib.ExitStack() as stack:
            for server in (near, other):
                server.start()
                stack.callback(server.stop)
                group.follow(server.pid)
                server.wait_for_log("following the fleet's engine")
            group.start("client", *client_command(keys, far_robots, port))
            places = {"local": near.sockets / f"{_ROBOT}.sock", "across": other.sockets / f"{_ROBOT}.sock"}
            for path in places.values():
                group.wait_for(path.exists, "the robot's socket")
            yield group, {place: str(path) for place, path in places.items()}


def _ask(question: Question, group: Group, places: dict[str, str], rounds: int) -> dict[str, list[Answer]]:
    """In turn, so that a noisy minute affects both; what comes first is only to get warm."""
    answers: dict[str, list[Answer]] = {place: [] for place in places}
    for _ in range(1 + rounds):
        for place, where in places.items():
            answers[place].append(question.ask(where, lambda: group.cpu))
    return {place: found[1:] for place, found in answers.items()}


def _compare(question: Question, group: Group, places: dict[str, str], rounds: int) -> Figures:
    answers = _ask(question, group, places, rounds)
    figures: Figures = {}
    for name, unit in question.units.items():
        local, across = (statistics.median(one[name] for one in answers[place]) for place in places)
        title = f"{question.title}: {unit}"
        figures |= {f"{title}, local": local, f"{title}, across": across}
        if local:
            figures[f"{title}, across : local"] = across / local
    return figures


def _distance(question: Question, group: Group, places: dict[str, str]) -> Figures:
    answers = _ask(question, group, places, 1)
    local, across = (answers[place][0]["median"] for place in places)
    return {
        "50 ms to the robot: ms to the first byte, local": local,
        "and 50 ms between the servers: ms to the first byte, across": across,
        "so a visit across takes more, in round trips": (across - local) / 1e3 / _ROUND_TRIP,
    }
