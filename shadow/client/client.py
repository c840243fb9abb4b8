"""The robot's side: keeps one session with the server alive, with channels standing by for visitors."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from .. import events
from ..daemon.config import ClientConfig
from ..errors import ClockError, LocalError, PeerError, ShadowError
from ..pki.expiry import Term
from ..relay.durable import DurableStreams
from . import handover
from .attempts import ANSWERS, Attempts
from .opening import Opener
from .renewal import Renewer
from .session import Session
from .streams import Streams
from .trust import Trust


@dataclass(frozen=True, slots=True)
class Dialling:
    """There is no session yet; we are connecting."""


@dataclass(frozen=True, slots=True)
class Connected:
    """There is a session."""

    session: Session


@dataclass(frozen=True, slots=True)
class Waiting:
    """There is no session; we wait before the next attempt.

    Attributes:
        error: why.
        retry: when the next attempt comes, for humans.
    """

    error: ShadowError
    retry: str


State: TypeAlias = Dialling | Connected | Waiting


class Client:
    """One robot's client; ``start`` it, then it runs until ``stop`` or (``--once``) ``failure``.

    One task supervises: it dials, renews the certificate while there is a session, and dials again when the
    session ends. So nothing else connects under our name meanwhile.
    """

    def __init__(self, config: ClientConfig, durable: DurableStreams) -> None:
        """Check everything that can be checked while offline.

        Raises:
            ConfigError: a file is wrong, or the certificate is another robot's.
            LocalError: kernel TLS is required and missing.
            ClockError: (``--once`` only) our certificate is not valid yet.
        """
        self._config = config
        self._store = durable.store
        self._streams = Streams(config.robot, durable)
        self._opener = Opener(config, self._streams)
        # An expired certificate can only be renewed over a session that was left for us.
        self._trust = Trust(config, late=handover.is_left(durable.store))
        self._renewer = Renewer(self._trust.certificates, config.robot)
        self._attempts = Attempts()
        self._state: State = Dialling()
        self._task: asyncio.Task[None] | None = None
        self.failure: asyncio.Future[ShadowError] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Begin to dial; being offline is no reason to wait."""
        names = ", ".join(
            f"{name or 'default'} = {endpoint}" for name, endpoint in self._config.services.items()
        )
        text = f"robot {self._config.robot} dials {self._config.whither} and offers {names}"
        events.log(events.ClientReady(robot=self._config.robot), logging.INFO, text)
        if self._trust.no_ktls:
            event = events.KtlsUnavailable(robot=self._config.robot)
            text = f"encrypting in userspace: {self._trust.no_ktls}"
            events.log(event, logging.WARNING, text)
        self._streams.resume(self._trust.check)
        session = handover.resume(self._store, self._opener, self._trust)
        if session is not None:
            self._enter(Connected(session))
        self._task = asyncio.create_task(self._supervise())
        self._task.add_done_callback(self._supervised)

    def reload(self) -> str:
        """Read certificates and CA again, for new connections; the remark for the log is empty.

        Raises:
            ShadowError: a file is broken; the old ones stay in use.
        """
        settings = self._trust.load()
        if self._session is not None:
            self._session.use(settings)
        return ""

    async def stop(self) -> None:
        """Leave the session for the next client, or end it properly."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        session = self._session
        if session is not None and handover.park(
            session, self._opener.record, self._trust.offer(session.certificate), self._store
        ):
            text = f"robot {self._config.robot}: the session is left for the next start"
            events.log(events.Stopping(robot=self._config.robot), logging.INFO, text)
        self._opener.stop()
        self._close_session()

    @property
    def status(self) -> str:
        """A line for ``systemctl status``."""
        streams = self._streams.remark
        match self._state:
            case Dialling():
                return f"Dialling {self._config.whither}, {streams}"
            case Waiting(error, retry):
                return f"Not connected: {error}; next try at {retry}; {streams}"
            case Connected(session):
                no_ktls, agreed = self._trust.no_ktls, session.agreed
                encryption = f"userspace TLS ({no_ktls})" if no_ktls else "kernel TLS"
                return f"Connected to {agreed.target} since {agreed.since}, {streams}, {encryption}"

    def __repr__(self) -> str:
        return f"<Client {self._config.robot}: {self._state}, {self._streams.remark}>"

    def describe(self) -> Iterator[str]:
        """See ``life.Role``."""
        yield f"client: {self.status}"
        yield repr(self)
        yield f"  {self._opener!r}"
        yield from (f"  {line}" for line in self._streams.describe())

    @property
    def terms(self) -> list[Term]:
        """See ``life.Role``."""
        return self._trust.terms

    # The one task

    @property
    def _session(self) -> Session | None:
        return self._state.session if isinstance(self._state, Connected) else None

    def _enter(self, state: State) -> None:
        self._state = state
        events.STEPS.debug("%r", self)

    def _close_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._enter(Dialling())

    def _supervised(self, task: asyncio.Task[None]) -> None:
        """A bug must end the daemon: one that stays alive, feeds its watchdog, and never dials is useless."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.failure.done():
            self._close_session()
            self.failure.set_exception(error)

    async def _supervise(self) -> None:
        """Keep a session, and after each one the next; with ``--once`` only one."""
        while True:
            error = await self._one_session()
            if self._config.once:
                self.failure.set_result(error)
                return
            wait = self._attempts.wait(error, len(self._streams))
            self._report_loss(error, wait)
            await asyncio.sleep(wait)

    async def _one_session(self) -> ShadowError:
        """Connect and stay connected; return what ended it."""
        try:
            session = await self._connect()
        except ShadowError as error:
            return error
        welcomed = time.monotonic()  # dialling does not count as living
        self._attempts.connected(session.agreed.interval)
        self._renewer.connected()
        with contextlib.suppress(LocalError):  # it will be tried again
            self._trust.welcomed(session.certificate)
        lost = await self._end_of_session(session)
        self._close_session()
        self._attempts.lived(time.monotonic() - welcomed)
        return lost

    async def _connect(self) -> Session:
        """A session: the one that another process has left, or a new one.

        Raises:
            ShadowError: there is none.
        """
        settings = self._trust.refresh()
        session = self._session
        if session is None:
            self._enter(Dialling())
            session = await self._opener.open(settings, self._attempts.reach(len(self._streams)))
        session.use(self._trust.settings or settings)  # a reload may have come meanwhile
        self._enter(Connected(session))
        return session

    async def _end_of_session(self, session: Session) -> PeerError:
        """Wait for the end of a session, or of the last one that has replaced it; return the reason."""
        while True:
            signs: list[asyncio.Future[Any]] = [session.lost, session.unwanted]
            await asyncio.wait(signs, timeout=self._renewer.patience, return_when=asyncio.FIRST_COMPLETED)
            if session.lost.done():
                return session.lost.result()
            session = await (self._move(session) if session.unwanted.done() else self._renew(session))

    async def _renew(self, session: Session) -> Session:
        """If it is time for another certificate, continue with it in a new session; return the one in use.

        The server replaces the old session by the new one in one step, so the robot's sockets stay there all
        the time.
        """
        try:
            pair = await self._renewer.look(session)
            if pair is not None:
                before, settings = self._trust.settings, self._trust.settings_for(pair)
                old, session = session, await self._opener.open(settings)
                if self._trust.settings is before:
                    self._trust.settings = settings
                elif self._trust.settings is not None:  # a reload has come meanwhile
                    session.use(self._trust.settings)
                self._replace(old, session)
                self._renewer.succeeded(pair)
                self._trust.welcomed(session.certificate)
        except ShadowError as error:
            self._renewer.failed(error)
        return session

    async def _move(self, session: Session) -> Session:
        """The server wants us at another one: continue there, if one takes us; return the session in use.

        It ends here only then, so the robot can be visited all the time; its streams go on where they are.
        """
        session.stay()
        self._opener.avoid(session.agreed.target)
        try:
            new = await self._opener.open(self._trust.refresh())
        except ShadowError as error:
            text = f"{session.agreed.target} wants us at another server, and none takes us: {error}; staying"
            events.log(events.MoveFailed(robot=self._config.robot), logging.WARNING, text)
            return session
        self._replace(session, new)
        return new

    def _replace(self, old: Session, new: Session) -> None:
        """Continue with another session, which has just been welcomed."""
        self._attempts.connected(new.agreed.interval)
        self._enter(Connected(new))
        old.close()

    def _report_loss(self, error: ShadowError, wait: float) -> None:
        retry = time.strftime("%H:%M:%S", time.localtime(time.time() + wait))
        self._enter(Waiting(error, retry))
        kind = events.ClockWrong if isinstance(error, ClockError) else events.SessionLost
        level = logging.ERROR if isinstance(error, ANSWERS) else logging.WARNING
        text = f"no session with {self._config.whither}: {error}; next try in {wait:.1f} s"
        events.log(kind(robot=self._config.robot), level, text)
