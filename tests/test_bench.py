"""The benchmark: that it measures what it says, with the tunnels that need nothing but ourselves."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench import report, units
from bench.machine import peers
from bench.processes import BenchError, Group, descendants, free_port, listens
from bench.questions import all_questions
from bench.tunnels import NOTHING, SHADOW, Keys
from tests.support import CHECKOUT, DEADLINE

BULK = next(question for question in all_questions(1.0) if question.name == "bulk")
ROUNDS = {
    SHADOW: [{"cpu": cpu, "rate": 100.0, "fairness": 1.0} for cpu in (1.0, 3.0, 2.0)],
    "ssh -R": [{"cpu": 4.0, "rate": 50.0, "fairness": 1.0}],
    NOTHING: [{"cpu": 0.0, "rate": 400.0, "fairness": 1.0}],
}


@pytest.mark.long
def test_a_real_run(tmp_path: Path) -> None:
    words = ["--rounds=1", "--scale=0.01", f"--output={tmp_path}", "--questions", "bulk", "ask-1", "visits"]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words, "--tunnels", SHADOW, NOTHING],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=2 * DEADLINE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcome = json.loads((tmp_path / "bench.json").read_text())
    assert set(outcome["questions"]) == {"bulk", "ask-1", "visits"}
    for name, question in outcome["questions"].items():
        assert set(question["medians"]) == {SHADOW, NOTHING}
        assert question["medians"][SHADOW]["cpu"] >= question["medians"][NOTHING]["cpu"] == 0
        assert all(value > 0 for value in question["medians"][NOTHING].values() if value)
        ET.parse(tmp_path / f"{name}.svg")  # noqa: S314 - our own
    assert outcome["machine"]["cpus"] == len(os.sched_getaffinity(0))
    assert "One visitor sends" in done.stdout


def measured(folder: Path, *words: str) -> dict[str, float]:
    """What a short run of parts of it finds out; all of that is printed, too."""
    small = "--robots=5", "--hollow=30", "--keepalive=1", "--window=1", "--scale=0.01", "--rounds=1"
    done = subprocess.run(
        [sys.executable, "-m", "bench.fleet", *small, f"--output={folder}", "--parts", *words],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=15 * DEADLINE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcome = json.loads((folder / "fleet.json").read_text())
    assert outcome["settings"]["robots"] == 5
    assert set(outcome["parts"]) == set(words)
    figures = {title: value for part in outcome["parts"].values() for title, value in part["figures"].items()}
    assert all(title in done.stdout for title in figures)
    return figures


@pytest.mark.long
@pytest.mark.timeout(20 * DEADLINE)
def test_a_server_with_many_robots(tmp_path: Path) -> None:
    figures = measured(tmp_path, "single")
    assert figures["server memory, KiB per robot"] > 0
    assert figures["storm: visitors served meanwhile"] >= 1
    assert figures["storm: seconds until all their channels stood by"] > 0


@pytest.mark.slow
@pytest.mark.timeout(20 * DEADLINE)
def test_several_servers(tmp_path: Path) -> None:
    """A server that is lost, and visits by way of another one."""
    figures = measured(tmp_path, "loss", "across")
    (back,) = (value for title, value in figures.items() if "seconds until all were back" in title)
    assert back > 0
    assert figures["their wait: longest, s"] > 0
    assert figures["so a visit across takes more, in round trips"] > 0.9, "the way between servers is longer"


@pytest.mark.slow
@pytest.mark.timeout(20 * DEADLINE)
def test_the_engine_of_several_servers(tmp_path: Path) -> None:
    """Many claims at once, and an engine without a leader."""
    figures = measured(tmp_path, "storm", "outage")
    assert figures["90 claims of 3 servers, first come: a second"] > 0
    assert figures["shadowctl list of 90: its CPU seconds"] > 0
    assert figures["leader killed: longest gap in claims, s"] > 0


def test_a_tool_that_is_missing_is_one_line(tmp_path: Path) -> None:
    words = [
        "--rounds=1",
        "--scale=0.01",
        f"--output={tmp_path}",
        "--questions",
        "ask-1",
        "--tunnels",
        "socat",
    ]
    code = (
        "import shutil, sys; shutil.which = lambda *_a, **_k: None; from bench.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=DEADLINE, check=False,
    )  # fmt: skip
    assert done.stderr == "bench: socat is not installed: scripts/setup bench\n"


def test_medians_and_ratios() -> None:
    assert report.medians(ROUNDS)[SHADOW]["cpu"] == 2.0
    lines = report.table(BULK, ROUNDS).splitlines()
    assert lines[0] == "One visitor sends"
    assert lines[2].split() == ["shadow", "2", "(1.00)", "100", "(1.00)", "1", "(1.00)"]
    assert lines[3].split()[2:6] == ["4", "(2.00)", "50", "(0.50)"]
    assert lines[4].split()[2:5] == ["-", "400", "(4.00)"], "nothing uses no time of its own"


def test_the_picture_has_a_bar_for_each_tunnel() -> None:
    picture = report.picture(BULK, ROUNDS)
    names = [element.text for element in ET.fromstring(picture).iter() if element.text]  # noqa: S314
    assert SHADOW in names
    assert "ssh -R" in names
    assert NOTHING not in names


def test_cpu_time_of_children_counts_even_if_they_have_ended(tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 0.5: pass\n"
    code = f"import os, time\nif not os.fork():\n    exec({burn!r})\n    os._exit(0)\nos.wait()\n"
    code += "time.sleep(1000)"
    with Group(tmp_path / "group") as group:
        group.start("parent", sys.executable, "-c", code)
        group.wait_for(lambda: group.cpu > 0.4, "the child's time")
        before = group.cpu
        pid = group._running[0][0].pid
        group.wait_for(lambda: len(descendants(pid)) == 1, "its end")
        assert group.cpu >= before


def test_processes_end_with_their_group(tmp_path: Path) -> None:
    code = "import os, time; os.fork() or os.setsid(); time.sleep(1000)"
    with Group(tmp_path / "group") as group:
        group.start("parent", sys.executable, "-c", code)
        ((process, _log),) = group._running
        group.wait_for(lambda: len(descendants(process.pid)) == 2, "the child")
        pids = descendants(process.pid)
    end = time.monotonic() + DEADLINE
    while any(Path(f"/proc/{pid}").exists() and _runs(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_ends_early_is_an_error_with_its_words(tmp_path: Path) -> None:
    with Group(tmp_path / "group") as group:
        group.start("loud", "sh", "-c", "echo no such luck; exit 3")
        with pytest.raises(BenchError, match="loud ended: no such luck"):
            group.wait_for(lambda: False, "nothing")
        with pytest.raises(BenchError, match="false failed"):
            group.run("false", "false")


def test_listening_is_seen_without_connecting() -> None:
    port = free_port()
    assert not listens(port)


def test_what_the_machine_compares_with_is_what_setup_installs() -> None:
    assert set(peers()) == {"haproxy", "libnginx-mod-stream", "nginx", "stunnel4"}


def test_units_need_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_ETC", tmp_path / "away")
    with (
        Group(tmp_path / "group") as group,
        pytest.raises(BenchError, match="package shadow-tunnel is not installed"),
    ):
        units.open_units(group, Keys(tmp_path), 1)


def test_processes_of_others_count_too_and_the_last_word_is_said(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with Group(tmp_path / "group") as group:
        assert group.cpu == 0
        group.follow(os.getpid())
        group.at_end("touch", str(said))
        assert group.cpu > 0
        assert not said.exists()
    assert said.exists()
