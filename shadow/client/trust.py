"""How the robot proves who it is, and whom it trusts: its certificate and CA, as settings for TLS."""

import contextlib
import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..daemon.config import ClientConfig
from ..errors import ClockError, ShadowError
from ..pki.certificates import Purpose
from ..pki.expiry import Term, terms
from ..transport import context as contexts
from ..transport import handshake
from ..transport.context import Settings
from ..transport.link import Link
from .certificate_store import CertificateStore, LoadedPair


@dataclass(frozen=True, slots=True)
class Offer:
    """What a session is made for; other settings need another session.

    Attributes:
        robot: its name.
        server: where it dials; if there are several, in any order.
        services: their names.
        certificate: the fingerprint of the certificate that we showed the server.
    """

    robot: str
    server: str
    services: tuple[str, ...]
    certificate: str

    def to_json(self) -> dict[str, Any]:
        """All of it, for ``from_json`` of another process."""
        return {
            "robot": self.robot,
            "server": self.server,
            "services": self.services,
            "certificate": self.certificate,
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Offer":
        """What another process has recorded.

        Raises:
            KeyError, TypeError: it is not that.
        """
        services = tuple(map(str, facts["services"]))
        return cls(str(facts["robot"]), str(facts["server"]), services, str(facts["certificate"]))


class Trust:
    """Whom one robot trusts, and how it identifies itself.

    Attributes:
        settings: how new connections do their handshakes; None while our clock is wrong.
        certificates: the pairs to choose from.
        no_ktls: why the kernel will not encrypt, or None if it will.
    """

    def __init__(self, config: ClientConfig, *, late: bool) -> None:
        """Read all files.

        Args:
            config: where they are.
            late: accept a certificate that has expired but may still be renewed.

        Raises:
            ConfigError: a file is wrong, or the certificate is another robot's.
            LocalError: kernel TLS is required and missing.
            ClockError: (``--once`` only) our certificate is not valid yet.
        """
        self.settings: Settings | None = None
        self.certificates = CertificateStore(config.files, config.state, config.robot)
        self.no_ktls = contexts.check_kernel(config.ktls)
        self._config = config
        try:
            self.load(late=late)
        except ClockError:
            if config.once:
                raise

    def load(self, *, late: bool = False) -> Settings:
        """Read all files again, and choose which of our certificates to use from now on.

        Raises:
            ShadowError: a file is broken, or no certificate is good; the old ones stay in use.
        """
        self.settings = self.settings_for(self.certificates.load(dt.datetime.now(dt.UTC), late=late))
        return self.settings

    def refresh(self) -> Settings:
        """The settings to dial with: a certificate may have expired, or the clock may be right by now.

        Raises:
            ConfigError, ClockError: there never was a good one.
        """
        if self.settings is None:
            return self.load()
        if self.certificates.renews:
            with contextlib.suppress(ShadowError):
                return self.load()
        return self.settings

    def settings_for(self, pair: LoadedPair) -> Settings:
        """How to do handshakes with these credentials."""
        config, credentials = self._config, pair.credentials
        context = contexts.make_context(credentials)
        return Settings(
            context, Purpose.ROBOT, config.ktls, config.references, credentials.ca, credentials.fingerprint
        )

    def welcomed(self, certificate: str) -> None:
        """A server has welcomed us with this certificate: if it is a new one, keep it.

        Args:
            certificate: its fingerprint.

        Raises:
            LocalError: it cannot be stored.
        """
        for pair in (self.certificates.next, self.certificates.current):
            if pair is not None and pair.credentials.fingerprint == certificate:
                self.certificates.accepted(pair)

    def check(self, link: Link) -> None:
        """Make sure that a link of another process leads to somebody whom we trust today.

        Raises:
            ShadowError: it is not.
        """
        if self.settings is not None:  # else our clock is wrong, so we cannot tell
            handshake.check_again(link, self.settings)

    def offer(self, certificate: str) -> Offer:
        """What a session is made for in which we show the server this certificate."""
        config = self._config
        servers = ",".join(sorted(map(str, config.servers)))
        return Offer(config.robot, servers, tuple(config.services), certificate)

    @property
    def terms(self) -> list[Term]:
        """See ``life.Role``."""
        pair, robot = self.certificates.current, self._config.robot
        if pair is None:  # our clock is wrong, so we cannot tell
            return []
        return terms(pair.credentials, pair.crt, self._config.files.ca, f"`shadow-ca robot {robot} --renew`")
