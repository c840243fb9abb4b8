"""The command ``shadow-server``."""

import functools

from .. import daemon
from ..config import parse_server
from ..doors import Doors
from ..patience import Patience
from ..server import Server
from . import door


def main() -> int:
    """Run the server; return the exit status."""
    patience = Patience()

    def run() -> None:
        daemon.run(functools.partial(Server, parse_server(), open_endpoints=Doors), patience.started)

    attempt = patience.watch(run)
    return patience.leave(door.run("shadow-server", attempt))


if __name__ == "__main__":
    raise SystemExit(main())
