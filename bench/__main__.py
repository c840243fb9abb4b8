"""The command: ``python -m bench``."""

import argparse
import sys
import tempfile
from pathlib import Path

from shadow.daemon.life import raise_descriptor_limit

from . import report
from .network import distance
from .processes import BenchError, Group
from .questions import Answer, Question, all_questions
from .tunnels import SHADOW, TUNNELS, Keys, Tunnel, make_keys, start_service
from .units import open_units


def main() -> int:
    """Measure and report; the exit status."""
    words = _arguments()
    questions = [question for question in all_questions(words.scale) if question.name in words.questions]
    if not words.units:  # the network here is not ours to slow down
        questions = [question for question in questions if not question.round_trip]
    tunnels = [tunnel for tunnel in TUNNELS if tunnel.name in words.tunnels]
    if words.units:
        tunnels = [Tunnel(SHADOW, open_units) if tunnel.name == SHADOW else tunnel for tunnel in tunnels]
    raise_descriptor_limit()
    answers: dict[str, dict[str, list[Answer]]] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="shadow-bench-") as folder:
            keys = make_keys(Path(folder) / "keys")
            for question in questions:
                answers[question.name] = {tunnel.name: [] for tunnel in tunnels}
                # Round by round, so that a noisy minute hits all alike.
                for number in range(words.rounds):
                    for tunnel in tunnels:
                        where = Path(folder) / f"{question.name}-{tunnel.name.replace(' ', '')}-{number}"
                        answers[question.name][tunnel.name].append(_once(question, tunnel, keys, where))
                print(report.table(question, answers[question.name]), end="\n\n", flush=True)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    report.save(words.output, questions, answers)
    print(f"on {report.machine()}\nin {words.output}: bench.json, and a picture for each question")
    return 0


def _once(question: Question, tunnel: Tunnel, keys: Keys, folder: Path) -> Answer:
    """One question to one tunnel, freshly started."""
    with Group(folder / "service") as service, Group(folder / "t") as group:
        port = start_service(service)
        where = tunnel.open(group, keys, port)
        with distance(group, question.round_trip, port):
            question.ask(where, lambda: group.cpu)  # once to get warm
            return question.ask(where, lambda: group.cpu)


def _arguments() -> argparse.Namespace:
    names = [question.name for question in all_questions(1.0)]
    tunnels = [tunnel.name for tunnel in TUNNELS]
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is measured")
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1 is shorter")
    parser.add_argument("--output", type=Path, default=Path("build/bench"), help="folder for the outcome")
    parser.add_argument("--questions", nargs="+", choices=names, default=names)
    parser.add_argument("--tunnels", nargs="+", choices=tunnels, default=tunnels)
    parser.add_argument("--units", action="store_true", help="Shadow as the units of its package")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
