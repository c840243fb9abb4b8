"""The benchmark in a virtual machine, where the kernel has TLS: ``python -m bench.machine``.

Everything is emulated, so seconds tell little: with ``--count`` the machine's clock counts instructions, one
a nanosecond. Its seconds of CPU time are then 10⁹ instructions, and repeat. What is not known here is
handed on to ``python -m bench`` inside.
"""

import argparse
import re
import sys
from pathlib import Path

from tests.machine import image, package
from tests.machine.cache import BuildError
from tests.machine.debian import RELEASES
from tests.machine.qemu import CommandError, Machine, MachineError

_THERE, _OUTCOME = "/srv/bench", "/srv/outcome"


def peers() -> list[str]:
    """The packages that scripts/setup installs for ``make bench``."""
    script = (package.CHECKOUT / "scripts/setup").read_text()
    (words,) = re.findall(r"^bench_packages=\((.*)\)$", script, re.MULTILINE)
    return str(words).split()


def main() -> int:
    """Measure and report; the exit status."""
    parser = argparse.ArgumentParser(prog="bench.machine", description=__doc__, allow_abbrev=False)
    parser.add_argument("--release", choices=RELEASES, default=RELEASES[0])
    parser.add_argument("--count", action="store_true", help="count instructions, on one CPU")
    parser.add_argument("--output", type=Path, default=Path("build/bench-machine"))
    words, others = parser.parse_known_args()
    try:
        _measure(words, others)
    except (BuildError, CommandError, MachineError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(words: argparse.Namespace, others: list[str]) -> None:
    built = package.build(words.release)
    with Machine(image.find(words.release, more=peers()), counted=words.count) as machine:
        package.install(machine, built)
        machine.copy_to(Path(__file__).parent, f"{_THERE}/bench")
        command = ["python3", "-u", "-m", "bench", "--units", f"--output={_OUTCOME}", *others]
        with machine.background(["env", f"--chdir={_THERE}", *command]) as running:
            for line in running.process.stdout or ():  # as it is said
                print(line.decode(), end="", flush=True)
            status, _output, errors = running.finish()
        if status != 0:
            raise MachineError(errors.decode(errors="replace").strip())
        machine.copy_from(_OUTCOME, words.output)


if __name__ == "__main__":
    raise SystemExit(main())
