"""What all commands share when they read their arguments, and the environment variables for options."""

import argparse
import enum
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Generic, NoReturn, TypeVar, get_type_hints

from . import __version__
from .errors import ConfigError, ShadowError, UsageError
from .text import did_you_mean

PREFIX = "SHADOW_"
"""The prefix of all our environment variables."""
VARIABLES = frozenset(
    f"{PREFIX}{name}"
    for name in (
        *("ADVERTISE", "CA", "CA_DIR", "CONNECT_TIMEOUT", "CRL", "CRT"),
        *("ENGINE", "ENGINE_CA", "ENGINE_CRT", "ENGINE_KEY", "ENGINE_LOGIN", "FLEET", "SERVER_ID"),
        *("PEER", "PEER_CRT", "PEER_KEY"),
        *("HANDSHAKE_TIMEOUT", "IPV4", "IPV6"),
        *("KEEPALIVE", "KEY", "KTLS", "LDIR", "LHOST", "LOG_LEVEL", "LPORT"),
        *("MAX_FLEET_SOCKETS", "MAX_HANDSHAKES", "MAX_HANDSHAKE_RATE", "MAX_ROBOTS", "MAX_STREAMS"),
        *("ONCE", "PROXY_PROTOCOL", "REBALANCE", "RHOST", "ROBOT", "RPORT", "SERVER_NAME", "SERVICE"),
        *("SIGNER", "STANDBY", "START_TIMEOUT", "STATE"),
    )
)
"""The variables that any of our programs reads; one file may serve several of them."""
_TESTS = ("SHADOW_MACHINE", "SHADOW_TEST_")  # what the tests tell each other


