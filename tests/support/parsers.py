"""The options that the commands really have, as their own parsers tell."""

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from unittest import mock

from shadow.cli import ca, ctl
from shadow.daemon.config import CLIENT, SERVER, ClientConfig, ServerConfig
from shadow.options import Reader, variable_name

DAEMONS: dict[str, Callable[[Mapping[str, str]], argparse.ArgumentParser]] = {
    "shadow-server": lambda environment: Reader(ServerConfig, SERVER, environment).parser,
    "shadow-client": lambda environment: Reader(ClientConfig, CLIENT, environment).parser,
}
TOOLS = {"shadow-ca": ca._parser, "shadowctl": ctl._parser}
COMMANDS = (*TOOLS, *DAEMONS)


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        flags: all its spellings, ``-4`` and ``--ipv4``.
        metavar: what its value is called; empty for a switch.
        default: as a human writes it; empty if there is none.
    """

    flags: tuple[str, ...]
    metavar: str
    default: str

    @property
    def variable(self) -> str:
        """The variable that stands for it."""
        return variable_name(self.flags[-1])

    @property
    def special(self) -> bool:
        """True for those that are about the command itself, and have no variable."""
        return self.flags[-1] in {"--help", "--version"}


def parser(command: str) -> argparse.ArgumentParser:
    """A command's parser, made with an empty environment."""
    if command in TOOLS:
        with mock.patch.dict(os.environ):
            for variable in ("SHADOW_CA_DIR", "SHADOW_LDIR"):
                os.environ.pop(variable, None)
            return TOOLS[command]()
    return DAEMONS[command]({})


def subparsers(tool: str) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the commands of a tool."""
    for action in parser(tool)._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError(f"{tool} has no commands")


def options(of: argparse.ArgumentParser) -> list[Option]:
    """All options of a parser."""
    return [
        Option(
            tuple(action.option_strings),
            "" if action.nargs == 0 else str(action.metavar),
            _default(action.default),
        )
        for action in of._actions
        if action.option_strings
    ]


def flags(of: argparse.ArgumentParser) -> set[str]:
    """All options of a parser, in all their spellings."""
    return {flag for option in options(of) for flag in option.flags}


def all_flags() -> set[str]:
    """Those of all commands."""
    everybody = [*map(parser, COMMANDS), *(one for tool in TOOLS for one in subparsers(tool).values())]
    return set().union(*map(flags, everybody))


def variables(command: str) -> dict[str, Option]:
    """The options of a daemon, by the variables that stand for them."""
    return {option.variable: option for option in options(parser(command)) if not option.special}


def _default(value: object) -> str:
    if value is None or value is False or value in (argparse.SUPPRESS, [], ()):
        return ""
    if value is True:
        return "yes"
    return f"{value:g}" if isinstance(value, float) else str(value)
