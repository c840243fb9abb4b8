"""Completion in bash: what it offers, against what the programs take."""

import argparse
import subprocess
from pathlib import Path

import pytest

from shadow.transport.context import Ktls
from tests.support import CHECKOUT, parsers

FOLDER = CHECKOUT / "lib" / "bash-completion"
SCRIPT = r"""
source "$1"
COMP_WORDS=("${@:2}") COMP_CWORD=$(($# - 2))
registered=$(complete -p "$2")
[[ $registered =~ -F\ ([a-z_]+) ]]
"${BASH_REMATCH[1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""
FILES = ("--ca", "--crt", "--key", "--crl", "--signer", "--from")
FOLDERS = ("--ldir", "--dir", "--out", "--state")
CASES = [(command, ()) for command in parsers.COMMANDS] + [
    (tool, (command,)) for tool in parsers.TOOLS for command in parsers.subparsers(tool)
]


def complete(*words: str, folder: Path = CHECKOUT) -> list[str]:
    """What bash offers for the last of ``words``; ``=`` is a word of its own, as it is for bash."""
    done = subprocess.run(
        ["bash", "--norc", "-uc", SCRIPT, "bash", FOLDER / words[0], *words],
        capture_output=True, text=True, check=True, cwd=folder,
    )  # fmt: skip
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


def parser_of(command: str, words: tuple[str, ...]) -> argparse.ArgumentParser:
    return parsers.subparsers(command)[words[0]] if words else parsers.parser(command)


def test_every_command_has_a_file() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(parsers.COMMANDS)


@pytest.mark.parametrize(("command", "words"), CASES)
def test_exactly_the_options_there_are(command: str, words: tuple[str, ...]) -> None:
    offered = complete(command, *words, "-")
    assert sorted(offered) == sorted(parsers.flags(parser_of(command, words)))


@pytest.mark.parametrize(("command", "words"), CASES)
def test_a_value_is_no_option_and_a_switch_has_no_value(command: str, words: tuple[str, ...]) -> None:
    for option in parsers.options(parser_of(command, words)):
        for flag in option.flags:
            offered = complete(command, *words, flag, "-")
            assert bool(offered) is not bool(option.metavar), flag


@pytest.mark.parametrize("command", parsers.DAEMONS)
@pytest.mark.parametrize("words", [("--ktls", ""), ("--ktls", "="), ("--ktls", "=", "")])
def test_values_of_an_enumeration(command: str, words: tuple[str, ...]) -> None:
    assert complete(command, *words) == [mode.value for mode in Ktls]


def test_the_beginning_of_a_value_counts() -> None:
    assert complete("shadow-server", "--ktls", "=", "re") == ["require"]
    assert complete("shadow-server", "--max-r") == ["--max-robots"]


@pytest.mark.parametrize(("command", "words"), CASES)
def test_files_and_folders(command: str, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "a folder").mkdir()
    for option in parsers.options(parser_of(command, words)):
        flag = option.flags[-1]
        if flag in FILES:
            wanted = ["a file", "a folder"]
        elif flag in FOLDERS:
            wanted = ["a folder"]
        else:
            continue
        assert sorted(complete(command, *words, flag, "a", folder=tmp_path)) == wanted
        assert sorted(complete(command, *words, flag, "=", "a", folder=tmp_path)) == wanted


def test_the_commands_of_the_ca() -> None:
    commands = set(parsers.subparsers("shadow-ca"))
    assert commands < set(complete("shadow-ca", ""))
    assert complete("shadow-ca", "--dir", "robot", "quick") == ["quickstart"]
    assert complete("shadow-ca", "--dir", "=", "robot", "--force", "quick") == ["quickstart"]
    # A folder that is called like a command is none.
    assert "--json" not in complete("shadow-ca", "--dir", "list", "-")
    assert "--json" in complete("shadow-ca", "--dir", "list", "list", "-")


def test_the_commands_of_shadowctl() -> None:
    assert set(parsers.subparsers("shadowctl")) < set(complete("shadowctl", ""))
    assert complete("shadowctl", "--dir", "list", "stre") == ["streams"]


def test_the_names_of_robots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("011.sock", "012.sock", "web@012.sock", "web@robot-3.sock", "io.shadowtunnel.Server"):
        (tmp_path / name).touch()
    for words in (["status", ""], ["connect", "--fdpass", ""], ["--json", "disconnect", ""]):
        assert complete("shadowctl", "--dir", str(tmp_path), *words) == ["011", "012", "robot-3"]
    monkeypatch.setenv("SHADOW_LDIR", str(tmp_path))
    assert complete("shadowctl", "wait", "r") == ["robot-3"]
    assert complete("shadowctl", "list", "") != []
    monkeypatch.setenv("SHADOW_LDIR", str(tmp_path / "away"))
    assert complete("shadowctl", "wait", "") == []


def test_the_folder_of_a_quickstart(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    assert complete("shadow-ca", "quickstart", "d", folder=tmp_path) == ["demo"]


def test_scripts_are_clean() -> None:
    scripts = sorted(FOLDER.iterdir())
    assert all(path.read_text().startswith("# shellcheck shell=bash\n") for path in scripts)
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
