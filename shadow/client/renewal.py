"""Keeps a robot's certificate fresh: checks whether it is time for the next one, and requests it.

Whatever fails, the robot keeps what it has, and tries again.
"""

import asyncio
import datetime as dt
import logging
import random

from .. import events
from ..errors import HandshakeError, LocalError, Refused, ShadowError
from ..pki.certificates import moment, serial_of, validity
from ..pki.request import known_code, make_request
from .certificate_store import CertificateStore, LoadedPair
from .session import Session

_LOOK = 60.0  # maximum seconds between looks at the clock, which may jump
_PAUSES = 60  # how often we look, and try again at first, in a certificate's lifetime
_PAUSE_MAX = 3600.0  # seconds until the second try; each further one waits twice as long
_REST_SHARE = (
    8  # looks to skip at most: so there are several tries before the end, and in the grace time after it
)
_DOUBLED_MAX = 5  # times: so tries are at most about a day apart


class Renewer:
    """Requests the certificates of one robot; the robot finds out whether they are any good."""

    def __init__(self, certificates: CertificateStore, name: str) -> None:
        self._certificates = certificates
        self._name = name
        self._loop = asyncio.get_running_loop()
        self._failures = 0
        self._tried = False  # the next pair was given to the caller, who is trying it
        self._due = self._loop.time() + self._pause  # when to look again

    @property
    def patience(self) -> float | None:
        """Seconds until it is time to ``look``; None: never, there is no place for another certificate."""
        return max(0.0, self._due - self._loop.time()) if self._certificates.renews else None

    def connected(self) -> None:
        """Spread what fell due while there was no session, or after an outage a whole fleet asks at once."""
        spread = random.uniform(0.0, self._pause)  # noqa: S311 - no secret
        self._due = max(self._due, self._loop.time() + spread)

    async def look(self, session: Session) -> LoadedPair | None:
        """The next pair, if it is time for one; afterwards call ``succeeded`` or ``failed``.

        Raises:
            ShadowError: it is time, but there is none; call ``failed``.
        """
        self._due = self._loop.time() + self._pause
        present = self._certificates.current
        # Ask the wall clock each time: certificates go by it, and it may have been set meanwhile.
        if present is None or not self._certificates.is_due(dt.datetime.now(dt.UTC)):
            return None
        pair = self._certificates.next
        if pair is None:
            if not session.agreed.renews:
                self._failures = 0
                return None
            request = make_request(self._name, self._certificates.key_to_ask_for(), present.credentials)
            pair = self._certificates.add(await session.renew(request), dt.datetime.now(dt.UTC))
        self._tried = True
        return pair

    def succeeded(self, pair: LoadedPair) -> None:
        """The server has welcomed the robot with this pair."""
        self._failures, self._tried = 0, False
        serial, end = serial_of(pair.certificate), validity(pair.certificate)[1]
        text = f"robot {self._name} has a new certificate, {serial}, valid until {moment(end)}"
        expires = end.isoformat()
        events.log(events.Renewed(robot=self._name, serial=serial, expires=expires), logging.INFO, text)

    def failed(self, error: ShadowError) -> None:
        """There is no new pair, or it is not good: wait for a while."""
        if self._tried and isinstance(error, Refused | HandshakeError):
            error = self._drop() or error
        self._tried = False
        pause = min(_PAUSE_MAX, self._share) * 2 ** min(self._failures, _DOUBLED_MAX)
        pause = min(pause, _REST_SHARE * self._share)
        pause *= random.uniform(0.75, 1.25)  # noqa: S311 - no secret
        self._failures += 1
        text = f"certificate of robot {self._name} not renewed: {error}; next try in {pause:.0f} s"
        code = known_code(error.code) if isinstance(error, Refused) else "failed"
        events.log(events.RenewalFailed(robot=self._name, code=code), logging.WARNING, text)
        self._due = self._loop.time() + pause + self._pause

    def _drop(self) -> LocalError | None:
        """Request it again: if it was refused by accident, we get the same certificate again."""
        try:
            self._certificates.drop_next()
        except LocalError as error:
            return error
        return None

    @property
    def _pause(self) -> float:
        """Seconds from one look to the next."""
        return min(_LOOK, self._share)

    @property
    def _share(self) -> float:
        """Seconds: one part in ``_PAUSES`` of the certificate's lifetime."""
        if self._certificates.current is None:
            return _LOOK
        start, end = validity(self._certificates.current.certificate)
        return (end - start).total_seconds() / _PAUSES
