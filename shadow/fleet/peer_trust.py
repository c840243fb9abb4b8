"""Who we are among the servers of the fleet, and whom we take for one of them."""

import dataclasses
import datetime as dt
from collections.abc import Callable

from ..errors import Refused
from ..pki.certificates import Files, Purpose
from ..pki.expiry import Term, terms
from ..pki.peers import load_peer_credentials, peer_of
from ..transport import context as contexts
from ..transport import handshake
from ..transport.context import Ktls, Settings
from ..transport.link import Link
from ..wire.conversation import Party


def _good(_link: Link) -> str | None:
    return None


class PeerTrust:
    """The content of the files, as last read.

    Attributes:
        us: who we are to those who dial us.
        settings: how to do the handshakes of servers that dial us.
        terms: what of it expires.
        revocation: tells why a peer's certificate is no longer good, if it was revoked.
    """

    def __init__(
        self, files: Files, server: str, ktls: Ktls, revocation: Callable[[Link], str | None] = _good
    ) -> None:
        """Read them.

        Args:
            files: the CA of the servers' certificates for each other, and ours from it.
            server: our own id in the fleet.
            ktls: whether the kernel should encrypt.
            revocation: see above; ``Trust.revocation`` of the server's, or nobody is revoked.

        Raises:
            ConfigError: a file is wrong.
            ClockError: our certificate is not valid yet.
        """
        self.us = Party.ANSWERING
        self._files = files
        self._server = server
        self._ktls = ktls
        self.revocation = revocation
        self.terms: list[Term]
        self.settings: Settings
        self.load()

    def load(self) -> None:
        """Read them again, for new connections.

        Raises:
            ShadowError: a file is broken; the old ones stay in use.
        """
        files, ktls = self._files, self._ktls
        credentials = load_peer_credentials(files, self._server, dt.datetime.now(dt.UTC))
        context = contexts.make_context(credentials)
        # The CA is the robots': the server itself knows when it ends.
        own, *_ = terms(credentials, files.crt, files.ca, f"`shadow-ca peer {self._server} --renew`")
        # Nothing below can fail, so everything changes, or nothing.
        self.terms = [own]
        self.settings = Settings(
            context, Purpose.PEER, ktls, ca=credentials.ca, fingerprint=credentials.fingerprint
        )

    def dialling(self, server: str) -> Settings:
        """How to do the handshake with a server that we dial: nobody else may be there."""
        return dataclasses.replace(self.settings, server_names=(server,))

    def server_of(self, link: Link) -> str:
        """The id of the server at the other end.

        Raises:
            IdentityError: it is none; after a handshake with our settings, only a bug can cause that.
        """
        return peer_of(link.certificate)

    def check_again(self, link: Link) -> None:
        """Make sure that we would let in today a connection that the previous daemon has left.

        Raises:
            PeerError: we would not.
            LocalError: the kernel must not encrypt any more.
        """
        handshake.check_again(link, self.settings)
        if why := self.revocation(link):
            raise Refused("revoked", why)
