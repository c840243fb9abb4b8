"""The command ``shadow-server``."""

import functools

from ..admin.endpoints import AdminEndpoints
from ..daemon import life
from ..daemon.config import ServerConfig, parse_server
from ..daemon.patience import Patience
from ..errors import ConfigError
from ..server.server import Extra, Server
from . import process


def main() -> int:
    """Run the server; return the exit status."""
    patience = Patience()

    def run() -> None:
        config = parse_server()
        make_role = functools.partial(Server, config, extras=_extras(config))
        life.run(make_role, patience.started, config.log_level.number)

    attempt = patience.watch(run)
    return patience.leave(process.run("shadow-server", attempt))


def _extras(config: ServerConfig) -> list[Extra]:
    """What stands on top of the server.

    Raises:
        ConfigError: a file is wrong, or a library is missing.
    """
    membership = config.membership
    if membership is None:
        return [AdminEndpoints()]
    try:
        from ..fleet.joining import Member  # noqa: PLC0415 - it needs what may be missing
    except ImportError as error:
        text = "--fleet needs the Python library aiohttp (Debian: python3-aiohttp)"
        raise ConfigError(text) from error
    return [Member(membership, config), AdminEndpoints()]


if __name__ == "__main__":
    raise SystemExit(main())
