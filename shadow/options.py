"""What all commands have in common when they read their words, and the variables that stand for some."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from . import __version__
from .errors import ConfigError, ShadowError, UsageError
from .text import did_you_mean

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


_EPILOG = """\
Every option --some-thing can also come from the environment as SHADOW_SOME_THING; the command line wins.
"""
_SECONDS_MAX = 10800  # TCP_KEEPIDLE ends at 32767 (tcp(7)), and a connect timeout counts three times
_NONE: Mapping[str, str] = {}
_T = TypeVar("_T")


class _Options:
    """Declares options and reads their values from the command line and the environment."""

    def __init__(self, program: str, description: str, epilog: str, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._settings = f"/etc/shadow-tunnel/{program.removeprefix('shadow-')}.env"
        self._needed: dict[str, str] = {}  # with what their values are called
        self._needed_here: list[str] = []  # beside them
        self.parser = main_parser(program, description, f"{_EPILOG}{epilog}")
        self._group = self.parser.add_argument_group("needed")

    def need(self, flag: str, parse: Callable[[str], object], metavar: str, text: str) -> None:
        """Declare ``flag`` with a value that has to be given."""
        self._needed[flag] = metavar
        self._add(self._group, flag, parse, metavar, text)

    def need_here(self, flag: str) -> None:
        """An option of ``add`` has to be given, too, as things are; the usage does not say so."""
        self._needed_here.append(flag)

    def add(
        self, flag: str, parse: Callable[[str], object], metavar: str, text: str, *, default: object = None
    ) -> None:
        """Declare ``flag`` with a value; ``default`` None means that there is none."""
        shown = "" if default is None else f" (default: {default})"
        self._add(self.parser, flag, parse, metavar, text + shown, default)

    def _add(
        self,
        to: Any,
        flag: str,
        parse: Callable[[str], object],
        metavar: str,
        text: str,
        default: object = None,
    ) -> None:
        value = self._from_environment(flag, parse, default)
        to.add_argument(flag, type=_argument(parse), default=value, metavar=metavar, help=text)

    def add_switch(self, *flags: str, text: str) -> None:
        """Declare a switch; in the environment ``1`` or ``yes`` switches it on."""
        default = self._from_environment(flags[-1], _parse_bool, default=False)
        self.parser.add_argument(*flags, action="store_true", default=default, help=text)

    def add_list(self, flag: str, parse: Callable[[str], object], metavar: str, text: str) -> None:
        """Declare a repeatable option; in the environment the values stand side by side."""
        none: list[object] = []
        default = self._from_environment(flag, lambda value: [parse(word) for word in value.split()], none)
        self.parser.add_argument(
            flag, type=_argument(parse), action="append", default=None, metavar=metavar, help=text
        )
        self.parser.set_defaults(**{f"{_destination(flag)}_environment": default})

    def parse(self, arguments: Sequence[str] | None, one_of: Mapping[str, str] = _NONE) -> argparse.Namespace:
        """Read the words.

        Args:
            arguments: they, or None for those of the process.
            one_of: flags, with what their values are called; one of these two has to be given.

        Raises:
            UsageError: one is wrong, or something that is needed is missing; all of it is named.
        """
        self.parser.usage = self._usage(one_of)
        values: argparse.Namespace = self.parser.parse_args(arguments)
        groups = [[flag] for flag in (*self._needed, *self._needed_here)] + ([[*one_of]] if one_of else [])
        some = (name for name, value in vars(values).items() if value not in (None, []))
        given = {name.removesuffix("_environment") for name in some}
        if missing := [flags for flags in groups if given.isdisjoint(map(_destination, flags))]:
            raise UsageError(self._complaint(missing))
        return values

    def _usage(self, one_of: Mapping[str, str]) -> str:
        words = [f"{flag}={metavar}" for flag, metavar in self._needed.items()]
        either = " | ".join(f"{flag}={metavar}" for flag, metavar in one_of.items())
        return " ".join(["%(prog)s", *words, *([f"{{{either}}}"] if either else []), "[OPTION]..."])

    def _complaint(self, missing: Sequence[Sequence[str]]) -> str:
        variables = [[variable_name(flag) for flag in flags] for flags in missing]
        are = "is" if len(missing) == 1 else "are"
        if "NOTIFY_SOCKET" in self._environment:  # systemd has started us: it belongs into a file
            there = f"{_listed(variables)} {are} missing in {self._settings}"
            return f"{there} (or {_listed(missing, 1)} on the command line)"
        return f"{_listed(missing)} {are} missing (or {_listed(variables, 1)} in the environment)"

    def _from_environment(self, flag: str, parse: Callable[[str], _T], default: _T) -> _T:
        name = variable_name(flag)
        value = self._environment.get(name, "")
        if not value:
            return default
        try:
            return parse(value)
        except ShadowError as error:
            raise ConfigError(f"{name} in the environment: {error}") from error


def _listed(groups: Sequence[Sequence[str]], most: int = 2) -> str:
    """``a``, ``a and b``, ``a, b and c (or d)``: of each group the first, or two, one of which is enough."""
    words = [" (or ".join(group[:most]) + ")" * (len(group[:most]) - 1) for group in groups]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def variable_name(flag: str) -> str:
    """The environment variable that stands for an option."""
    return PREFIX + _destination(flag).upper()


def _destination(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _argument(parse: Callable[[str], object]) -> Callable[[str], object]:
    def convert(text: str) -> object:
        try:
            return parse(text)
        except ShadowError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def _parse_bool(text: str) -> bool:
    if text.lower() in {"1", "yes", "true", "on"}:
        return True
    if text.lower() in {"0", "no", "false", "off"}:
        return False
    raise ConfigError(f"{text!r} is neither yes nor no")


def _parse_seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= _SECONDS_MAX:
        raise ConfigError(f"{text!r} is not a number of seconds from 0.1 to {_SECONDS_MAX}")
    return value


def _parse_count(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and low <= int(text) <= high):
            raise ConfigError(f"{text!r} is not a number from {low} to {high}")
        return int(text)

    return parse
