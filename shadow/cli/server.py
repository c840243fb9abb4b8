"""The command ``shadow-server``."""

import functools

from .. import daemon
from ..config import parse_server
from ..server import Server
from . import door


def main() -> int:
    """Run the server; return the exit status."""
    return door.run("shadow-server", lambda: daemon.run(functools.partial(Server, parse_server())))


if __name__ == "__main__":
    raise SystemExit(main())
