"""Boots a machine for a person to look around in, until Ctrl-C: ``python -m tests.machine.shell``."""

# ruff: noqa: T201  # it talks to a person

import argparse
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

from .deploy import deploy
from .image import RELEASES, ImageError, find
from .qemu import Machine, MachineError

CHECKOUT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Boot, say how to get in, and wait."""
    parser = argparse.ArgumentParser(prog="python -m tests.machine.shell", description=__doc__)
    parser.add_argument("--release", choices=RELEASES, default=RELEASES[0])
    parser.add_argument("--deploy", action="store_true", help="put the working tree into it")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts its background jobs with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    started = time.monotonic()
    try:
        image = find(arguments.release)
        print(f"image: {image.directory} ({time.monotonic() - started:.1f} s)", flush=True)
        started = time.monotonic()
        with Machine(image) as machine:
            if arguments.deploy:
                deploy(machine, CHECKOUT)
            print(f"up after {time.monotonic() - started:.1f} s")
            print(f"ssh:     {shlex.join(machine.ssh_command())}")
            print(f"console: socat -,rawer,escape=0x1d UNIX:{machine.console_socket}")
            print("Ctrl-C ends it", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        return 0
    except (ImageError, MachineError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
