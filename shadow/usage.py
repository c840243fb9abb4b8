"""What all commands have in common when they read their words, and the variables that stand for some."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from . import __version__
from .errors import UsageError

PREFIX = "SHADOW_"
"""What the names of all our variables begin with."""
VARIABLES = frozenset(
    f"{PREFIX}{name}"
    for name in (
        *("CA", "CA_DIR", "CONNECT_TIMEOUT", "CRL", "CRT", "HANDSHAKE_TIMEOUT", "IPV4", "IPV6", "KEEPALIVE"),
        *("KEY", "KTLS", "LDIR", "LHOST", "LPORT", "MAX_HANDSHAKES", "MAX_HANDSHAKE_RATE", "MAX_ROBOTS"),
        *("MAX_STREAMS", "ONCE", "RHOST", "ROBOT", "RPORT", "SERVER_NAME", "SERVICE", "SIGNER", "STANDBY"),
        *("START_TIMEOUT", "STATE"),
    )
)
"""Those that any of our programs reads; one file may serve several of them."""
_TESTS = ("SHADOW_MACHINE", "SHADOW_TEST_")  # what the tests tell each other


class Parser(argparse.ArgumentParser):
    """Raises what ``argparse`` would print and exit for; an abbreviated option is a wrong one."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings, allow_abbrev=False)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """See ``argparse``."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse_args(self, words: Any = None, namespace: Any = None) -> Any:
        """See ``argparse``; for an option that there is not, name one that is like it."""
        values, unknown = self.parse_known_args(words, namespace)
        if unknown:
            options = [word.partition("=")[0][2:] for word in unknown if word.startswith("--")]
            near = "".join(did_you_mean(option, _options(self), "--") for option in options[:1])
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return values

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            text = f"{value!r} is not one of {', '.join(known)}{did_you_mean(str(value), known)}"
            raise argparse.ArgumentError(action, text)


Commands = argparse._SubParsersAction  # noqa: SLF001 - what add_subparsers() returns has no public name


def main_parser(program: str, description: str, epilog: str, usage: str | None = None) -> Parser:
    """The parser of a command."""
    parser = Parser(
        prog=program,
        usage=usage,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    return parser


def add_command(
    commands: "Commands[Parser]", name: str, run: Callable[..., None], text: str, epilog: str = ""
) -> Parser:
    """The parser of one of a command's commands; ``run`` becomes an attribute of what it parses."""
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _options(parser: argparse.ArgumentParser) -> set[str]:
    """The long ones, without their dashes; those of all its commands, too."""
    found: set[str] = set()
    for action in parser._actions:  # noqa: SLF001 - there is no other way to ask
        found.update(flag[2:] for flag in action.option_strings if flag.startswith("--"))
        if isinstance(action, Commands):
            found.update(*map(_options, action.choices.values()))
    return found


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """``; did you mean …?`` with the one that is most like a word, or nothing."""
    import difflib  # noqa: PLC0415 - only for whoever has made a mistake

    near = difflib.get_close_matches(word, list(known), n=3)
    # Letters in the wrong order are the most usual mistake, and count no more than others for difflib.
    near.sort(key=lambda one: sorted(one) != sorted(word))
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def unknown_variables(environment: Mapping[str, str]) -> Sequence[str]:
    """What to say about variables that look like ours and that none of our programs reads."""
    unknown = [
        name
        for name in sorted(environment)
        if name.startswith(PREFIX) and name not in VARIABLES and not name.startswith(_TESTS)
    ]
    known = [name.removeprefix(PREFIX) for name in VARIABLES]
    return [
        f"{name!a} in the environment is no setting{did_you_mean(name.removeprefix(PREFIX), known, PREFIX)}"
        for name in unknown
    ]
