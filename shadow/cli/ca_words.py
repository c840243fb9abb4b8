"""The command line of ``shadow-ca``, and its help."""

import argparse
import datetime as dt
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from .. import options as command_line
from ..ca import authority as authorities
from ..errors import ShadowError
from ..names import check_robot_name, check_server_name

AUTHORITY_DAYS = 3650  # ten years: replacing a CA means visiting every robot
LEAF_DAYS = 730
LIST_DAYS = 365  # an outdated list still counts; there is only a warning

_DIR_VARIABLE = "SHADOW_CA_DIR"
_STATUSES = """\
exit status: 0 done, 2 usage error, 78 wrong file or CA, 75 wrong clock, 71 system error (disk full, or
another shadow-ca at work), 74 output error"""
_EPILOG = f"""\
DIR is the CA's folder: --dir, else {_DIR_VARIABLE} in the environment, else the current folder.
Anyone who has DIR/ca.key can impersonate any robot or server: keep it off the server, and back it up.
Files are only replaced with --renew, if they are a certificate or key of the same owner, or with --force.

examples:
  shadow-ca --dir ca init
  shadow-ca --dir ca server tunnel.example.com 192.0.2.7 2001:db8::7
  shadow-ca --dir ca robot 011
  shadow-ca --dir ca revoke 011
  shadow-ca quickstart demo        everything at once, for trying things out

{_STATUSES}
"""

Run = Callable[[argparse.Namespace, dt.datetime], None]


def parser(runs: Mapping[str, Run]) -> command_line.Parser:
    """The parser of the command; ``runs`` says what each subcommand does."""
    made = command_line.main_parser(
        "shadow-ca", "Make the certificates by which robots and servers recognise each other.", _EPILOG
    )
    # From the environment only if the variable is not empty: empty counts as unset.
    _add_global(made, Path(os.environ.get(_DIR_VARIABLE) or "."), force=False)
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str, *examples: str) -> argparse.ArgumentParser:
        lines = "\n".join(f"  shadow-ca {example}" for example in examples)
        one = command_line.add_command(commands, name, runs[name], text, f"examples:\n{lines}\n\n{_STATUSES}")
        # Again, for users who write them after the command; SUPPRESS: do not override those before it.
        _add_global(one, argparse.SUPPRESS, force=argparse.SUPPRESS)
        return one

    init = command("init", "make a new CA in DIR: ca.crt and ca.key", "--dir ca init --name 'My robots'")
    _add_name(init)
    _add_days(init, AUTHORITY_DAYS)

    server = command(
        "server", "make a server's certificate: server.crt and server.key",
        "--dir ca server tunnel.example.com 192.0.2.7", "--dir ca server tunnel.example.com --renew",
    )  # fmt: skip
    server.add_argument("hosts", nargs="+", type=_host, metavar="NAME-OR-IP", help="how robots dial it")
    _add_leaf(server)

    robot = command(
        "robot", "make robots' certificates: NAME.crt and NAME.key of each, all or none",
        "--dir ca robot 011", "--dir ca robot 011 --renew", "--dir ca robot --from names.txt --out robots",
    )  # fmt: skip
    robot.usage = "shadow-ca robot [OPTION ...] (NAME ... | --from FILE)"
    _add_robots(robot)
    _add_leaf(robot)

    peer = command(
        "peer", "make a server's certificate for the other servers of its fleet: peer.crt and peer.key",
        "--dir ca peer a --out a", "--dir ca peer a --out a --renew",
    )  # fmt: skip
    peer.add_argument(
        "server", type=_checked(check_server_name), metavar="NAME", help="the server's id in the fleet"
    )
    _add_leaf(peer)

    revoke = command(
        "revoke", "revoke all certificates of a name, and write DIR/ca.crl",
        "--dir ca revoke 011", "--dir ca revoke 011 --serial 475d89ccbaca3456a0d7d3e5c2a1b09f87654321",
    )  # fmt: skip
    revoke.add_argument("names", nargs="+", metavar="NAME", help="as `shadow-ca list` shows it")
    revoke.add_argument(
        "--serial",
        type=_serial,
        metavar="SERIAL",
        help="only the certificate with this number, and what was made from it",
    )
    _add_days(revoke, LIST_DAYS, "until the next list is due")

    crl = command("crl", "sign the list of revoked certificates again, before it is due", "--dir ca crl")
    _add_days(crl, LIST_DAYS, "until the next list is due")

    _add_list(command(
        "list", "list what the CA has issued, oldest first",
        "--dir ca list", "--dir ca list --ending 60", "--dir ca list 011 012 --json",
    ))  # fmt: skip

    _add_quickstart(command(
        "quickstart", "CA, server and one robot at once, to try it out",
        "quickstart demo", "quickstart demo --robot 012 --host tunnel.example.com",
    ))  # fmt: skip
    return made


