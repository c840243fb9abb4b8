"""The help of ``shadowctl``: its examples are commands, its exit statuses are there."""

import re
import shlex

import pytest

from shadow.errors import UsageError
from tests.support import parsers

TEXTS = parsers.subparsers("shadowctl")


@pytest.mark.parametrize("command", TEXTS)
def test_every_example_is_understood(command: str) -> None:
    examples = re.findall(r"^  shadowctl (.*)$", TEXTS[command].format_help(), re.M)
    assert examples
    for example in examples:
        words = shlex.split(example)
        assert callable(parsers.parser("shadowctl").parse_args(words).run)
        assert words[0] == command


@pytest.mark.parametrize("seconds", ["0", "-1", "x", "inf", "nan"])
def test_a_time_is_a_number_of_seconds(seconds: str) -> None:
    for words in (["wait", "011"], ["drain"]):
        with pytest.raises(UsageError, match=f"'{seconds}' is not a number of seconds"):
            parsers.parser("shadowctl").parse_args([*words, f"--timeout={seconds}"])
