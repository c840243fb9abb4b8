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

from ..ctl import connect as connects
from ..ctl import tables
from ..ctl.connect import NotConnected
from ..ctl.query import Answers, Facts
from ..errors import LocalError, Unreachable
from ..names import check_robot_name
from ..text import many, printable
from . import ctl_words, process
from .ctl_words import JSON

_SUFFIX = ".robot"  # of the names that users give ssh; see etc/ssh/ssh_config.d
_LOG_LINES = 10
_EVERYWHERE = {"fleet": True}  # whichever server of the fleet it is at
_WITH_ITS_ROBOTS = "server-joined"  # the event when another server is there again
_LOOK_AGAIN = 0.5  # seconds, while waiting for a robot whose server is not there either


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    return process.run("shadowctl", lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    options = _parser().parse_args(arguments)
    robot = getattr(options, "robot", None)
    if robot is not None:  # an invalid name is an error, whether a robot is connected or not
        check_robot_name(robot)
    options.run(options)


def _parser() -> argparse.ArgumentParser:
    return ctl_words.parser(
        {
            "list": _list,
            "status": _status,
            "streams": _streams,
            "servers": _servers,
            "watch": _watch,
            "logs": _logs,
            "connect": _connect,
            "wait": _wait,
            "disconnect": _disconnect,
            "drain": _drain,
            "undrain": _undrain,
            "reload": _reload,
        }
    )


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
    streams: list[Facts] = []
    robot = {"robot": options.robot} if options.robot else {}
    with Answers(options.dir) as answers:
        for reply in answers.more("ListStreams", **robot, **({} if options.local else _EVERYWHERE)):
            streams += reply["streams"]
            _tell_missing(reply, "not all of its streams are shown")
    # Of a stream from one server to another, both have a half: that of the robot's server is shown.
    halves = {(stream.get("server"), stream["idThere"]) for stream in streams if "idThere" in stream}
    whole = [stream for stream in streams if (stream.get("at"), stream["id"]) not in halves]
    _show(options, whole, tables.streams)


def _tell_missing(reply: Facts, what: str) -> None:
    """Some servers may have given no answer: say so as above."""
    for one in reply.get("missing", ()):
        print(f"shadowctl: {printable(one['reason'])}; {what}", file=sys.stderr)


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
        answer = answers.call("Describe", name=options.robot, **({} if options.local else _EVERYWHERE))
    _tell_age(answer.get("age", 0.0))
    _tell_missing(answer, "this is what it has announced")
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
    words = [word for word in options.words if word != JSON]
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
    where = _of_server(options) or (_EVERYWHERE if what == "robot" else {})
    with Answers(options.dir) as answers:
        ended = answers.call("Disconnect", **{what: options.which}, **where)["ended"]
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
        robots = answers.call("Drain", draining=True, **limit, **_of_server(options))["robots"]
    text = f"{many(robots, 'robot')} to go to other servers"
    if timeout is not None:
        text += f"; streams that are left then are ended after {timeout:g} s"
    _show(options, {"robots": robots}, lambda _facts: text)


def _undrain(options: argparse.Namespace) -> None:
    with Answers(options.dir) as answers:
        answers.call("Drain", draining=False, **_of_server(options))


def _of_server(options: argparse.Namespace) -> Facts:
    return {"server": options.server} if options.server else {}


if __name__ == "__main__":
    raise SystemExit(main())
