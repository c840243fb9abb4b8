"""The machine is real, and the harness does what it says."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from .qemu import CommandError, Machine

VERSIONS = {"trixie": ("257", (3, 13), "6.12."), "bookworm": ("252", (3, 11), "6.1.")}


def test_it_is_the_release_that_was_asked_for(machine: Machine, release: str) -> None:
    systemd, python, kernel = VERSIONS[release]
    assert f"VERSION_CODENAME={release}\n" in machine.read("/etc/os-release").decode()
    assert machine.run("systemctl --version").stdout.startswith(f"systemd {systemd} ")
    assert machine.run("uname -r").stdout.startswith(kernel)
    found = machine.run(["python3", "-c", "import sys; print(list(sys.version_info[:2]))"]).stdout
    assert tuple(json.loads(found)) == python


def test_systemd_is_its_first_process_and_content(machine: Machine) -> None:
    assert machine.run("ps -p 1 -o comm=").stdout == "systemd\n"
    failed = machine.run("systemctl --failed --plain --no-legend").stdout
    assert failed == ""
    assert machine.run("systemctl is-system-running").stdout == "running\n"


def test_python_has_what_the_package_depends_on(machine: Machine) -> None:
    machine.run(["python3", "-c", "import OpenSSL, cryptography, sdnotify, systemd.daemon"])


def test_a_failing_command_raises_and_tells_why(machine: Machine) -> None:
    with pytest.raises(CommandError, match=r"(?s)status 3: .*it broke"):
        machine.run("echo it broke >&2; exit 3")
    assert machine.run("exit 3", check=False).returncode == 3


def test_a_command_that_takes_too_long_is_killed_in_the_machine(machine: Machine) -> None:
    with pytest.raises(TimeoutError, match="not done within"):
        machine.run(["sleep", "12345"], timeout=1)
    machine.wait_until("! pgrep -f 'sleep 1234[5]'")


def test_words_and_standard_input_arrive_unchanged(machine: Machine) -> None:
    words = ["it's", 'a "test"', "$HOME `id` \\", "", "two\nlines"]
    said = machine.run(["python3", "-c", "import sys; print(sys.argv[1:])", *words]).stdout
    assert said == f"{words}\n"
    assert machine.run("cat", stdin="ä\n").stdout == "ä\n"


def test_a_command_runs_as_another_user(machine: Machine) -> None:
    assert machine.run("id -un; pwd >/dev/null", user="nobody").stdout == "nobody\n"


def test_files_go_there_and_back(machine: Machine, tmp_path: Path) -> None:
    here, back = tmp_path / "here", tmp_path / "back"
    (here / "sub").mkdir(parents=True)
    (here / "sub" / "data").write_bytes(bytes(range(256)) * 1000)
    (here / "tool").write_text("#!/bin/sh\necho hello\n")
    (here / "tool").chmod(0o755)
    machine.copy_to(here, "/srv/there")
    assert machine.run("/srv/there/tool; stat -c %U:%G /srv/there/tool").stdout == "hello\nroot:root\n"
    machine.copy_from("/srv/there", back)
    assert (back / "sub" / "data").read_bytes() == (here / "sub" / "data").read_bytes()
    machine.copy_to(here / "tool", "/srv/there/new/tool")
    assert machine.run("/srv/there/new/tool").stdout == "hello\n"
    with pytest.raises(FileNotFoundError):
        machine.read("/srv/nothing")


def test_a_background_command_can_be_talked_to_and_stopped(machine: Machine) -> None:
    with machine.background("cat", user="nobody") as cat:
        assert cat.process.stdin is not None
        assert cat.process.stdout is not None
        cat.process.stdin.write(b"hello\n")
        cat.process.stdin.flush()
        assert cat.process.stdout.readline() == b"hello\n"
        assert cat.finish() == (0, b"", b"")
    with machine.background(["sleep", "54321"]) as sleep:
        sleep.signal("TERM")
        assert sleep.wait() != 0
    with machine.background(["sleep", "54321"]):
        machine.wait_until("pgrep -f 'sleep 5432[1]'")
    machine.wait_until("! pgrep -f 'sleep 5432[1]'")


def test_waiting_for_what_never_comes_tells_what_was_seen(machine: Machine) -> None:
    with pytest.raises(TimeoutError, match="no such thing"):
        machine.wait_until("echo no such thing; false", timeout=2)


def test_the_journal_is_read_from_a_cursor_on(machine: Machine) -> None:
    machine.run("logger -t machine-test before")
    machine.wait_until("journalctl -q -t machine-test | grep before")
    cursor = machine.cursor()
    machine.run("logger -t machine-test after")
    machine.wait_until("journalctl -q -t machine-test | grep after")
    said = machine.journal("-t", "machine-test", after=cursor)
    assert "after" in said
    assert "before" not in said


@pytest.mark.slow
@pytest.mark.parametrize("how", ["reboot", "reset"])
def test_it_comes_back_with_its_disk_and_journal(machine: Machine, how: str) -> None:
    before = machine.boot_id()
    machine.run(f"logger -t machine-test {how} && journalctl --sync && echo kept >/var/{how} && sync")
    getattr(machine, how)()
    assert machine.boot_id() != before
    assert machine.read(f"/var/{how}") == b"kept\n"
    assert how in machine.journal("-t", "machine-test", "--boot=-1")


def test_the_image_is_not_written_to(machine: Machine) -> None:
    disk = machine.image.disk
    before = disk.stat().st_mtime_ns
    machine.run("head -c 10M /dev/urandom >/srv/noise && sync && rm /srv/noise")
    assert disk.stat().st_mtime_ns == before < time.time_ns()


@pytest.mark.slow
def test_nothing_of_a_machine_outlives_it(release: str) -> None:
    from . import image  # noqa: PLC0415

    with Machine(image.find(release), memory=1024, cpus=1) as other:
        children = [process.pid for process in (other._qemu, other._master) if process is not None]
        directory = other.console_socket.parent
        assert directory.is_dir()
    assert len(children) == 2
    assert not directory.exists()
    listed = subprocess.run(
        ["ps", "-o", "pid=", "-p", ",".join(map(str, children))], capture_output=True, check=False
    )
    assert listed.stdout == b""
