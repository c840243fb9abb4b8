"""Keeps a robot's certificate young: asks for the next one in time, and tries it out beside the present one.

Whatever fails, the robot goes on with what it has, and tries again.
"""

import asyncio
import datetime as dt
import logging
import random
from typing import Protocol

from .. import events
from ..errors import HandshakeError, Refused, ShadowError
from ..events import Event
from ..pki.certificates import moment, serial_of, validity
from ..pki.request import known_code, make_request
from .certificate_store import CertificateStore, LoadedPair
from .session import Session

_LOOK = 60.0  # seconds at most between looks at the clock, which may jump
_PAUSES = 60  # how often we look, and try again at first, in a certificate's life
_PAUSE_MAX = 3600.0  # seconds until the second try; each further one waits twice as long
_REST_SHARE = (
    8  # looks that are left out at most: the time until, and a little after, its end has several tries
)
_DOUBLED_MAX = 5  # times: more than a day apart they do not get


class Renewed(Protocol):
    """A robot whose certificate is renewed."""

    @property
    def session(self) -> Session | None:
        """The session it has, if it is connected."""

    async def try_out(self, pair: LoadedPair) -> None:
        """Go on in a new session with this pair; raises ShadowError if that fails, and the old one stays."""


class Renewer:
    """Renews the certificates of one robot, for as long as ``run`` runs."""

    def __init__(self, certificates: CertificateStore, robot: Renewed, name: str) -> None:
        self._certificates = certificates
        self._robot = robot
        self._name = name
        self._failures = 0

    async def run(self) -> None:
        """Look at the clock now and then."""
        while True:
            await asyncio.sleep(min(_LOOK, self._share))
            session, present = self._robot.session, self._certificates.current
            # By the clock on the wall, each time: certificates go by it, and it may have been set meanwhile.
            if session is None or present is None or not self._certificates.is_due(dt.datetime.now(dt.UTC)):
                continue
            try:
                await self._renew(session, present)
                self._failures = 0
            except ShadowError as error:
                await self._rest(error)

    @property
    def _share(self) -> float:
        """Seconds: a part of the certificate's life."""
        if self._certificates.current is None:
            return _LOOK
        start, end = validity(self._certificates.current.certificate)
        return (end - start).total_seconds() / _PAUSES

    async def _renew(self, session: Session, present: LoadedPair) -> None:
        pair = self._certificates.next
        if pair is None:
            if not session.renews:
                return
            request = make_request(self._name, self._certificates.key_to_ask_for(), present.credentials)
            pair = self._certificates.add(await session.renew(request), dt.datetime.now(dt.UTC))
        try:
            await self._robot.try_out(pair)
        except (Refused, HandshakeError):
            # It may have been by accident; then we are given the same certificate again.
            self._certificates.drop_next()
            raise
        self._log(pair)
        self._certificates.accepted(pair)

    def _log(self, pair: LoadedPair) -> None:
        serial, end = serial_of(pair.certificate), validity(pair.certificate)[1]
        text = f"robot {self._name} has a new certificate, {serial}, valid until {moment(end)}"
        expires = end.isoformat()
        events.log(Event.RENEWED, logging.INFO, text, robot=self._name, serial=serial, expires=expires)

    async def _rest(self, error: ShadowError) -> None:
        pause = min(_PAUSE_MAX, self._share) * 2 ** min(self._failures, _DOUBLED_MAX)
        pause = min(pause, _REST_SHARE * self._share)
        pause *= random.uniform(0.75, 1.25)  # noqa: S311 - no secret
        self._failures += 1
        text = f"certificate of robot {self._name} not renewed: {error}; next try in {pause:.0f} s"
        code = known_code(error.code) if isinstance(error, Refused) else "failed"
        events.log(Event.RENEWAL_FAILED, logging.WARNING, text, robot=self._name, code=code)
        await asyncio.sleep(pause)
