"""What all commands have in common when they read their words."""

import pytest

from shadow import __version__
from shadow.errors import UsageError
from shadow.options import VARIABLES, Parser, add_command, main_parser, unknown_variables
from tests.support import parsers


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


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["--lnog", "do"], "did you mean --long?"),
        (["--lnog=3", "do"], "did you mean --long?"),
        (["do", "--logn"], "did you mean --long?"),
        (["do", "--shrt"], "did you mean --short?"),
        (["udno"], "'udno' is not one of do, undo; did you mean undo?"),
    ],
)
def test_what_is_like_a_wrong_word_is_named(words: list[str], near: str) -> None:
    parser = main_parser("it", "text", "end")
    parser.add_argument("--long")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_command(commands, "do", print, "do it").add_argument("--short")
    add_command(commands, "undo", print, "undo it")
    with pytest.raises(UsageError) as caught:
        parser.parse_args(words)
    assert near in str(caught.value)


@pytest.mark.parametrize("words", [["--xyzzy"], ["-x"], ["do", "stray"]])
def test_what_is_like_nothing(words: list[str]) -> None:
    parser = main_parser("it", "text", "end")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_command(commands, "do", print, "do it")
    with pytest.raises(UsageError) as caught:
        parser.parse_args([*words, *([] if "do" in words else ["do"])])
    assert "did you mean" not in str(caught.value)


def test_the_variables_are_those_that_the_programs_read() -> None:
    read = set().union(*(parsers.variables(daemon) for daemon in parsers.DAEMONS))
    assert read | {"SHADOW_CA_DIR"} == VARIABLES


def test_variables_that_are_no_settings() -> None:
    environment = dict.fromkeys(VARIABLES, "x")
    assert unknown_variables({**environment, "FDSTORE": "1", "SHADOW": "x", "SHADOW_TEST_STEP": "x"}) == []
    assert unknown_variables(
        {**environment, "SHADOW_KEEP_ALIVE": "5", "SHADOW_\x1b": "", "SHADOW_CLR": "x"}
    ) == [
        "'SHADOW_\\x1b' in the environment is no setting",
        "'SHADOW_CLR' in the environment is no setting; did you mean SHADOW_CRL?",
        "'SHADOW_KEEP_ALIVE' in the environment is no setting; did you mean SHADOW_KEEPALIVE?",
    ]
