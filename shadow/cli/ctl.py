"""The command ``shadowctl``: list, monitor and control the robots of a server, and connect to them."""

import argparse
import contextlib
import gc
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from .. import options as command_line
from ..ctl import connect as connects
from ..ctl import tables
from ..ctl.connect import NotConnected
from ..ctl.query import Answers, Facts
from ..errors import LocalError, Unreachable
from ..names import check_robot_name
from ..text import many
from . import process

_FOLDER = "/run/shadow-tunnel"
_FOLDER_VARIABLE = "SHADOW_LDIR"
_SUFFIX = ".robot"  # of the names that users give ssh; see etc/ssh/ssh_config.d
_LOG_LINES = 10
_JSON = "--json"
_EVERYWHERE = {"fleet": True}  # whichever server of the fleet it is at
_WITH_ITS_ROBOTS = "server-joined"  # the event when another server is there again
_LOOK_AGAIN = 0.5  # seconds, while waiting for a robot whose server is not there either
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    return process.run("shadowctl", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    robot = getattr(options, "robot", None)
    if robot is not None:  # an invalid name is an error, whether a robot is connected or not
        check_robot_name(robot)
    options.run(options)


# Looking


def _list(options: argparse.Namespace) -> None:
    robots: list[Facts] = []
    age = 0.0
    with _no_collector(), Answers(options.dir) as answers:
        for reply in answers.more("List", **({} if options.local else _EVERYWHERE)):
            robots += reply["robots"]
            age = reply.get("age", age)
        _tell_age(age)
        # Others than those here come in no order.
        _show(options, sorted(robots, key=itemgetter("name")), tables.robots)


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Do without the garbage collector: of 300,000 robots none is garbage, and looking takes a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _servers(options: argparse.Namespace) -> None:
    with Answers(options.dir) as answers:
        answer = answers.call("Servers")
    _tell_age(answer.get("age", 0.0))
    if "age" in answer or options.json:
        _show(options, answer["servers"], tables.servers)
    else:
        print("the server is not one of a fleet")


def _tell_age(age: float) -> None:
    """What is known of other servers may be old: say so to people and programs alike, beside it."""
    if age > 0:
        print(f"shadowctl: view is {age:.0f} s old: the fleet's engine is away", file=sys.stderr)


def _streams(options: argparse.Namespace) -> None:
    with Answers(options.dir) as answers:
        replies = answers.more("ListStreams", **({"robot": options.robot} if options.robot else {}))
        streams = [stream for reply in replies for stream in reply["streams"]]
    _show(options, streams, tables.streams)


def _show(options: argparse.Namespace, facts: Any, text: Callable[[Any], str]) -> None:
    print(json.dumps(facts, indent=2) if options.json else text(facts))


def _status(options: argparse.Namespace) -> None:
    with Answers(options.dir) as answers:
        if options.robot is None:
            facts = answers.call("GetStatus")
            companions = answers.call("Servers")["servers"] if "server" in facts else []
            _tell_age(facts.get("age", 0.0))
            _show(options, facts, lambda _facts: tables.server(facts, companions))
            return
        answer = answers.call("Describe", name=options.robot, **_EVERYWHERE)
    _tell_age(answer.get("age", 0.0))
    _show(options, answer, tables.robot)
    if not options.json:
        sys.stdout.flush()
        print()
        _show_end_of_log(options.robot)


def _show_end_of_log(robot: str) -> None:
    """Show the end of the log, if this user may read it at all."""
    import subprocess  # noqa: PLC0415 - `connect` must be quick

    command = ["journalctl", f"ROBOT={robot}", "--no-pager", "--quiet", f"--lines={_LOG_LINES}"]
    try:
        subprocess.run(command, stderr=subprocess.DEVNULL, check=False)  # noqa: S603
    except OSError:
        return


def _watch(options: argparse.Namespace) -> None:
    for event in _events(options.dir):
        if options.robot not in {None, event["fields"].get("ROBOT")}:
            continue
        if options.json:
            print(json.dumps(event), flush=True)
        else:
            print(f"{time.strftime('%H:%M:%S')} {tables.event(event)}", flush=True)


def _events(folder: Path) -> Iterator[Facts]:
    """What the server logs, also after a restart."""
    with Answers(folder) as answers:
        yield from _watched(answers)
    while True:
        with contextlib.suppress(Unreachable), Answers(folder) as answers:
            print("shadowctl: the server is back", file=sys.stderr)
            yield from _watched(answers)
        time.sleep(_LOOK_AGAIN)


def _watched(answers: Answers) -> Iterator[Facts]:
    """Events until the server hangs up."""
    try:
        for reply in answers.more("Watch"):
            if reply.get("lost"):
                print(f"shadowctl: {reply['lost']} events were lost", file=sys.stderr)
            if reply.get("event"):
                yield reply["event"]
    except Unreachable as error:
        print(f"shadowctl: {error}; waiting for it", file=sys.stderr)


def _logs(options: argparse.Namespace) -> None:
    words = [word for word in options.words if word != _JSON]
    if options.json or words != options.words:
        words.append("--output=json")
    sys.stdout.flush()
    try:
        os.execvp("journalctl", ["journalctl", f"ROBOT={options.robot}", *words])  # noqa: S606, S607
    except OSError as error:
        raise LocalError(f"cannot run journalctl: {os.strerror(error.errno or 0)}") from error


# Reaching


def _connect(options: argparse.Namespace) -> None:
    with connects.reach(options.dir, options.robot.removesuffix(_SUFFIX), options.service) as sock:
        if options.fdpass:
            connects.hand_over(sock, sys.stdout.fileno())
        else:
            connects.join(sock, sys.stdin.fileno(), sys.stdout.fileno())


def _wait(options: argparse.Namespace) -> None:
    robot = options.robot
    until = time.monotonic() + (options.timeout or math.inf)
    while True:
        try:
            _see_come(options.dir, robot, until)
        except Unreachable as error:  # we also wait for a server that is not there, or goes away
            left = until - time.monotonic()
            if left <= 0:
                raise Unreachable(f"robot {robot} has not come within {options.timeout:g} s") from error
            time.sleep(min(_LOOK_AGAIN, left))
        else:
            return


def _see_come(folder: Path, robot: str, until: float) -> None:
    """Return when a robot is connected: watch first, then check whether it is there already."""
    with Answers(folder, until) as watching:
        for reply in watching.more("Watch"):
            event = reply.get("event") or {"event": "", "fields": {}}
            if event["event"] == "robot-connected" and event["fields"].get("ROBOT") == robot:
                return
            look = reply.get("ready") or reply.get("lost") or event["event"] == _WITH_ITS_ROBOTS
            if look and _is_connected(folder, robot, until):
                return


def _is_connected(folder: Path, robot: str, until: float) -> bool:
    with Answers(folder, until) as answers:
        try:
            return bool(answers.call("Describe", name=robot, **_EVERYWHERE)["robot"]["connected"])
        except NotConnected:
            return False


# Steering


def _disconnect(options: argparse.Namespace) -> None:
    what = "stream" if options.stream else "robot"
    if what == "robot":
        check_robot_name(options.which)
    with Answers(options.dir) as answers:
        ended = answers.call("Disconnect", **{what: options.which})["ended"]
    _show(
        options,
        {"ended": ended},
        lambda _facts: f"{what} {options.which}: {many(ended, 'connection')} ended",
    )


def _reload(options: argparse.Namespace) -> None:
    with Answers(options.dir) as answers:
        answers.call("Reload")


def _drain(options: argparse.Namespace) -> None:
    timeout: float | None = options.timeout
    with Answers(options.dir) as answers:
        limit = {} if timeout is None else {"timeout": timeout}
        robots = answers.call("Drain", draining=True, **limit)["robots"]
    text = f"{many(robots, 'robot')} to go to other servers"
    if timeout is not None:
        text += f"; streams that are left then are ended after {timeout:g} s"
    _show(options, {"robots": robots}, lambda _facts: text)


def _undrain(options: argparse.Namespace) -> None:
    with Answers(options.dir) as answers:
        answers.call("Drain", draining=False)


def _parser() -> argparse.ArgumentParser:
    parser = command_line.main_parser(
        "shadowctl", "List, monitor and control robots, and connect to them.", _EPILOG
    )
    _add_global(parser, Path(os.environ.get(_FOLDER_VARIABLE) or _FOLDER), json_too=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    robots = _command(
        commands, "list", _list, "list the robots that are connected",
        "list", "list --local", "list --json",
    )  # fmt: skip
    robots.add_argument("--local", action="store_true", help="in a fleet: only those of this server")

    status = _command(
        commands, "status", _status, "show details of a robot, or of the server", "status", "status 011"
    )
    status.add_argument("robot", nargs="?", metavar="NAME", help="the robot; without it the server")

    streams = _command(commands, "streams", _streams, "list who visits whom", "streams", "streams 011")
    streams.add_argument("robot", nargs="?", metavar="NAME", help="only the visitors of this robot")

    _command(commands, "servers", _servers, "list the servers of the fleet", "servers", "servers --json")

    watch = _command(commands, "watch", _watch, "show what happens, until you stop it", "watch", "watch 011")
    watch.add_argument("robot", nargs="?", metavar="NAME", help="only what concerns this robot")

    logs = _command(
        commands,
        "logs",
        _logs,
        "show the journal's messages about a robot",
        "logs 011 -f",
        "logs 011 --since=-1h",
    )
    _add_robot(logs)
    logs.add_argument("words", nargs=argparse.REMAINDER, metavar="OPTION", help="for journalctl, e.g. -f")

    connect = _command(
        commands, "connect", _connect, "join standard input and output to a robot's service",
        "connect 011", "connect 011 web",
    )  # fmt: skip
    _add_robot(connect)
    connect.add_argument(
        "service", nargs="?", default="", metavar="SERVICE", help="(default: the default one)"
    )
    connect.add_argument(
        "--fdpass", action="store_true", help="pass on the connection and exit (ssh: ProxyUseFdpass=yes)"
    )

    wait = _command(
        commands, "wait", _wait, "wait until a robot is connected",
        "wait 011", "wait 011 --timeout=60",
    )  # fmt: skip
    _add_robot(wait)
    wait.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="give up then (default: never)")

    disconnect = _command(
        commands, "disconnect", _disconnect, "end a robot's session and streams",
        "disconnect 011", "disconnect --stream 1f",
    )  # fmt: skip
    disconnect.add_argument("which", metavar="NAME", help="the robot, or with --stream a stream's number")
    disconnect.add_argument("--stream", action="store_true", help="end one stream, and nothing else")

    drain = _command(
        commands, "drain", _drain, "have the robots go to other servers of the fleet, and take no more",
        "drain", "drain --timeout=600",
    )  # fmt: skip
    drain.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS",
        help="then end streams of robots that have gone (default: never)",
    )  # fmt: skip
    _command(commands, "undrain", _undrain, "take robots again", "undrain")
    _command(commands, "reload", _reload, "make the server read certificates and revocations again", "reload")
    return parser


def _add_robot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("robot", metavar="NAME", help="the robot")


def _command(
    commands: "command_line.Commands[command_line.Parser]",
    name: str,
    run: Callable[[argparse.Namespace], None],
    text: str,
    *examples: str,
) -> argparse.ArgumentParser:
    lines = "\n".join(f"  shadowctl {example}" for example in examples)
    parser = command_line.add_command(commands, name, run, text, f"examples:\n{lines}\n\n{_STATUSES}")
    # Again, for users who write them after the command; SUPPRESS: do not override those before it.
    _add_global(parser, argparse.SUPPRESS, json_too=argparse.SUPPRESS)
    return parser


def _add_global(parser: argparse.ArgumentParser, folder: Path | str, *, json_too: bool | str) -> None:
    parser.add_argument(
        "--dir", type=Path, default=folder, metavar="DIR", help="folder of the robots' sockets"
    )
    parser.add_argument(_JSON, action="store_true", default=json_too, help="for programs")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


if __name__ == "__main__":
    raise SystemExit(main())
