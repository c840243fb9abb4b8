"""The command ``shadow-client``."""

import functools

from ..client.client import Client
from ..daemon import life
from ..daemon.config import parse_client
from ..daemon.patience import Patience
from . import process


def main() -> int:
    """Run the client; return the exit status."""
    patience = Patience()
    attempt = patience.watch(lambda: life.run(functools.partial(Client, parse_client()), patience.started))
    return patience.leave(process.run("shadow-client", attempt))


if __name__ == "__main__":
    raise SystemExit(main())