def _add_robots(parser: argparse.ArgumentParser) -> None:
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument(
        "robots", nargs="*", default=[], type=_checked(check_robot_name), metavar="NAME",
        help="the robots' names",
    )  # fmt: skip
    either.add_argument(
        "--from", dest="source", type=Path, metavar="FILE",
        help="read the names from FILE, one a line; lines that begin with # are ignored",
    )  # fmt: skip


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="*", default=[], metavar="NAME", help="only the certificates of these names"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--good", action="store_true", help="only those neither expired nor revoked")
    which.add_argument("--expired", action="store_true", help="only those that have expired")
    which.add_argument("--revoked", action="store_true", help="only those that were revoked")
    which.add_argument(
        "--ending",
        type=_days,
        metavar="DAYS",
        help="only the last good one of each name, if it expires by then",
    )
    parser.add_argument("--json", action="store_true", help="for programs, with all details")


def _add_quickstart(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="where all files go (it gets its own CA: --dir is ignored)",
    )
    parser.add_argument(
        "--robot", type=_checked(check_robot_name), default="011", metavar="NAME", help="(default: 011)"
    )
    parser.add_argument(
        "--host",
        dest="hosts",
        action="append",
        type=_host,
        default=[],
        metavar="NAME-OR-IP",
        help="one more name of the server, beside localhost and this machine's (repeatable)",
    )
    _add_name(parser)


def _add_global(parser: argparse.ArgumentParser, folder: Path | str, *, force: bool | str) -> None:
    parser.add_argument("--dir", type=Path, default=folder, metavar="DIR", help="the CA's folder")
    parser.add_argument(
        "--force", action="store_true", default=force, help="overwrite any existing files: think first"
    )


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name",
        type=_checked(authorities.check_authority_name),
        default="Shadow CA",
        metavar="COMMON-NAME",
        help="the CA's name (default: %(default)s)",
    )


def _add_leaf(parser: argparse.ArgumentParser) -> None:
    _add_days(parser, LEAF_DAYS)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go (default: DIR)")
    parser.add_argument("--basename", type=_basename, metavar="BASE", help="BASE.crt and BASE.key instead")
    parser.add_argument(
        "--renew",
        action="store_true",
        help="replace the same owner's previous key and certificate by new ones",
    )


def _add_days(parser: argparse.ArgumentParser, default: int, what: str = "of validity") -> None:
    parser.add_argument(
        "--days", type=_days, default=default, metavar="DAYS", help=f"days {what} (default: %(default)s)"
    )


def _checked(check: Callable[[str], object]) -> Callable[[str], str]:
    """Turn a check of names into an ``argparse`` type: on the command line a bad name is a usage error."""

    def convert(text: str) -> str:
        try:
            check(text)
        except ShadowError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text

    return convert


_host = _checked(authorities.parse_host)


def _days(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= authorities.DAYS_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {authorities.DAYS_MAX}")
    return int(text)


def _serial(text: str) -> int:
    try:
        return int(text.replace(":", ""), 16)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a serial number in hexadecimal") from None


def _basename(text: str) -> str:
    if not text or Path(text).name != text or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text!r} is not a plain file name")
    return text
