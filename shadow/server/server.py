"""The server: listens, knows whom it trusts, and has robots."""

import asyncio
import logging
import socket
from collections.abc import Iterator, Sequence

from .. import events
from .. import text as texts
from ..daemon.config import ServerConfig
from ..errors import ShadowError
from ..pki.expiry import Term
from ..relay.durable import DurableStreams
from . import handover, listening
from .admission import Admission
from .handshakes import Handshakes
from .robots import Robots
from .trust import Trust


class Extra:
    """What stands on top of a server, which is the same without it: who else it answers, its fleet.

    By itself it does nothing.
    """

    def prepare(self, server: "Server") -> None:
        """Take what systemd has passed for it, and check that: what goes wrong later costs robots sessions.

        The server is about to start, and has not taken up anything of the daemon before it.

        Raises:
            ConfigError: a socket is of no use.
            LocalError: a port is taken.
        """

    def open(self, server: "Server") -> None:
        """The server accepts robots from now on, and has taken up those of the daemon before it."""

    def reload(self) -> None:
        """Read files again.

        Raises:
            ShadowError: one is broken; the old ones stay in use.
        """

    def cut_off_revoked(self) -> None:
        """Certificates may have been revoked: hang up on who shows one."""

    async def close(self) -> None:
        """Stop, before the server does."""

    @property
    def terms(self) -> Sequence[Term]:
        """What of it expires."""
        return ()

    @property
    def status(self) -> str:
        """Words for ``systemctl status``; may be empty."""
        return ""

    def describe(self) -> Iterator[str]:
        """Lines for debugging."""
        yield from ()


class Server:
    """One server; ``start`` it, then it runs until ``stop``.

    Attributes:
        durable: the robots' streams, and the store that outlives us.
        trust: whom it trusts.
        robots: all known robots.
        handshakes: connections that have not identified themselves yet.
        resumed: how many streams and sessions of the previous daemon continue.
        failure: see ``life.Role``; a server can always continue.
    """

    def __init__(self, config: ServerConfig, durable: DurableStreams, extras: Sequence[Extra] = ()) -> None:
        """Check everything that can be checked without accepting anybody.

        Args:
            config: the settings.
            durable: keeps streams, and has the store.
            extras: what is to stand on top of it.

        Raises:
            ConfigError: a file or folder is wrong.
            ClockError: our certificate is not valid yet.
            LocalError: kernel TLS is required and missing.
        """
        self.durable = durable
        self.failure: asyncio.Future[ShadowError] = asyncio.get_running_loop().create_future()
        self.resumed = {"streams": 0, "sessions": 0}
        self._config = config
        self.trust = trust = Trust(config)
        self.robots = Robots(config, durable, trust)
        self._admission = Admission(self.robots, trust, config.max_robots)
        self.handshakes = Handshakes(config, trust, self._admission.dispatch, self.robots.descriptors)
        self._extras = extras
        self._sockets: list[socket.socket] = []
        self._stopping = False

    async def start(self) -> None:
        """Listen; when this returns, robots are accepted.

        Raises:
            UsageError: no port, neither from systemd nor by ``--lport``.
            ConfigError: a socket from systemd is of no use.
            LocalError: a port is taken.
        """
        store = self.durable.store
        self._sockets = listening.listen(self._config, store)
        for extra in self._extras:
            extra.prepare(self)
        # Before everything that can wait: until then streams stand still, and robots and visitors wait.
        self.resumed["streams"] = self.durable.resume(self._admission.resume_stream)
        self.resumed["sessions"] = handover.resume(store, self._admission)
        self.robots.descriptors.count()
        self.handshakes.open(self._sockets)
        for extra in self._extras:
            extra.open(self)
        text = f"accepting robots on {listening.where(self._sockets)}, sockets in {self._config.ldir}"
        if self._config.crl is not None or self.trust.lists:
            text += f"; {self.trust.who_is_revoked}"
        events.log(events.ServerReady(), logging.INFO, text)
        if self.trust.no_ktls:
            event = events.KtlsUnavailable()
            text = f"encrypting in userspace: {self.trust.no_ktls}"
            events.log(event, logging.WARNING, text)

    def reload(self) -> str:
        """Read certificates, CA and revocations again, for new connections; cut off revoked robots.

        Sockets that somebody has removed are made again.

        Returns:
            A remark on how many are revoked now, for the log.

        Raises:
            ShadowError: a file is broken; the old ones stay in use.
        """
        for extra in self._extras:
            extra.reload()
        self.trust.load()
        self.cut_off_revoked()
        self.robots.look_after_sockets()
        return self.trust.who_is_revoked

    def cut_off_revoked(self) -> None:
        """Certificates may have been revoked: end whatever is there with one of them."""
        ended = self.robots.cut_off_revoked()
        for extra in self._extras:
            extra.cut_off_revoked()
        if ended:
            text = f"cut off robots with revoked certificates: {ended} sessions and streams ended"
            events.log(events.Revoked(), logging.WARNING, text)

    async def stop(self) -> None:
        """Stop accepting; leave the robots to the next daemon, or end their sessions properly."""
        self._stopping = True
        for extra in self._extras:
            await extra.close()
        await self.handshakes.close()
        self._admission.close()
        await self.robots.signer.close()
        self.robots.descriptors.close()
        handover.leave(list(self.robots.values()), self.durable.store, self.trust.offer)
        for sock in self._sockets:
            sock.close()

    @property
    def unavailable(self) -> str:
        """Why robots had better be sent to another server, in a word; empty if they may come.

        Only what this server knows of itself is a reason.
        """
        # Somebody asks every second: the same holds as for the status.
        if self._stopping:
            return "stopping"
        if self.robots.draining:
            return "draining"
        return "full" if self._admission.full or self.robots.descriptors.robots_wait else ""

    @property
    def status(self) -> str:
        """A line for ``systemctl status``."""
        # Called every second: do nothing here whose time grows with the number of robots.
        no_ktls = self.trust.no_ktls
        encryption = f"userspace TLS ({no_ktls})" if no_ktls else "kernel TLS"
        streams = texts.many(self.durable.relay.streams, "stream")
        robots = f"{texts.many(self.robots.connected, 'robot')}, {streams}{self.durable.remark}"
        return ", ".join([robots, encryption, *filter(None, (extra.status for extra in self._extras))])

    def describe(self) -> Iterator[str]:
        """See ``life.Role``."""
        yield f"server: {self.status}"
        for extra in self._extras:
            yield from extra.describe()
        for robot in list(self.robots.values()):
            yield from robot.describe()

    @property
    def terms(self) -> list[Term]:
        """See ``life.Role``."""
        return [*self.trust.terms, *(term for extra in self._extras for term in extra.terms)]

    @property
    def counts(self) -> dict[str, int]:
        """Robots, streams, protected ones, revoked certificates."""
        return {
            "robots": self.robots.connected,
            "streams": self.durable.relay.streams,
            "protected": self.durable.protected,
            "revoked": self.trust.revoked,
        }
