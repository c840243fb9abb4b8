"""Boots a machine for a person to look around in, until Ctrl-C: ``python -m tests.machine.shell``."""

# ruff: noqa: T201  # it talks to a person

import argparse
import shlex
import signal
import sys
import threading
import time

from . import package
from .cache import BuildError
from .debian import RELEASES
from .image import find
from .qemu import Machine, MachineError


def main() -> int:
    """Boot, say how to get in, and wait."""
    parser = argparse.ArgumentParser(prog="python -m tests.machine.shell", description=__doc__)
    parser.add_argument("--release", choices=RELEASES, default=RELEASES[0])
    parser.add_argument("--install", action="store_true", help="with the package, built from this tree")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts its background jobs with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    started = time.monotonic()
    try:
        image = find(arguments.release)
        print(f"image: {image.directory} ({time.monotonic() - started:.1f} s)", flush=True)
        started = time.monotonic()
        with Machine(image) as machine:
            if arguments.install:
                package.install(machine, package.build(arguments.release))
            print(f"up after {time.monotonic() - started:.1f} s")
            print(f"ssh:     {shlex.join(machine.ssh_command())}")
            print(f"console: socat -,rawer,escape=0x1d UNIX:{machine.console_socket}")
            print("Ctrl-C ends it", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        return 0
    except (BuildError, MachineError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
