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

    def run() -> None:
        config = parse_client()
        life.run(functools.partial(Client, config), patience.started, config.log_level.number)

    attempt = patience.watch(run)
    return patience.leave(process.run("shadow-client", attempt))


if __name__ == "__main__":
    raise SystemExit(main())
