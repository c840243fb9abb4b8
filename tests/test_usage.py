"""What all commands have in common when they read their words."""

import pytest

from shadow import __version__
from shadow.errors import UsageError
from shadow.usage import Parser, add_command, main_parser


def test_a_wrong_word_is_an_error_and_no_exit() -> None:
    with pytest.raises(UsageError, match=r"unrecognized arguments: x \(see it --help\)"):
        Parser(prog="it").parse_args(["x"])


@pytest.mark.parametrize("words", [["--lon"], ["do", "--lon"]])
def test_nothing_is_abbreviated(words: list[str]) -> None:
    parser = main_parser("it", "text", "end")
    parser.add_argument("--long", action="store_true")
    commands = parser.add_subparsers(required=True)
    add_command(commands, "do", print, "do it").add_argument("--long", action="store_true")
    with pytest.raises(UsageError):
        parser.parse_args(words)
    assert parser.parse_args(["do", "--long"]).run is print


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main_parser("it", "text", "end").parse_args(["--version"])
    assert capsys.readouterr().out == f"it {__version__}\n"
