"""The robot's side: keeps one session with the server alive, with channels standing by for visitors."""

import asyncio
import contextlib
import datetime as dt
import enum
import logging
import time

from . import depot, journal, tls
from .certificates import Purpose, common_name, load_credentials
from .client_session import Session
from .config import ClientConfig
from .depot import Depot
from .errors import ClockError, ConfigError, HandshakeError, IdentityError, Refused, ShadowError
from .expiry import Term, terms
from .journal import Event
from .link import Link
from .protocol import Backoff
from .services import Services
from .vault import Vault


class Phase(enum.Enum):
    """What the client is doing, for the status line."""

    DIALLING = enum.auto()
    CONNECTED = enum.auto()
    WAITING = enum.auto()


class Client:
    """One robot's client; ``start`` it, then it runs until ``stop`` or (``--once``) ``failure``."""

    def __init__(self, config: ClientConfig, vault: Vault) -> None:
        """Check everything that can be checked while offline.

        Raises:
            ConfigError: a file is wrong, or the certificate is another robot's.
            LocalError: kernel TLS is required and missing.
            ClockError: (``--once`` only) our certificate is not valid yet.
        """
        self._config = config
        self._vault = vault
        self._services = Services(config.robot, config.services, vault)
        self._no_ktls = tls.check_kernel(config.ktls)
        self.terms: list[Term] = []
        self._settings: tls.Settings | None = None
        try:
            self._settings = self._load()
        except ClockError:
            if config.once:
                raise
        self.failure: asyncio.Future[ShadowError] = asyncio.get_running_loop().create_future()
        self._session: Session | None = None
        self._task: asyncio.Task[None] | None = None
        self._backoff = Backoff()
        self._phase = Phase.DIALLING
        self._detail = ""

    async def start(self) -> None:
        """Begin to dial; being offline is no reason to wait."""
        names = ", ".join(
            f"{name or 'default'} = {endpoint}" for name, endpoint in self._config.services.items()
        )
        text = f"robot {self._config.robot} dials {self._config.server} and offers {names}"
        journal.log(Event.CLIENT_READY, logging.INFO, text, robot=self._config.robot)
        if self._no_ktls:
            journal.log(
                Event.KTLS_UNAVAILABLE,
                logging.WARNING,
                f"encrypting in userspace: {self._no_ktls}",
                robot=self._config.robot,
            )
        self._services.resume(self._still_trusted)
        self._resume_session()
        self._task = asyncio.create_task(self._keep_connected())
        self._task.add_done_callback(self._stopped_trying)

    def _resume_session(self) -> None:
        if self._settings is not None:
            session = Session(self._config, self._settings, self._services)
            session.resume(depot.collect(self._vault.store), self._still_trusted)
            self._session = session if session.connected else None

    def _still_trusted(self, link: Link) -> None:
        if self._settings is not None:  # else our clock is wrong, and nothing can be said
            tls.check_again(link.chain, self._settings)

    def reload(self) -> None:
        """Read certificates and CA again, for new connections.

        Raises:
            ShadowError: a file is broken; the old ones stay in use.
        """
        self._settings = self._load()
        if self._session is not None:
            self._session.settings = self._settings

    async def stop(self) -> None:
        """Leave the session for the next client, or end it in order."""
        if self._session is not None and self._vault.store.limit:
            with contextlib.closing(Depot(self._vault.store)) as left:
                if self._session.park(left):
                    text = f"robot {self._config.robot}: the session is left for the next start"
                    journal.log(Event.STOPPING, logging.INFO, text, robot=self._config.robot)
        self._services.stop()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def status(self) -> str:
        """A line for ``systemctl status``."""
        streams = f"{journal.many(self._services.streams, 'stream')}{self._vault.remark}"
        if self._phase is Phase.CONNECTED:
            encryption = f"userspace TLS ({self._no_ktls})" if self._no_ktls else "kernel TLS"
            return f"Connected to {self._detail}, {streams}, {encryption}"
        if self._phase is Phase.WAITING:
            return f"{self._detail}; {streams}"
        return f"Dialling {self._config.server}, {streams}"

    def _load(self) -> tls.Settings:
        files = self._config.files
        credentials = load_credentials(files.ca, files.crt, files.key, Purpose.ROBOT, dt.datetime.now(dt.UTC))
        try:
            name = common_name(credentials.chain[0])
        except IdentityError as error:  # our own file, no peer's
            raise ConfigError(f"{files.crt}: {error}") from error
        if name != self._config.robot:
            raise ConfigError(f"{files.crt} is for robot {name!r}, not for {self._config.robot!r} (--robot)")
        context = tls.make_context(credentials)
        config = self._config
        self.terms = terms(credentials, files.crt, files.ca, f"`shadow-ca robot {config.robot}`")
        return tls.Settings(
            context, Purpose.ROBOT, config.ktls, config.server_name, credentials.ca, credentials.fingerprint
        )

    def _stopped_trying(self, task: asyncio.Task[None]) -> None:
        """A bug must end the daemon: one that lives, is fed, and never dials again helps nobody."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.failure.done():
            self.failure.set_exception(error)

    async def _keep_connected(self) -> None:
        while True:
            began = time.monotonic()
            error = await self._one_session()
            self._backoff.lived(time.monotonic() - began if self._phase is Phase.CONNECTED else 0.0)
            if self._config.once:
                self.failure.set_result(error)
                return
            wait = self._backoff.wait(error.retry_after if isinstance(error, Refused) else 0.0)
            self._report_loss(error, wait)
            await asyncio.sleep(wait)

    async def _one_session(self) -> ShadowError:
        """Connect and stay connected; return what ended it."""
        self._phase = Phase.DIALLING
        try:
            if self._settings is None:
                self._settings = self._load()
            if self._session is None:
                self._session = Session(self._config, self._settings, self._services)
            try:
                if not self._session.connected:
                    await self._session.open()
                self._phase = Phase.CONNECTED
                self._detail = f"{self._session.target} since {self._session.since}"
                return await self._session.lost
            finally:
                self._session.close()
                self._session = None
        except ShadowError as error:
            return error

    def _report_loss(self, error: ShadowError, wait: float) -> None:
        self._phase = Phase.WAITING
        retry = time.strftime("%H:%M:%S", time.localtime(time.time() + wait))
        self._detail = f"Not connected: {error}; next try at {retry}"
        event = Event.CLOCK_WRONG if isinstance(error, ClockError) else Event.SESSION_LOST
        fatal = isinstance(error, IdentityError | HandshakeError | Refused | ConfigError)
        level = logging.ERROR if fatal else logging.WARNING
        text = f"no session with {self._config.server}: {error}; next try in {wait:.1f} s"
        journal.log(event, level, text, robot=self._config.robot)
