"""What all commands have in common when they read their words."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from . import __version__
from .errors import UsageError


class Parser(argparse.ArgumentParser):
    """Raises what ``argparse`` would print and exit for; an abbreviated option is a wrong one."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings, allow_abbrev=False)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """See ``argparse``."""
        raise UsageError(f"{message} (see {self.prog} --help)")


Commands = argparse._SubParsersAction  # noqa: SLF001 - what add_subparsers() returns has no public name


def main_parser(program: str, description: str, epilog: str) -> Parser:
    """The parser of a command that has commands of its own."""
    parser = Parser(
        prog=program,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    return parser


def add_command(
    commands: "Commands[Parser]", name: str, run: Callable[..., None], text: str, epilog: str = ""
) -> Parser:
    """The parser of one of them; ``run`` becomes an attribute of what it parses."""
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser
