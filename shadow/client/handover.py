"""What the client leaves at a planned restart, and how the next one takes it over.

It leaves a letter with the session, then one for each standby channel. The server notices nothing.
"""

import contextlib
import logging
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from .. import events
from ..errors import LocalError
from ..systemd import mailbox
from ..systemd.bundle import Letter
from ..systemd.fdstore import Store
from ..transport import channel as channels
from ..transport import link as links
from ..transport.channel import Channel
from ..transport.context import Settings
from ..wire.conversation import Party, State
from .opening import Opener
from .session import Agreed, Session
from .trust import Offer, Trust

_SESSION, _STANDBY = "session", "standby"  # kinds of letters


def is_left(store: Store) -> bool:
    """True if the previous client has left anything."""
    return mailbox.is_left(store)


# Leaving


def park(session: Session, record: Mapping[str, Any], offer: Offer, store: Store) -> bool:
    """Leave a session for the next client; False if that is not possible.

    Args:
        session: afterwards it can only be closed.
        record: of what made it; see ``Opener.record``.
        offer: what it was made for.
        store: where to leave it.
    """
    if session.lost.done() or not store.limit:
        return False
    with contextlib.closing(mailbox.Mailbox(store)) as box:
        try:
            facts = {**offer.to_json(), **session.agreed.to_json(), **record}
            _put(box, _SESSION, facts, session.channel)
        except LocalError:
            return False
        for standby in session.standbys.take():
            try:
                _put(box, _STANDBY, {}, standby)
            except LocalError:
                standby.close()
    return True


def _put(box: mailbox.Mailbox, kind: str, record: Mapping[str, Any], channel: Channel) -> None:
    box.put(Letter({"kind": kind, **record, **channel.record}, [channel.link.sock.fileno()]))
    channel.leave()


# Going on


def resume(store: Store, opener: Opener, trust: Trust) -> Session | None:
    """The session that the previous client has left, if there is one and it can continue.

    Whatever is wrong with a part of it ends only that part.
    """
    if trust.settings is None:  # our clock is wrong, so we cannot tell
        return None
    resumption = _Resumption(opener, trust, trust.settings)
    mailbox.deal(mailbox.collect(store), resumption.take, resumption.give_up, 1)
    resumption.finish()
    return resumption.session


class _Resumption:
    """Takes over letters, one by one.

    Attributes:
        session: the session made from them, if any.
    """

    def __init__(self, opener: Opener, trust: Trust, settings: Settings) -> None:
        self.session: Session | None = None
        self._opener = opener
        self._settings = settings
        self._trust = trust
        self._offer = trust.offer(settings.fingerprint)
        self._has_changed = False  # whether the session was made for other settings
        self._kinds = {_SESSION: self._take_session, _STANDBY: self._take_standby}

    def take(self, facts: Mapping[str, Any], sockets: Sequence[socket.socket]) -> None:
        """See ``mailbox.deal``."""
        take = self._kinds.get(facts["kind"])
        if take is None:
            raise LocalError("this version does not know what it is")
        take(facts, sockets[0])

    def _take_session(self, facts: Mapping[str, Any], sock: socket.socket) -> None:
        if Offer.from_json(facts) != self._offer:
            raise self._other_settings()
        if self.session is not None:
            raise LocalError("there is a session already")
        agreed = Agreed.from_json(facts)
        if not self._opener.dials(agreed.target):
            raise self._other_settings()
        control = self._channel(facts, sock, State.OPEN)
        self._opener.recall(facts)
        self.session = self._opener.session(control, agreed, self._settings)

    def _other_settings(self) -> LocalError:
        self._has_changed = True
        return LocalError("the settings have changed")

    def _take_standby(self, facts: Mapping[str, Any], sock: socket.socket) -> None:
        if self.session is None:
            raise LocalError("its session is over")
        self.session.standbys.add(self._channel(facts, sock, State.STANDBY))

    def _channel(self, facts: Mapping[str, Any], sock: socket.socket, state: State) -> Channel:
        link = links.remembered(sock, facts)
        self._trust.check(link)
        return channels.remembered(link, facts, Party.ROBOT, state)

    def give_up(self, _facts: Mapping[str, Any], why: str) -> None:
        """See ``mailbox.deal``."""
        if not self._has_changed:  # else one line for all, below: nothing is wrong
            text = f"a connection of the client before this one cannot go on and ends: {why}"
            events.log(events.SessionGivenUp(robot=self._offer.robot), logging.WARNING, text)

    def finish(self) -> None:
        """There are no more letters."""
        robot = self._offer.robot
        if self._has_changed:
            text = f"robot {robot} connects again: the settings have changed"
            events.log(events.SessionGivenUp(robot=robot), logging.INFO, text)
        if self.session is not None:
            text = f"robot {robot} remains connected to {self.session.agreed.target}"
            events.log(events.SessionsResumed(robot=robot), logging.INFO, text)
            self.session.go_on()
