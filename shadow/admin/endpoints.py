"""What a server answers besides robots: its API, metrics and health, each on a socket that systemd passes.

The first two need libraries that not every machine has. Without one the server runs, says so, and gives no
caller what it wants.
"""

import logging
import socket
from collections.abc import Callable

from .. import events
from ..server.server import Extra, Server
from ..systemd import fdstore
from . import varlink
from .task_server import TaskServer

METRICS_NAME = "shadow-metrics"
"""``FileDescriptorName=`` of the metrics' socket unit; the API's is in ``varlink``."""
HEALTH_NAME = "shadow-health"
"""The same of the health checks'."""


class AdminEndpoints(Extra):
    """The open endpoints of one server."""

    def __init__(self) -> None:
        self._sockets: dict[str, list[socket.socket]] = {}
        self._open: list[TaskServer] = []

    def prepare(self, server: Server) -> None:
        """Take the sockets.

        Raises:
            ConfigError: what systemd passed is not a listening socket.
        """
        store = server.durable.store
        self._sockets = {name: fdstore.listening_sockets(name, store) for name in _MAKE}

    def open(self, server: Server) -> None:
        """Open those for which there are sockets; they query the server."""
        for name, sockets in self._sockets.items():
            if sockets:
                endpoint = _MAKE[name](server)
                self._open.append(endpoint)
                for sock in sockets:
                    endpoint.listen(sock, server.robots.descriptors)

    async def close(self) -> None:
        """Close them all."""
        for endpoint in self._open:
            await endpoint.close()


def _make_api(server: Server) -> TaskServer:
    try:
        from .methods import Methods, make_service  # noqa: PLC0415 - it needs what may be missing
    except ImportError:  # Debian 12 has it in backports only
        why = "the Python library varlink is missing (Debian: python3-varlink)"
        events.log(events.ApiUnavailable(), logging.WARNING, f"shadowctl cannot ask this server: {why}")
        return varlink.Api(None, server.robots.elsewhere.overview)
    return varlink.Api(make_service(Methods(server)), server.robots.elsewhere.overview)


def _make_metrics(server: Server) -> TaskServer:
    from .http import MetricsServer  # noqa: PLC0415 - most servers are not scraped

    try:
        from .metrics import Metrics  # noqa: PLC0415 - it needs what may be missing
    except ImportError:
        why = "the Python library prometheus_client is missing (Debian: python3-prometheus-client)"
        events.log(events.MetricsUnavailable(), logging.WARNING, f"nobody can scrape this server: {why}")
        return MetricsServer(None)
    return MetricsServer(Metrics(server).page)


def _make_health(server: Server) -> TaskServer:
    from .health import HealthServer  # noqa: PLC0415 - most servers have no balancer

    return HealthServer(server)


_MAKE: dict[str, Callable[[Server], TaskServer]] = {
    varlink.SOCKET_NAME: _make_api,
    METRICS_NAME: _make_metrics,
    HEALTH_NAME: _make_health,
}  # an unnamed socket is the first one's
