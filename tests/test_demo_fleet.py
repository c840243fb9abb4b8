"""``make demo-fleet``'s script: one of three servers dies, a visitor goes on, and nothing is left behind."""

import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import CHECKOUT
from tests.support.demos import PATIENCE, Terminal, assert_nothing_left, short_folder, wait_for_the_end

DEMO = CHECKOUT / "scripts" / "demo-fleet"
SERVERS = {"server1", "server2", "server3"}

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as made:
        yield made


def stage(folder: Path) -> Terminal:
    # On a busy machine a robot may take longer to get to another server than visitors usually wait for it.
    return Terminal(DEMO, folder, SHADOW_START_TIMEOUT=f"{PATIENCE:g}")


def homes(listing: str) -> dict[str, str]:
    """At which server each robot is, by what ``shadowctl list`` says."""
    return dict(re.findall(r"^  (01\d) +(server\d) +127\.0\.0\.1:\d+ .* default ", listing, re.MULTILINE))


def check(shown: str) -> None:
    """The story that it tells: one of three servers has the robot, dies, and the robot is elsewhere."""
    for name in ("certificates", "etcd", "shadow-server", "sshd", "shadow-client"):
        assert re.search(rf"^  ✓ {name} ", shown, re.MULTILINE), f"no {name} in:\n{shown}"
    assert set(re.findall(r"^  (server\d)  live ", shown, re.MULTILINE)) == SERVERS
    visit, here, home = re.findall(
        r"^(ssh by way of (\w+) to robot 011, which is connected to (\w+))$", shown, re.MULTILINE
    )[0]
    assert here != home
    before, after = shown.split(visit)
    assert set(homes(before)) == {"011", "012", "013"}
    assert homes(before)["011"] == home
    assert re.search(
        r'^  \$ ssh -F ssh.conf 011.robot "uname -srm; uptime -p"\n  Linux ', after, re.MULTILINE
    )
    assert re.search(rf"^  {here}\.log:.* by way of server {home}$", after, re.MULTILINE)
    assert re.search(rf"^  {home}\.log:.* at server {here}\)$", after, re.MULTILINE)
    answers, killed = after.split("$ kill -9 ")
    said = r"^  answer (\d)   after \d+\.\d\d s, from (\w+)$"
    assert re.findall(said, answers, re.MULTILINE) == [(str(number), home) for number in (1, 2, 3)]
    later = dict(re.findall(said, killed, re.MULTILINE))
    assert set(later) == {"4", "5", "6"}
    assert home not in later.values()
    assert set(homes(killed)) == {"011", "012", "013"}
    assert homes(killed)["011"] == later["6"]
    assert home not in homes(killed).values()


def type_in(where: str, command: str) -> str:
    """What it says."""
    done = subprocess.run(
        ["sh", "-c", command], cwd=where, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    return done.stdout


def test_a_server_dies_and_its_robot_answers_from_another_one(folder: Path) -> None:
    with stage(folder) as terminal:
        where = terminal.wait_for(r"Enter or Ctrl-C ends everything and removes (\S+)\.\r\n")[1]
        shown, _, next_ones = terminal.output.replace("\r\n", "\n").partition("Try it from another terminal")
        check(shown)
        cd, visit, servers, robots, settings, logs = re.findall(r"\$ (.+)", next_ones)
        assert cd == f"cd {where}"
        assert type_in(where, f"{visit} echo it is me") == "it is me\n"
        assert ", this one\n" in type_in(where, servers)  # the one that died is among them for ten seconds
        assert "3 robots\n" in type_in(where, robots)
        assert "SHADOW_FLEET=robots\n" in type_in(where, settings)
        assert "accepting robots" in type_in(where, logs.replace("tail -f", "cat"))
        terminal.process.kill()  # without a chance to clean up
        terminal.process.wait(PATIENCE)
        wait_for_the_end(folder)


@pytest.mark.slow  # what test_demo shows of the same code takes less
def test_ctrl_c_in_the_middle(folder: Path) -> None:
    with stage(folder) as terminal:
        terminal.wait_for(r"✓ shadow-server ")
        terminal.type("\x03")
        assert terminal.wait() == 128 + signal.SIGINT
        assert terminal.output.endswith("Interrupted; nothing is left behind.\r\n")
        assert "Traceback" not in terminal.output
    assert_nothing_left(folder)
