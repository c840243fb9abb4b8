"""The command ``shadow-client``."""

import functools

from .. import daemon
from ..client import Client
from ..config import parse_client
from ..patience import Patience
from . import door


def main() -> int:
    """Run the client; return the exit status."""
    patience = Patience()
    attempt = patience.watch(lambda: daemon.run(functools.partial(Client, parse_client()), patience.started))
    return patience.leave(door.run("shadow-client", attempt))


if __name__ == "__main__":
    raise SystemExit(main())
