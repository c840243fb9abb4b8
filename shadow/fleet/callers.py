"""Which servers may ask this one: a connection that has said HELLO on their port is let in or refused."""

import logging

from .. import events
from ..errors import IdentityError, Refused
from ..server.surroundings import SOFTWARE
from ..text import printable, shorten
from ..transport.channel import Channel
from ..wire.conversation import speaks_our_version
from ..wire.frames import PROTOCOL_VERSION, Hello, Refusal, Welcome
from .peer_trust import PeerTrust

_CHANNELS_MAX = 256  # of one server, standing by or with a visitor that waits
_NAME_MAX = 64  # characters of what may be the name of a server or a fleet, in the log and in answers


class Callers:
    """Lets in the servers of one fleet."""

    def __init__(self, fleet: str, trust: PeerTrust) -> None:
        """Let in nobody yet.

        Args:
            fleet: the fleet's name.
            trust: whom we take for one of its servers.
        """
        self._fleet = fleet
        self._trust = trust

    def admit(self, channel: Channel, hello: Hello, peer: str, others: int) -> str | None:
        """Welcome or refuse a server.

        Args:
            channel: it has said HELLO.
            hello: what it has said.
            peer: its address, for humans.
            others: how many channels of it are here already.

        Returns:
            Its name; None if it was refused.
        """
        try:
            server = self._check(channel, hello, others)
        except Refused as refused:
            text = f"server {shorten(hello.robot)} from {peer} {refused}"
            event = events.PeerRefused(server=hello.robot[:_NAME_MAX], peer=peer, code=refused.code)
            events.log(event, logging.WARNING, text)
            channel.send(Refusal(refused.code, refused.text))
            channel.close()
            return None
        channel.send(Welcome(PROTOCOL_VERSION, software=SOFTWARE, answers=True))
        return server

    def _check(self, channel: Channel, hello: Hello, others: int) -> str:
        """Its name.

        Raises:
            Refused: it may not ask.
        """
        try:
            server = self._trust.server_of(channel.link)
        except IdentityError as error:  # pragma: no cover - the handshake lets nobody else in
            raise Refused("name-mismatch", str(error)) from error
        if hello.robot != server:
            raise Refused("name-mismatch", f"the certificate is for server {server}")
        if why := self._trust.revocation(channel.link):
            raise Refused("revoked", why)
        if not speaks_our_version(hello):
            raise Refused("version", f"protocol version {hello.version} is not spoken here")
        if hello.fleet != self._fleet:
            text = f"this is a server of fleet {self._fleet}, not of {printable(hello.fleet[:_NAME_MAX])}"
            raise Refused("fleet", text)
        if others >= _CHANNELS_MAX:
            raise Refused("limit", f"server {server} has {_CHANNELS_MAX} channels here already")
        return server
