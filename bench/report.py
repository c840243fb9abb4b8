"""The outcome: a table for the terminal, JSON, and a picture for each question."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .questions import Answer, Question
from .tunnels import NOTHING, SHADOW

Rounds = Mapping[str, Sequence[Answer]]
"""The answers to one question, of all rounds, by tunnel."""

_WIDTH, _ROW, _LABEL, _VALUE = 720, 28, 110, 200  # of the pictures, in pixels


def machine() -> dict[str, Any]:
    """Where it was measured."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = next(
        (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if "model name" in line), "?"
    )
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "tls module": Path("/sys/module/tls").exists(),
    }


def medians(rounds: Rounds) -> dict[str, Answer]:
    """For each tunnel the median of each figure."""
    return {
        tunnel: {name: statistics.median(answer[name] for answer in answers) for name in answers[0]}
        for tunnel, answers in rounds.items()
    }


def table(question: Question, rounds: Rounds) -> str:
    """The answers side by side; ratios are to Shadow's."""
    middle = medians(rounds)
    names = list(question.units)
    lines = [question.title, "  " + "".join(f"{text:>30}" for text in ["", *question.units.values()])[18:]]
    for tunnel, answer in middle.items():
        cells = []
        for name in names:
            ours = middle.get(SHADOW, {}).get(name, 0)
            value = answer[name]
            silent = name == "cpu" and tunnel == NOTHING
            ratio = f"({value / ours:.2f})" if ours and not silent else ""
            cells.append(f"{'-' if silent else figure(value)} {ratio:>8}".rjust(30))
        lines.append(f"  {tunnel:12}" + "".join(cells))
    return "\n".join(lines)


def figure(value: float) -> str:
    """A number with three digits that matter."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def picture(question: Question, rounds: Rounds) -> str:
    """Bars as SVG: the first figure's median, and a line from the lowest to the highest round."""
    name, unit = next(iter(question.units.items()))
    shown = {
        tunnel: sorted(answer[name] for answer in answers)
        for tunnel, answers in rounds.items()
        if not (name == "cpu" and tunnel == NOTHING)
    }
    top = max(values[-1] for values in shown.values()) or 1.0
    scale = (_WIDTH - _LABEL - _VALUE) / top
    height = _ROW * (len(shown) + 2)
    better = "less is better" if question.less_is_better else "more is better"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}">',
        "<style>text { font: 14px sans-serif }</style>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="20" font-weight="bold">{escape(question.title)}: {escape(unit)} ({better})</text>',
    ]
    for number, (tunnel, values) in enumerate(shown.items(), start=1):
        y, middle = number * _ROW + 8, statistics.median(values)
        colour = "#2a7f62" if tunnel == SHADOW else "#b8c4c2"
        low, high = (_LABEL + value * scale for value in (values[0], values[-1]))
        parts += [
            f'<text x="8" y="{y + 15}">{escape(tunnel)}</text>',
            f'<rect x="{_LABEL}" y="{y}" width="{middle * scale:.1f}" height="20" fill="{colour}"/>',
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 10}" y2="{y + 10}" stroke="black"/>',
            f'<text x="{high + 8:.1f}" y="{y + 15}">{figure(middle)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def save(folder: Path, questions: Sequence[Question], answers: Mapping[str, Rounds]) -> None:
    """Write everything down: ``bench.json``, and ``NAME.svg`` for each question."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = [question for question in questions if question.name in answers]
    outcome = {
        "machine": machine(),
        "questions": {
            question.name: {
                "title": question.title,
                "units": question.units,
                "medians": medians(answers[question.name]),
                "rounds": answers[question.name],
            }
            for question in asked
        },
    }
    (folder / "bench.json").write_text(json.dumps(outcome, indent=1) + "\n")
    for question in asked:
        (folder / f"{question.name}.svg").write_text(picture(question, answers[question.name]))
