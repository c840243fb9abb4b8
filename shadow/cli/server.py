"""The command ``shadow-server``."""

import functools

from ..admin.endpoints import AdminEndpoints
from ..daemon import life
from ..daemon.config import parse_server
from ..daemon.patience import Patience
from ..server.server import Server
from . import process


def main() -> int:
    """Run the server; return the exit status."""
    patience = Patience()

    def run() -> None:
        config = parse_server()
        make_role = functools.partial(Server, config, open_endpoints=AdminEndpoints)
        life.run(make_role, patience.started, config.log_level.number)

    attempt = patience.watch(run)
    return patience.leave(process.run("shadow-server", attempt))


if __name__ == "__main__":
    raise SystemExit(main())
