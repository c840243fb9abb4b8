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
from ..pki.crl import RevocationList, Revocations, find_revocations
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
    """The content of the files, as last read, and lists that have come from elsewhere (``learn``).

    Attributes:
        us: who we are to robots.
        no_ktls: why the kernel does not encrypt; None if it does.
        settings: how to do handshakes.
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
        self._terms: list[Term] = []
        self._revoked = self._configured = self._learnt = Revocations()
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
        configured = self._load_revocations(credentials.ca)
        learnt, _ = Revocations().without_going_back(self._learnt, credentials.ca)
        renewal = shlex.join(["shadow-ca", "server", *host_names(credentials.chain[0]), "--renew"])
        found = terms(credentials, files.crt, files.ca, f"`{renewal}`")
        # Nothing below can fail, so everything changes, or nothing.
        self._configured, self._terms = configured, found
        self.settings = contexts.Settings(
            context, Purpose.SERVER, config.ktls, ca=credentials.ca, fingerprint=credentials.fingerprint
        )
        self._use(learnt)

    def learn(self, listed: RevocationList) -> bool:
        """Take a list that has come from elsewhere, signed by a CA that we trust; no file need be configured.

        Of each CA the newest list counts, wherever it has come from.

        Returns:
            Whether it counts: ours are older.
        """
        counts = not any(ours.key == listed.key and not ours.is_older_than(listed) for ours in self.lists)
        if counts:
            others = [other for other in self._learnt.lists if other.key != listed.key]
            self._use(Revocations([*others, listed]))
        return counts

    def _use(self, learnt: Revocations) -> None:
        self._learnt = learnt
        self._revoked, _ = self._configured.without_going_back(learnt, self.settings.ca)

    @property
    def lists(self) -> Sequence[RevocationList]:
        """Those that count: of each CA at most one."""
        return self._revoked.lists

    @property
    def terms(self) -> list[Term]:
        """The parts that expire."""
        first = self._revoked.first
        if first is None:
            return self._terms
        what = f"list {first.number} of the fleet" if self._is_learnt(first) else f"list {self._config.crl}"
        advice = "make a new one with `shadow-ca crl`"
        return [*self._terms, Term(f"revocation {what}", first.since, first.until, advice)]

    def _is_learnt(self, listed: RevocationList) -> bool:
        return any(listed is other for other in self._learnt.lists)

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
    def numbers(self) -> str:
        """Which lists count; empty if there are none."""
        return self._revoked.numbers

    @property
    def who_is_revoked(self) -> str:
        """How many are revoked, and by which list: for the log."""
        path = self._config.crl
        if not self._revoked.lists:
            return f"nobody is revoked: there is no {path}" if path else "nobody is revoked: no --crl"
        how_many = texts.many(len(self._revoked), "certificate")
        places = dict.fromkeys("of the fleet" if self._is_learnt(one) else f"in {path}" for one in self.lists)
        return f"{how_many} revoked by list {self._revoked.numbers} {' and '.join(places)}"

    def _load_revocations(self, ca: Sequence[x509.Certificate]) -> Revocations:
        if self._config.crl is None:
            return Revocations()
        found = find_revocations(self._config.crl, ca, whole=self._config.fleet is not None)
        if found is None:
            if self._configured.lists:
                text = f"revocation list {self._config.crl} has vanished; the one in use stays in use"
                events.log(events.ListTooOld(), logging.WARNING, text)
            return self._configured
        revoked, kept = found.without_going_back(self._configured, ca)
        for listed in kept:
            text = (
                f"revocation list {self._config.crl} has an older one, or none, of a CA that is trusted: "
                f"list {listed.number} of {listed.ca} stays in use"
            )
            events.log(events.ListTooOld(), logging.WARNING, text)
        return revoked
