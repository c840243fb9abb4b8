"""The robot's side: keeps one session with the server alive, with channels standing by for visitors."""

import asyncio
import contextlib
import datetime as dt
import enum
import logging
import math
import time
from collections.abc import Iterator

from .. import events
from .. import text as texts
from ..daemon.config import ClientConfig
from ..errors import (
    ClockError,
    ConfigError,
    HandshakeError,
    IdentityError,
    LocalError,
    PeerError,
    Refused,
    ShadowError,
)
from ..events import Event
from ..pki.certificates import Purpose
from ..pki.expiry import Term, terms
from ..relay.durable import DurableStreams
from ..systemd import mailbox
from ..systemd.mailbox import Mailbox
from ..transport import context as contexts
from ..transport import handshake
from ..transport.link import Link
from ..wire.timing import Backoff
from .approach import Approach
from .certificate_store import CertificateStore, LoadedPair
from .renewal import Renewer
from .services import Services
from .session import Session
from .streams import Streams

_ANSWERS = (IdentityError, HandshakeError, Refused, ConfigError)  # what no better line would change
_HURRY_WAIT, _WAIT_LEAST = 1 / 8, 1.0  # of a keepalive interval, and seconds; see Client._hurry
_HURRY_REACH, _REACH_LEAST = 1 / 4, 3.0  # with less than that a lost SYN or a slow machine could not be borne


class Phase(enum.Enum):
    """What the client is doing, for the status line."""

    DIALLING = enum.auto()
    CONNECTED = enum.auto()
    WAITING = enum.auto()


