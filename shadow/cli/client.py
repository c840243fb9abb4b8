"""The command ``shadow-client``."""

import functools

from .. import daemon
from ..client import Client
from ..config import parse_client
from . import door


def main() -> int:
    """Run the client; return the exit status."""
    return door.run("shadow-client", lambda: daemon.run(functools.partial(Client, parse_client())))


if __name__ == "__main__":
    raise SystemExit(main())
