"""Whether robots should be sent here, for the health checks of balancers.

That is all it tells. Nothing that goes on elsewhere is in it: if what all servers share failed, balancers
would take all of them away at once.
"""

from ..server.server import Server
from .http import Answer, PageServer, text

# More than wait for a restart to end (``Backlog=`` of the socket unit): they come in all at once.
_CHECKS_MAX = 64  # at once


class HealthServer(PageServer):
    """Serves ``/healthz``: 200 if robots may come, else 503 with a word why."""

    def __init__(self, server: Server) -> None:
        super().__init__("/healthz", "health checks", _CHECKS_MAX)
        self._server = server

    async def _page(self, accept: str) -> Answer:
        del accept  # one line of text is for everybody
        return self._last_word() or text("200 OK", "ok")

    def _last_word(self) -> Answer | None:
        why = self._server.unavailable
        # The word is the phrase, too: that is what haproxy shows.
        return text(f"503 {why}", why) if why else None