class Client:
    """One robot's client; ``start`` it, then it runs until ``stop`` or (``--once``) ``failure``."""

    def __init__(self, config: ClientConfig, durable: DurableStreams) -> None:
        """Check everything that can be checked while offline.

        Raises:
            ConfigError: a file is wrong, or the certificate is another robot's.
            LocalError: kernel TLS is required and missing.
            ClockError: (``--once`` only) our certificate is not valid yet.
        """
        self._config = config
        self._durable = durable
        self._streams = Streams(config.robot, durable)
        self._services = Services(config.robot, config.services, self._streams)
        self._approach = Approach(config.server, config.connect_timeout)
        self._no_ktls = contexts.check_kernel(config.ktls)
        self._certificates = CertificateStore(config.files, config.state, config.robot)
        self._settings: contexts.Settings | None = None
        try:
            # Over a session that is left for us an expired certificate can be renewed, and over no other.
            self._settings = self._load(late=mailbox.is_left(durable.store))
        except ClockError:
            if config.once:
                raise
        self._renewer = Renewer(self._certificates, config.robot)
        self.failure: asyncio.Future[ShadowError] = asyncio.get_running_loop().create_future()
        self._session: Session | None = None
        self._task: asyncio.Task[None] | None = None
        self._backoff = Backoff()
        self._welcomed = math.inf  # when; dialling is not living
        self._interval = math.inf  # of the last session's keepalive
        self._phase = Phase.DIALLING
        self._detail = ""

    async def start(self) -> None:
        """Begin to dial; being offline is no reason to wait."""
        names = ", ".join(
            f"{name or 'default'} = {endpoint}" for name, endpoint in self._config.services.items()
        )
        text = f"robot {self._config.robot} dials {self._config.server} and offers {names}"
        events.log(Event.CLIENT_READY, logging.INFO, text, robot=self._config.robot)
        if self._no_ktls:
            events.log(
                Event.KTLS_UNAVAILABLE,
                logging.WARNING,
                f"encrypting in userspace: {self._no_ktls}",
                robot=self._config.robot,
            )
        self._streams.resume(self._still_trusted)
        self._resume_session()
        self._task = asyncio.create_task(self._keep_connected())
        self._task.add_done_callback(self._stopped_trying)

    def _resume_session(self) -> None:
        if self._settings is not None:
            session = Session(
                self._config, self._settings, self._services, self._streams.lines, self._approach
            )
            session.resume(mailbox.collect(self._durable.store), self._still_trusted)
            self._session = session if session.connected else None

    def _still_trusted(self, link: Link) -> None:
        if self._settings is not None:  # else our clock is wrong, and nothing can be said
            handshake.check_again(link, self._settings)

    def reload(self) -> str:
        """Read certificates and CA again, for new connections; there is nothing more to say.

        Raises:
            ShadowError: a file is broken; the old ones stay in use.
        """
        self._settings = self._load()
        if self._session is not None:
            self._session.settings = self._settings
        return ""

    async def stop(self) -> None:
        """Leave the session for the next client, or end it in order."""
        await _end(self._task)
        if self._session is not None and self._durable.store.limit:
            with contextlib.closing(Mailbox(self._durable.store)) as left:
                if self._session.park(left):
                    text = f"robot {self._config.robot}: the session is left for the next start"
                    events.log(Event.STOPPING, logging.INFO, text, robot=self._config.robot)
        self._services.stop()
        self._close_session()

    @property
    def status(self) -> str:
        """A line for ``systemctl status``."""
        streams = f"{texts.many(len(self._streams), 'stream')}{self._durable.remark}"
        if self._phase is Phase.CONNECTED:
            encryption = f"userspace TLS ({self._no_ktls})" if self._no_ktls else "kernel TLS"
            return f"Connected to {self._detail}, {streams}, {encryption}"
        if self._phase is Phase.WAITING:
            return f"{self._detail}; {streams}"
        return f"Dialling {self._config.server}, {streams}"

    def describe(self) -> Iterator[str]:
        """See ``life.Role``."""
        yield f"client: {self.status}"
        yield f"  {self._session!r}"
        yield f"  {self._services!r}"

    def _load(self, *, late: bool = False) -> contexts.Settings:
        return self._settings_for(self._certificates.load(dt.datetime.now(dt.UTC), late=late))

    def _settings_for(self, pair: LoadedPair) -> contexts.Settings:
        config, credentials = self._config, pair.credentials
        context = contexts.make_context(credentials)
        return contexts.Settings(
            context, Purpose.ROBOT, config.ktls, config.reference, credentials.ca, credentials.fingerprint
        )

    @property
    def terms(self) -> list[Term]:
        """See ``life.Role``."""
        pair, robot = self._certificates.current, self._config.robot
        if pair is None:  # our clock is wrong, and nothing can be said
            return []
        return terms(pair.credentials, pair.crt, self._config.files.ca, f"`shadow-ca robot {robot} --renew`")

    def _stopped_trying(self, task: asyncio.Task[None]) -> None:
        """A bug must end the daemon: one that lives, is fed, and never dials again helps nobody."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.failure.done():
            self._close_session()
            self.failure.set_exception(error)

    def _close_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    async def _keep_connected(self) -> None:
        while True:
            self._welcomed = math.inf
            error = await self._one_session()
            self._backoff.lived(time.monotonic() - self._welcomed)
            if self._config.once:
                self.failure.set_result(error)
                return
            wait = self._wait_after(error)
            self._report_loss(error, wait)
            await asyncio.sleep(wait)

    @property
    def _hurry(self) -> float:
        """The interval by which streams wait for their robot's session, infinite without streams.

        After an outage a stream may find out from its session only that the line is back (``net.lines``), and
        for that the session has to be there half a keepalive interval later: a wait of an eighth of it and a
        quarter until there is a connection leave an eighth for the handshake. (With intervals of less than
        twelve seconds that may not suffice.) Without streams nobody is in a
        hurry, and if the line is gone for good, soon no streams are there.
        """
        return self._interval if self._streams else math.inf

    def _wait_after(self, error: ShadowError) -> float:
        """Seconds to wait before the next attempt."""
        if isinstance(error, _ANSWERS):  # the line is there, and haste would change nothing
            return self._backoff.wait(error.retry_after if isinstance(error, Refused) else 0.0)
        return self._backoff.wait(at_most=max(_WAIT_LEAST, _HURRY_WAIT * self._hurry))

    async def _one_session(self) -> ShadowError:
        """Connect and stay connected; return what ended it."""
        self._phase = Phase.DIALLING
        try:
            settings = self._refresh()
            reach = max(_REACH_LEAST, _HURRY_REACH * self._hurry)
            session = self._session or await self._open(settings, reach)
        except ShadowError as error:
            return error
        self._phase = Phase.CONNECTED
        self._welcomed = time.monotonic()
        self._interval = session.interval
        with contextlib.suppress(LocalError):  # then it will be tried again
            self._have(session)
        lost = await self._end_of_session(session)
        self._close_session()
        return lost

    async def _open(self, settings: contexts.Settings, reach: float = math.inf) -> Session:
        """A session that the server has welcomed.

        Raises:
            ShadowError: it did not come about.
        """
        session = Session(self._config, settings, self._services, self._streams.lines, self._approach)
        try:
            await session.open(reach)
        except BaseException:
            session.close()
            raise
        return session

    def _have(self, session: Session) -> None:
        """Go on in a session that the server has welcomed: if its certificate is a new one, that stays.

        Raises:
            LocalError: it cannot be stored.
        """
        if self._settings is not None:
            session.settings = self._settings  # a reload may have come while it was dialled for
        self._session = session
        self._detail = f"{session.target} since {session.since}"
        for pair in (self._certificates.next, self._certificates.current):
            if pair is not None and pair.credentials.fingerprint == session.certificate:
                self._certificates.accepted(pair)

    def _refresh(self) -> contexts.Settings:
        """Choose among our certificates once more: one may have expired, or the clock may be right by now.

        Raises:
            ConfigError, ClockError: there never was a good one.
        """
        if self._settings is None or self._certificates.renews:
            try:
                self._settings = self._load()
            except ShadowError:
                if self._settings is None:
                    raise
        return self._settings

    async def _end_of_session(self, session: Session) -> PeerError:
        """What ended a session, or the last one of those that have taken its place."""
        while True:
            await asyncio.wait([session.lost], timeout=self._renewer.patience)
            if session.lost.done():
                return session.lost.result()
            session = await self._renew(session)

    async def _renew(self, session: Session) -> Session:
        """If it is time for another certificate, go on with it in a new session; which one there is then.

        The server takes the new session for the old one in one step, so the robot's sockets are there all
        the time.
        """
        try:
            pair = await self._renewer.look(session)
            if pair is not None:
                old, session = session, await self._try_out(pair)
                old.close()
                self._renewer.succeeded(pair)
                self._have(session)
        except ShadowError as error:
            self._renewer.failed(error)
        return session

    async def _try_out(self, pair: LoadedPair) -> Session:
        """A new session with these credentials, which are in use from now on.

        Raises:
            ShadowError: it did not come about; the session we have goes on.
        """
        settings = self._settings_for(pair)
        try:
            session = await self._open(settings)
        except (Refused, HandshakeError):
            # It may have been by accident; then we are given the same certificate again.
            self._certificates.drop_next()
            raise
        self._settings = settings
        return session

    def _report_loss(self, error: ShadowError, wait: float) -> None:
        self._phase = Phase.WAITING
        retry = time.strftime("%H:%M:%S", time.localtime(time.time() + wait))
        self._detail = f"Not connected: {error}; next try at {retry}"
        event = Event.CLOCK_WRONG if isinstance(error, ClockError) else Event.SESSION_LOST
        level = logging.ERROR if isinstance(error, _ANSWERS) else logging.WARNING
        text = f"no session with {self._config.server}: {error}; next try in {wait:.1f} s"
        events.log(event, level, text, robot=self._config.robot)


async def _end(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
