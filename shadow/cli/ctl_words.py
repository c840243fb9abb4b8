"""The command line of ``shadowctl``, and its help."""

import argparse
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from .. import options as command_line

JSON = "--json"

_FOLDER = "/run/shadow-tunnel"
_FOLDER_VARIABLE = "SHADOW_LDIR"
_STATUSES = """\
Exit status: 0 done, 2 usage error, 69 the robot or the server is not there, 71 system error, 74 output
error, 76 a server of another version, 77 permission denied, 78 the request makes no sense."""
_EPILOG = f"""\
Read-only commands require the group shadow-tunnel; disconnect, drain, undrain and reload require root or
the group shadow-tunnel-admin; logs requires the group adm or systemd-journal.
{_STATUSES}
Without --dir, {_FOLDER_VARIABLE} in the environment names the folder.

examples:
  shadowctl list
  shadowctl logs 011 -f
  shadowctl wait 011 --timeout=60 && ssh user@011.robot uptime
"""

Run = Callable[[argparse.Namespace], None]


def parser(runs: Mapping[str, Run]) -> command_line.Parser:
    """The parser of the command; ``runs`` says what each subcommand does."""
    made = command_line.main_parser(
        "shadowctl", "List, monitor and control robots, and connect to them.", _EPILOG
    )
    _add_global(made, Path(os.environ.get(_FOLDER_VARIABLE) or _FOLDER), json_too=False)
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str, *examples: str) -> argparse.ArgumentParser:
        lines = "\n".join(f"  shadowctl {example}" for example in examples)
        one = command_line.add_command(commands, name, runs[name], text, f"examples:\n{lines}\n\n{_STATUSES}")
        # Again, for users who write them after the command; SUPPRESS: do not override those before it.
        _add_global(one, argparse.SUPPRESS, json_too=argparse.SUPPRESS)
        return one

    robots = command("list", "list the robots that are connected", "list", "list --local", "list --json")
    _add_local(robots, "only those of this server")

    status = command("status", "show details of a robot, or of the server", "status", "status 011")
    status.add_argument("robot", nargs="?", metavar="NAME", help="the robot; without it the server")
    _add_local(status, "only what this server has")

    streams = command("streams", "list who visits whom", "streams", "streams 011")
    streams.add_argument("robot", nargs="?", metavar="NAME", help="only the visitors of this robot")
    _add_local(streams, "only those through this server")

    command("servers", "list the servers of the fleet", "servers", "servers --json")

    watch = command("watch", "show what happens, until you stop it", "watch", "watch 011")
    watch.add_argument("robot", nargs="?", metavar="NAME", help="only what concerns this robot")

    logs = command(
        "logs",
        "show the journal's messages about a robot",
        "logs 011 -f",
        "logs 011 --since=-1h",
    )
    _add_robot(logs)
    logs.add_argument("words", nargs=argparse.REMAINDER, metavar="OPTION", help="for journalctl, e.g. -f")

    connect = command("connect", "join standard input and output to a robot's service",
        "connect 011", "connect 011 web",
    )  # fmt: skip
    _add_robot(connect)
    connect.add_argument(
        "service", nargs="?", default="", metavar="SERVICE", help="(default: the default one)"
    )
    connect.add_argument(
        "--fdpass", action="store_true", help="pass on the connection and exit (ssh: ProxyUseFdpass=yes)"
    )

    wait = command("wait", "wait until a robot is connected",
        "wait 011", "wait 011 --timeout=60",
    )  # fmt: skip
    _add_robot(wait)
    wait.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="give up then (default: never)")

    disconnect = command("disconnect", "end a robot's session and streams",
        "disconnect 011", "disconnect --stream 1f", "disconnect --stream 1f --server=server2",
    )  # fmt: skip
    disconnect.add_argument("which", metavar="NAME", help="the robot, or with --stream a stream's number")
    disconnect.add_argument("--stream", action="store_true", help="end one stream, and nothing else")
    disconnect.add_argument("--server", metavar="SERVER", help="in a fleet: at this server")

    drain = command("drain", "have a server's robots go to others of the fleet, and take no more",
        "drain", "drain server2 --timeout=600",
    )  # fmt: skip
    drain.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS",
        help="then end streams of robots that have gone (default: never)",
    )  # fmt: skip
    undrain = command("undrain", "have a server take robots again", "undrain", "undrain server2")
    for one in (drain, undrain):
        one.add_argument("server", nargs="?", metavar="SERVER", help="which (default: this one)")
    command("reload", "make the server read certificates and revocations again", "reload")
    return made


def _add_local(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--local", action="store_true", help=f"in a fleet: {what}")


def _add_robot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("robot", metavar="NAME", help="the robot")


def _add_global(parser: argparse.ArgumentParser, folder: Path | str, *, json_too: bool | str) -> None:
    parser.add_argument(
        "--dir", type=Path, default=folder, metavar="DIR", help="folder of the robots' sockets"
    )
    parser.add_argument(JSON, action="store_true", default=json_too, help="for programs")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value
