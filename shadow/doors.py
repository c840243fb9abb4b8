"""What a server answers besides robots: its API and its metrics, each on a socket that systemd passes.

Each takes a library that not every machine has. Without it the server runs, says so, and hangs up on
whoever asks.
"""

import logging
from collections.abc import Callable

from . import api, journal, sd_daemon
from .answering import Answerer
from .journal import Event
from .sd_daemon import Store
from .server import Server

METRICS_NAME = "shadow-metrics"
"""``FileDescriptorName=`` of the metrics' socket unit; the API's is in ``api``."""


class Doors:
    """Those that are open."""

    def __init__(self, server: Server, store: Store, on_exhausted: Callable[[OSError], None]) -> None:
        """Open those that there are sockets for.

        Args:
            server: what is asked.
            store: has the sockets.
            on_exhausted: hears of it when accepting has to pause.

        Raises:
            ConfigError: what was passed is no listening socket.
        """
        self._open: list[Answerer] = []
        for name, make in ((api.SOCKET_NAME, _make_api), (METRICS_NAME, _make_metrics)):
            sockets = sd_daemon.listening_sockets(name, store)
            if sockets:
                door = make(server)
                self._open.append(door)
                for sock in sockets:
                    door.listen(sock, on_exhausted)

    async def close(self) -> None:
        """Close them all."""
        for door in self._open:
            await door.close()


def _make_api(server: Server) -> Answerer:
    try:
        from .operations import Operations, make_service  # noqa: PLC0415 - it needs what may be missing
    except ImportError:  # Debian 12 has it in backports only
        why = "the Python library varlink is missing (Debian: python3-varlink)"
        journal.log(Event.API_UNAVAILABLE, logging.WARNING, f"shadowctl cannot ask this server: {why}")
        return api.Api(None)
    return api.Api(make_service(Operations(server)))


def _make_metrics(server: Server) -> Answerer:
    from .scrape import Exhibition  # noqa: PLC0415 - most servers are not scraped

    try:
        from .metrics import Metrics  # noqa: PLC0415 - it needs what may be missing
    except ImportError:
        why = "the Python library prometheus_client is missing (Debian: python3-prometheus-client)"
        journal.log(Event.METRICS_UNAVAILABLE, logging.WARNING, f"nobody can scrape this server: {why}")
        return Exhibition(None)
    return Exhibition(Metrics(server).page)
