"""The robot's side: keeps one session with the server alive, with channels standing by for visitors."""

import asyncio
import contextlib
import datetime as dt
import enum
import itertools
import logging
import time
from collections.abc import Callable

from . import __version__, journal, tls
from .address import Target, dial, resolve
from .certificates import Purpose, common_name, load_credentials
from .channel import KEEPALIVE_MAX, Channel, watch_for_death
from .config import ClientConfig
from .errors import ClockError, ConfigError, HandshakeError, IdentityError, PeerError, Refused, ShadowError
from .flow import reason_of
from .frames import PROTOCOL_VERSION, Dial, Frame, Hello, Ping, Refusal, Start, Welcome
from .journal import Event
from .link import Link
from .protocol import CONTROL, DATA, Backoff, Keepalive, Party
from .services import Services
from .vault import Vault

SOFTWARE = f"shadow-client {__version__}"
OnWelcome = Callable[[Channel, Welcome], None]

_CHANNELS_MAX = 256  # data channels opening or standing by, whatever the server asks for


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
        self._task = asyncio.create_task(self._keep_connected())
        self._task.add_done_callback(self._stopped_trying)

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
        """End the session in order."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    @property
    def status(self) -> str:
        """A line for ``systemctl status``."""
        streams = f"{self._services.streams} streams{self._vault.remark}"
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
        return tls.Settings(
            context, Purpose.ROBOT, self._config.ktls, self._config.server_name, credentials.ca
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
            wait = self._backoff.wait()
            self._report_loss(error, wait)
            await asyncio.sleep(wait)

    async def _one_session(self) -> ShadowError:
        """Connect and stay connected; return what ended it."""
        self._phase = Phase.DIALLING
        try:
            if self._settings is None:
                self._settings = self._load()
            self._session = Session(self._config, self._settings, self._services)
            try:
                await self._session.open()
                self._phase = Phase.CONNECTED
                self._detail = f"{self._session.target} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
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


class Session:
    """One control channel and the data channels that belong to it.

    Attributes:
        settings: how new connections do their handshake; a reload replaces it.
        target: the server's address in use; data channels go to the very same one, since only the server
            behind it knows this session.
        lost: set to what ended the session.
    """

    def __init__(self, config: ClientConfig, settings: tls.Settings, services: Services) -> None:
        self.settings = settings
        self.target: Target | None = None
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[PeerError] = self._loop.create_future()
        self._config = config
        self._services = services
        self._control: Channel | None = None
        self._closed = False
        self._id = ""
        self._keepalive = Keepalive(config.connect_timeout, self._loop.time())
        self._timer: asyncio.TimerHandle | None = None
        self._opening: set[asyncio.Task[None]] = set()
        self._standbys: set[Channel] = set()
        self._failures = Backoff()

    async def open(self) -> None:
        """Dial, shake hands, say HELLO and hear WELCOME.

        Raises:
            ShadowError: it did not come about; the session is good for nothing but ``close``.
        """
        targets = await resolve(self._config.server, self._config.connect_timeout)
        link = await self._connect(targets)
        hello = Hello(
            PROTOCOL_VERSION, CONTROL, self._config.robot, tuple(self._config.services), software=SOFTWARE
        )
        await self._greet(link, hello, self._welcomed)
        self._fill_up()

    def _welcomed(self, channel: Channel, welcome: Welcome) -> None:
        link = channel.link
        self._control = channel
        self._id = welcome.session
        interval = min(max(welcome.keepalive, 0.1), KEEPALIVE_MAX)
        self._keepalive = Keepalive(interval, self._loop.time())
        self._services.sweep_every(interval)
        watch_for_death(link.sock, self._keepalive.interval)
        channel.on_frame = self._control_frame
        channel.on_lost = self._control_lost
        self._timer = self._loop.call_later(self._keepalive.interval, self._keep_alive)
        encryption = "kernel TLS" if link.in_kernel else "userspace TLS"
        journal.log(
            Event.SESSION_STARTED,
            logging.INFO,
            f"robot {self._config.robot} connected to {self.target} ({encryption}, {link.suite})",
            robot=self._config.robot,
            peer=str(self.target),
            suite=link.suite,
            session=self._id[:8],
        )

    def close(self) -> None:
        """End the session; its streams go on."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._opening:
            task.cancel()
        for channel in list(self._standbys):
            channel.close()
        if self._control is not None:
            self._control.close()

    # Connections

    async def _connect(self, targets: list[Target]) -> Link:
        """Dial and shake hands, within one deadline."""
        try:
            async with asyncio.timeout(self._config.connect_timeout):
                sock, self.target = await dial(targets, self._config.connect_timeout)
                watch_for_death(sock, self._keepalive.interval)
                try:
                    return await tls.handshake(sock, self.settings)
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError:
            raise PeerError(f"no handshake within {self._config.connect_timeout:g} s") from None
        except OSError as error:
            raise PeerError(f"connection lost: {reason_of(error)}") from error

    async def _greet(self, link: Link, hello: Hello, welcomed: OnWelcome) -> None:
        """Say HELLO, wait for WELCOME and call ``welcomed`` with it.

        It is called as the frame is read, not when this coroutine comes around: START may be right behind
        WELCOME, and must find the channel with its new owner.

        Raises:
            Refused: the server said no.
            PeerError: the connection broke, or it took too long.
        """
        answer: asyncio.Future[None] = self._loop.create_future()

        def on_frame(frame: Frame) -> None:
            if isinstance(frame, Refusal) and not answer.done():
                answer.set_exception(Refused(frame.code, frame.text))
            elif isinstance(frame, Welcome) and frame.version != PROTOCOL_VERSION:
                answer.set_exception(PeerError(f"the server speaks protocol version {frame.version}"))
            elif isinstance(frame, Welcome) and not answer.done():
                answer.set_result(None)
                welcomed(channel, frame)

        def on_lost(error: PeerError | None) -> None:
            if not answer.done():
                answer.set_exception(error or PeerError("the server hung up"))

        channel = Channel(link, Party.ROBOT, on_frame, on_lost)
        try:
            channel.send(hello)
            async with asyncio.timeout(self._config.connect_timeout):
                await answer
        except TimeoutError:
            raise PeerError(f"no WELCOME within {self._config.connect_timeout:g} s") from None
        finally:
            if not (answer.done() and not answer.cancelled() and answer.exception() is None):
                channel.abort()

    # Control channel

    def _control_frame(self, frame: Frame) -> None:
        self._keepalive.heard(self._loop.time())
        if isinstance(frame, Dial):
            self._open_channels(frame.count)
        elif isinstance(frame, Refusal):
            self._end(Refused(frame.code, frame.text))

    def _control_lost(self, error: PeerError | None) -> None:
        self._end(error or PeerError("the server hung up"))

    def _keep_alive(self) -> None:
        now_ = self._loop.time()
        if self._keepalive.is_dead(now_):
            if self._control is not None:
                self._control.abort()
            self._end(PeerError(f"nothing heard for {3 * self._keepalive.interval:g} s"))
            return
        if self._control is not None:
            self._control.send(Ping(round(now_, 3)))
        self._timer = self._loop.call_later(self._keepalive.interval, self._keep_alive)

    def _end(self, error: PeerError) -> None:
        if not self.lost.done():
            self.lost.set_result(error)

    # Data channels

    def _fill_up(self) -> None:
        """Have as many channels standing by as configured; timers may come after the session's end."""
        if self._closed:
            return
        self._open_channels(self._config.standby - len(self._standbys) - len(self._opening))

    def _open_channels(self, count: int) -> None:
        room = _CHANNELS_MAX - len(self._standbys) - len(self._opening)
        for _ in itertools.repeat(None, max(0, min(count, room))):
            task = self._loop.create_task(self._open_channel())
            self._opening.add(task)
            task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        self._fill_up()

    async def _open_channel(self) -> None:
        """Open one data channel and let it stand by; after a failure wait, in the place of the next try."""
        assert self.target is not None  # noqa: S101 - the control channel came first
        hello = Hello(PROTOCOL_VERSION, DATA, self._config.robot, session=self._id)
        try:
            await self._greet(await self._connect([self.target]), hello, self._stand_by)
        except ShadowError as error:
            wait = self._failures.wait()
            text = f"cannot open a data channel: {error}; next try in {wait:.1f} s"
            journal.log(Event.SESSION_LOST, logging.WARNING, text, robot=self._config.robot)
            await asyncio.sleep(wait)

    def _stand_by(self, channel: Channel, _welcome: Welcome) -> None:
        if self._closed:
            channel.close()
            return
        self._standbys.add(channel)
        channel.on_frame = lambda frame: self._data_frame(channel, frame)
        channel.on_lost = lambda _error: self._standby_lost(channel)

    def _standby_lost(self, channel: Channel) -> None:
        self._standbys.discard(channel)
        if not self.lost.done():
            self._loop.call_later(self._failures.wait(), self._fill_up)

    def _data_frame(self, channel: Channel, frame: Frame) -> None:
        self._standbys.discard(channel)
        if isinstance(frame, Start):
            self._failures.lived(self._failures.healthy_after)  # channels are good for something
            self._services.connect(channel, frame)
        else:
            channel.close()
        self._fill_up()
