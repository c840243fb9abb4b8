"""Whom the server trusts, and how it identifies itself: its certificate, the CA, the revocation lists."""

import datetime as dt
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509

from .. import events
from .. import text as texts
from ..daemon.config import ServerConfig
from ..errors import Refused
from ..names import check_robot_name
from ..pki.certificates import Purpose, common_name, host_names, is_named_peer, load_credentials
from ..pki.crl import Revocations, find_revocations
from ..pki.expiry import Term, terms
from ..transport import context as contexts
from ..transport import handshake
from ..transport.link import Link
from ..wire.conversation import Party


@dataclass(frozen=True, slots=True)
class Offer:
    """The terms that sessions begin with; if they change, robots have to reconnect.

    Attributes:
        certificate: the fingerprint of the server's.
        keepalive: interval, in seconds.
    """

    certificate: str
    keepalive: float

    @property
    def facts(self) -> dict[str, str | float]:
        """For letters."""
        return {"certificate": self.certificate, "keepalive": self.keepalive}


class Trust:
    """The content of the files, as last read.

    Attributes:
        us: who we are to robots.
        no_ktls: why the kernel does not encrypt; None if it does.
        settings: how to do handshakes.
        terms: the parts that expire.
    """

    def __init__(self, config: ServerConfig) -> None:
        """Read them.

        Raises:
            ConfigError: a file is wrong.
            ClockError: our certificate is not valid yet.
            LocalError: kernel TLS is required and missing.
        """
        self._config = config
        self.us = Party.SERVER
        self.no_ktls = contexts.check_kernel(config.ktls)
        self.terms: list[Term] = []
        self._revoked = Revocations()
        self.settings: contexts.Settings
        self.load()

    def load(self) -> None:
        """Read them again, for new connections.

        Raises:
            ShadowError: a file is broken; the old ones stay in use.
        """
        config, files = self._config, self._config.files
        credentials = load_credentials(
            files.ca, files.crt, files.key, Purpose.SERVER, dt.datetime.now(dt.UTC)
        )
        context = contexts.make_context(credentials)
        revoked = self._load_revocations(credentials.ca)
        renewal = shlex.join(["shadow-ca", "server", *host_names(credentials.chain[0]), "--renew"])
        found = terms(credentials, files.crt, files.ca, f"`{renewal}`")
        if revoked.first is not None:
            what, advice = f"revocation list {config.crl}", "make a new one with `shadow-ca crl`"
            found.append(Term(what, revoked.first.since, revoked.first.until, advice))
        # Nothing below can fail, so everything changes, or nothing.
        self._revoked, self.terms = revoked, found
        self.settings = contexts.Settings(
            context, Purpose.SERVER, config.ktls, ca=credentials.ca, fingerprint=credentials.fingerprint
        )

    @property
    def offer(self) -> Offer:
        """The terms that sessions begin with from now on."""
        return Offer(self.settings.fingerprint, self._config.keepalive)

    def robot_of(self, link: Link) -> str:
        """The name of the robot at the other end.

        Raises:
            ConfigError, IdentityError: its certificate has no name, or one that no robot can have.
        """
        # Our CA makes no other names, but a company's own may. This one becomes a file name.
        return check_robot_name(common_name(link.certificate))

    def is_peer(self, link: Link) -> bool:
        """Whether another server of the fleet is at the other end."""
        return is_named_peer(link.certificate)

    def revocation(self, link: Link) -> str | None:
        """Why the peer's certificate is no longer good, if it was revoked."""
        return self._revoked.reason(link.chain)

    def check_again(self, link: Link, *, renews: bool) -> None:
        """Make sure that we would let in today a connection that the previous daemon has left.

        Args:
            link: the connection.
            renews: robots can renew expired certificates.

        Raises:
            PeerError: we would not.
        """
        handshake.check_again(link, self.settings, renews=renews)
        if why := self.revocation(link):
            raise Refused("revoked", why)

    @property
    def revoked(self) -> int:
        """How many certificates are revoked."""
        return len(self._revoked)

    @property
    def who_is_revoked(self) -> str:
        """How many are revoked, and by which list: for the log."""
        path = self._config.crl
        if not self._revoked.lists:
            return f"nobody is revoked: there is no {path}" if path else "nobody is revoked: no --crl"
        how_many = texts.many(len(self._revoked), "certificate")
        return f"{how_many} revoked by list {self._revoked.numbers} in {path}"

    def _load_revocations(self, ca: Sequence[x509.Certificate]) -> Revocations:
        if self._config.crl is None:
            return Revocations()
        found = find_revocations(self._config.crl, ca)
        if found is None:
            if self._revoked.lists:
                text = f"revocation list {self._config.crl} has vanished; the one in use stays in use"
                events.log(events.ListTooOld(), logging.WARNING, text)
            return self._revoked
        revoked, kept = found.without_going_back(self._revoked, ca)
        for listed in kept:
            text = (
                f"revocation list {self._config.crl} has an older one, or none, of a CA that is trusted: "
                f"list {listed.number} of {listed.ca} stays in use"
            )
            events.log(events.ListTooOld(), logging.WARNING, text)
        return revoked
