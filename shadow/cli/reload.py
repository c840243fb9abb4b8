"""What the units run before a reload: names the changed settings that a reload does not apply.

A daemon cannot see that its settings have changed: its environment is the one it was started with. But what
systemd runs for a reload gets a new environment, made from the unit and its files as they are by then
(systemd.exec(5), ``EnvironmentFile=``). So a separate process compares that with the daemon's.
"""

import logging
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from .. import events
from ..errors import LocalError, UsageError, reason
from ..options import PREFIX
from ..systemd import journal
from . import process

_NAME = "shadow-reload"  # in the journal
_OURS = re.compile(f"{PREFIX}[A-Z0-9_]{{1,32}}")  # a process can write what it likes into its environment
_ENVIRONMENT_MAX = 2**21  # bytes; more than a process may have by default (execve(2))


def main() -> int:
    """Compare, and log the differences; return the exit status."""
    sys.argv[:] = [_NAME]
    return process.run(_NAME, _main)


def _main() -> None:
    pid = os.environ.get("MAINPID", "")
    if not pid.isdecimal():
        raise UsageError("there is no MAINPID in the environment: systemd runs this program for a reload")
    names = changed(_environment_of(int(pid)), os.environ)
    if names:
        journal.setup()
        text = f"a reload does not take {', '.join(names)}, changed since the start"
        events.log(events.SettingsChanged(), logging.WARNING, f"{text}: restart the unit for that")


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names of settings that have changed; an empty one counts as unset."""
    ours = {name for name in {*before, *now} if _OURS.fullmatch(name)}
    return sorted(name for name in ours if before.get(name, "") != now.get(name, ""))


def _environment_of(pid: int) -> dict[str, str]:
    """What a process was started with (proc_pid_environ(5)).

    Raises:
        LocalError: it is not there, or we may not look at it.
    """
    try:
        with Path(f"/proc/{pid}/environ").open("rb") as file:
            data = file.read(_ENVIRONMENT_MAX)
    except OSError as error:
        text = f"cannot tell whether settings have changed: process {pid}: {reason(error)}"
        raise LocalError(text) from error
    words = (os.fsdecode(word).partition("=") for word in data.split(b"\0"))
    return {name: value for name, _, value in words}


if __name__ == "__main__":
    raise SystemExit(main())