class Parser(argparse.ArgumentParser):
    """Raises UsageError where ``argparse`` would print and exit; does not accept abbreviated options."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings, allow_abbrev=False)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """See ``argparse``."""
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse_args(self, words: Any = None, namespace: Any = None) -> Any:
        """See ``argparse``; for an unknown option, suggest a similar one."""
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
    """The parser of a subcommand; ``run`` becomes an attribute of what it parses."""
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
    """The long options, without their dashes, including those of all subcommands."""
    found: set[str] = set()
    for action in parser._actions:  # noqa: SLF001 - there is no other way to ask
        found.update(flag[2:] for flag in action.option_strings if flag.startswith("--"))
        if isinstance(action, Commands):
            found.update(*map(_options, action.choices.values()))
    return found


def unknown_variables(environment: Mapping[str, str]) -> Sequence[str]:
    """One line about each variable that looks like ours but that none of our programs reads."""
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
_SECONDS_MAX = 10800  # TCP_KEEPIDLE is at most 32767 (tcp(7)), and a connect timeout counts three times
_Settings = TypeVar("_Settings")
_Words = TypeVar("_Words", bound=enum.StrEnum)


@dataclass(frozen=True, slots=True)
class Option:
    """How a field of a dataclass of settings is given: ``some_thing`` as ``--some-thing``.

    It is part of the field's type, ``Annotated[int, Option(…)]``. A field without a default is required.

    Attributes:
        parse: turns the text into the value; raises ShadowError for a wrong one.
        metavar: what the value is called; empty for a switch, which has none.
        text: for the help.
        short: a second spelling, such as ``-4``.
        several: it may be given several times; in the environment, spaces separate the values.
    """

    parse: Callable[[str], object]
    metavar: str
    text: str
    short: str = ""
    several: bool = False


@dataclass(frozen=True, slots=True)
class Program:
    """A program's help texts, and which options it requires although they have defaults.

    Attributes:
        name: the name of the command.
        description: what it does, in one line.
        epilog: for the end of its help.
        one_of: flags, with what their values are called; one of these two is required.
        also_needed: flags that are also required in the present situation; the usage does not say so.
    """

    name: str
    description: str
    epilog: str
    one_of: Mapping[str, str] = field(default_factory=dict)
    also_needed: Sequence[str] = ()


class Reader(Generic[_Settings]):
    """Reads the settings of a program from the command line, else from the environment.

    Attributes:
        parser: what reads the command line.
    """

    def __init__(
        self, kind: type[_Settings], program: Program, environment: Mapping[str, str] = os.environ
    ) -> None:
        """Read the environment.

        Args:
            kind: a dataclass; each field has an ``Option``.
            program: the texts for help and usage.
            environment: where settings come from that the command line does not give.

        Raises:
            ConfigError: a variable is wrong.
        """
        self._kind = kind
        self._program = program
        self._environment = environment
        found: list[Field[Any]] = list(fields(kind))  # type: ignore[arg-type]
        hints = get_type_hints(kind, include_extras=True)
        self._options: dict[str, Option] = {each.name: hints[each.name].__metadata__[0] for each in found}
        self._needed = {
            _flag(each.name): self._options[each.name].metavar for each in found if each.default is MISSING
        }
        self._defaults = {each.name: None if each.default is MISSING else each.default for each in found}
        self._given = {name: self._from_environment(name) for name in self._options}
        self.parser = main_parser(
            program.name, program.description, f"{_EPILOG}{program.epilog}", self._usage()
        )
        group = self.parser.add_argument_group("needed")
        for name, option in self._options.items():
            self._add(group if _flag(name) in self._needed else self.parser, name, option)

    def read(self, arguments: Sequence[str] | None) -> _Settings:
        """The settings; ``arguments`` None stands for those of the process.

        Raises:
            UsageError: one is wrong, or required ones are missing; the message names all of those.
        """
        words = vars(self.parser.parse_args(arguments))
        given = self._given | {name: value for name, value in words.items() if value is not None}
        there = {_flag(name) for name, value in given.items() if value not in (None, (), [])}
        groups = [[flag] for flag in (*self._needed, *self._program.also_needed)]
        groups += [[*self._program.one_of]] if self._program.one_of else []
        if missing := [flags for flags in groups if there.isdisjoint(flags)]:
            raise UsageError(self._complaint(missing))
        return self._kind(**given)

    def _add(self, to: "argparse._ActionsContainer", name: str, option: Option) -> None:
        flags, given = [option.short, _flag(name)] if option.short else [_flag(name)], self._given[name]
        if not option.metavar:
            to.add_argument(*flags, action="store_true", default=given, help=option.text)
            return
        default = self._defaults[name]
        word = {True: "yes", False: "no"}[default] if isinstance(default, bool) else default
        shown = "" if default in (None, ()) else f" (default: {word})"
        to.add_argument(
            *flags,
            type=_argument(option.parse),
            action="append" if option.several else "store",
            default=None if option.several else given,  # or it would be added to
            metavar=option.metavar,
            help=option.text + shown,
        )

    def _usage(self) -> str:
        words = [f"{flag}={metavar}" for flag, metavar in self._needed.items()]
        either = " | ".join(f"{flag}={metavar}" for flag, metavar in self._program.one_of.items())
        return " ".join(["%(prog)s", *words, *([f"{{{either}}}"] if either else []), "[OPTION]..."])

    def _complaint(self, missing: Sequence[Sequence[str]]) -> str:
        variables = [[variable_name(flag) for flag in flags] for flags in missing]
        are = "is" if len(missing) == 1 else "are"
        if "NOTIFY_SOCKET" in self._environment:  # systemd has started us: settings belong in a file
            file = f"/etc/shadow-tunnel/{self._program.name.removeprefix('shadow-')}.env"
            there = f"{_listed(variables)} {are} missing in {file}"
            return f"{there} (or {_listed(missing, 1)} on the command line)"
        return f"{_listed(missing)} {are} missing (or {_listed(variables, 1)} in the environment)"

    def _from_environment(self, name: str) -> object:
        """The value from the environment, else the default."""
        option, variable = self._options[name], variable_name(_flag(name))
        text = self._environment.get(variable, "")
        if not text:
            return self._defaults[name]
        try:
            return [option.parse(word) for word in text.split()] if option.several else option.parse(text)
        except ShadowError as error:
            raise ConfigError(f"{variable} in the environment: {error}") from error


def _listed(groups: Sequence[Sequence[str]], most: int = 2) -> str:
    """``a``, ``a and b``, ``a, b and c (or d)``: the first of each group, or two of which one is enough."""
    words = [" (or ".join(group[:most]) + ")" * (len(group[:most]) - 1) for group in groups]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def variable_name(flag: str) -> str:
    """The environment variable that stands for an option."""
    return PREFIX + flag.removeprefix("--").replace("-", "_").upper()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _argument(parse: Callable[[str], object]) -> Callable[[str], object]:
    def convert(text: str) -> object:
        try:
            return parse(text)
        except ShadowError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def parse_bool(text: str) -> bool:
    """Yes or no.

    Raises:
        ConfigError: neither.
    """
    if text.lower() in {"1", "yes", "true", "on"}:
        return True
    if text.lower() in {"0", "no", "false", "off"}:
        return False
    raise ConfigError(f"{text!r} is neither yes nor no")


def parse_word(words: type[_Words]) -> Callable[[str], _Words]:
    """A reader of one of these words; for others it raises ConfigError."""

    def parse(text: str) -> _Words:
        try:
            return words(text)
        except ValueError:
            raise ConfigError(f"{text!r} is not one of {', '.join(words)}") from None

    return parse


def parse_seconds(text: str) -> float:
    """A time in seconds.

    Raises:
        ConfigError: it is none, or out of the sensible range.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= _SECONDS_MAX:
        raise ConfigError(f"{text!r} is not a number of seconds from 0.1 to {_SECONDS_MAX}")
    return value


def parse_count(low: int, high: int) -> Callable[[str], int]:
    """A reader of numbers from ``low`` to ``high``; for others it raises ConfigError."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and low <= int(text) <= high):
            raise ConfigError(f"{text!r} is not a number from {low} to {high}")
        return int(text)

    return parse
