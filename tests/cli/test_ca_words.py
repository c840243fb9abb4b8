"""The help of ``shadow-ca``: its examples are commands, its exit statuses are there."""

import re
import shlex

import pytest

from tests.support import parsers

TEXTS = {"": parsers.parser("shadow-ca"), **parsers.subparsers("shadow-ca")}


@pytest.mark.parametrize("command", TEXTS)
def test_every_example_is_understood(command: str) -> None:
    examples = re.findall(r"^  shadow-ca (.*?)(?:  .*)?$", TEXTS[command].format_help(), re.M)
    assert examples
    for example in examples:
        words = shlex.split(example)
        assert callable(parsers.parser("shadow-ca").parse_args(words).run)
        assert command in {"", words[0], *words[2:3]}


@pytest.mark.parametrize("command", TEXTS)
def test_the_exit_statuses_are_there(command: str) -> None:
    text = TEXTS[command].format_help()
    assert "exit status: 0 done, 2 usage error, 78 " in text
    assert "74 output error" in text


def test_what_is_replaced_and_what_is_a_comment() -> None:
    said = " ".join(TEXTS[""].format_help().split())
    assert (
        "only replaced with --renew, if they are a certificate or key of the same owner, or with --force"
        in said
    )
    assert "lines that begin with # are ignored" in " ".join(TEXTS["robot"].format_help().split())


@pytest.mark.parametrize("command", TEXTS)
def test_what_is_needed_is_not_in_brackets(command: str) -> None:
    bare = re.sub(r"\[[^\[\]]*\]", "", TEXTS[command].format_usage())
    needed = [str(action.metavar) for action in TEXTS[command]._actions if action.required]
    assert [name for name in needed if name not in bare] == []
    if command == "robot":
        assert "(NAME ... | --from FILE)" in bare
