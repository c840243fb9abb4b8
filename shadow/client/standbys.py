"""The robot's data channels: as many standing by as wanted, more when visitors come, a few opened at once.

Three things decide when to open the next one. A ``Window``: a handful at once, more if that costs no time, so
that a slow machine is slow and not dead. A ``Pace`` for channels that bring no stream: a server whose
visitors get connected gets channels as fast as they come, but one that makes us dial for nothing gets four a
second. A ``Backoff``: after failures it applies to all channels, and after visitors that could not be
connected, to those that nobody has asked for.

Channels dialled for visitors who have left stand by, too, until they have been idle for half a keepalive
interval; then the surplus is given up.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from .. import events
from ..errors import Refused, ShadowError
from ..transport.channel import Channel
from ..wire.frames import Frame, Refusal, Start
from ..wire.timing import Backoff, Pace, Window
from .services import OnOutcome
from .sparing import Sparing

CHANNELS_MAX = 256  # data channels opening or standing by, whatever the server asks for
_AT_ONCE = 64  # channels that a server asks for at once (docs/PROTOCOL.md)
_DUE_MAX = 2 * _AT_ONCE  # DIAL may overtake WELCOME: then the server has counted channels that we have not
_DUE_LIFE = 30.0  # seconds after its last DIAL for which a server may still want what it asked for
_FRUITLESS_RATE = 4.0  # channels a second that bring no stream, beyond those that may be wanted at once


class Standbys:
    """The standby channels of one session; before ``begin`` only those that the server asks for are opened.

    Attributes:
        closed: no more channels are opened.
    """

    def __init__(
        self,
        robot: str,
        wanted: int,
        open_one: Callable[[], Awaitable[Channel]],
        on_start: Callable[[Channel, Start, OnOutcome], None],
        elsewhere: str = "",
    ) -> None:
        """Keep ``wanted`` channels standing by.

        Args:
            robot: our name, for the log.
            wanted: how many to keep standing by if no visitors come.
            open_one: returns a channel that is welcomed and paused; raises ShadowError.
            on_start: called with a channel that is asked to serve a visitor, and owns it from then on.
            elsewhere: where the server has told us to open them; empty: where the control channel went.
        """
        self._robot = robot
        self._wanted = wanted
        self._open_one = open_one
        self._on_start = on_start
        self._elsewhere = elsewhere
        self._told = False  # that they cannot be opened elsewhere
        self._hurries = True  # a waiting visitor is a reason to try again at once
        self._loop = asyncio.get_running_loop()
        self._channels: dict[Channel, float] = {}  # since when each stands by
        self._opening: dict[asyncio.Task[None], bool] = {}  # whether the server has asked for it
        self._due = 0  # channels that the server has asked for
        self._due_until = 0.0
        self._window = Window()
        self._pace = Pace(_FRUITLESS_RATE, _AT_ONCE + wanted)
        self._backoff = Backoff()
        self._doubtful = False  # the last visitor could not be connected
        self._undecided = 0  # visitors that are being connected
        self._not_before = 0.0  # for channels that the server has asked for
        self._rest_until = math.inf  # for channels that nobody has asked for
        self._idle = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._trimmer: asyncio.TimerHandle | None = None
        self._log = Sparing(self._loop.time)
        self.closed = False

    def __repr__(self) -> str:
        counts = f"{len(self._channels)} of {self._wanted} wanted, {len(self._opening)} opening"
        visitors = f"{self._asked_for(self._loop.time())} asked for, {self._undecided} being connected"
        return f"<Standbys {counts}, {visitors}{', closed' if self.closed else ''}>"

    def begin(self, interval: float, delay: float = 0.0) -> None:
        """Open standbys ``delay`` seconds from now; ``interval`` is that of the session's keepalive."""
        self._idle = interval / 2
        self._rest_until = self._loop.time() + delay
        self._trim_later()
        self._open_more()

    def dial(self, count: int) -> None:
        """The server wants ``count`` more channels now, for waiting visitors."""
        now = self._loop.time()
        self._due = min(self._asked_for(now) + count, _DUE_MAX)
        self._due_until = now + _DUE_LIFE
        if self._hurries:
            self._not_before = now
        self._open_more()

    def add(self, channel: Channel) -> None:
        """A channel has been welcomed, and stands by from now on."""
        if self.closed:
            channel.close()
            return
        self._channels[channel] = self._loop.time()
        channel.hear(lambda frame: self._heard(channel, frame), lambda _error: self._lost(channel))
        self._trim_later()

    def take(self) -> list[Channel]:
        """All standby channels; they are the caller's, and no more are opened."""
        channels = list(self._channels)
        self._channels.clear()
        self.close()
        return channels

    def close(self) -> None:
        """End them all, and open no more."""
        self.closed = True
        for timer in (self._timer, self._trimmer):
            if timer is not None:
                timer.cancel()
        for task in self._opening:
            task.cancel()
        for channel in self._channels:
            channel.close()
        self._channels.clear()

    # Opening

    def _asked_for(self, now: float) -> int:
        return self._due if now < self._due_until else 0

    def _open_more(self) -> None:
        """Open as many as allowed now, and come back when more are."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while not self.closed:
            now = self._loop.time()
            asked = self._is_asked_for(now)
            # A visitor must not wait behind hanging channels that were opened for nobody.
            at_once = self._window.size + (asked and not any(self._opening.values()))
            if len(self._opening) >= at_once or not (asked or self._is_missing):
                return
            when = self._not_before if asked else max(self._not_before, self._rest_until)
            wait = when - now if when > now else self._pace.delay(now)
            if wait > 0:
                self._timer = self._loop.call_later(wait, self._open_more)
                return
            task = self._loop.create_task(self._open(asked=asked))
            self._opening[task] = asked
            task.add_done_callback(self._opened)

    def _is_asked_for(self, now: float) -> bool:
        """Whether to open one more for a visitor that waits at the server."""
        return self._has_room and self._asked_for(now) > sum(self._opening.values())

    @property
    def _is_missing(self) -> bool:
        """Whether to open one more to stand by."""
        coming = sum(not asked for asked in self._opening.values())
        coming += self._undecided if self._doubtful else 0
        return self._has_room and len(self._channels) + coming < self._wanted

    @property
    def _has_room(self) -> bool:
        return len(self._opening) + len(self._channels) < CHANNELS_MAX

    async def _open(self, *, asked: bool) -> None:
        began = self._loop.time()
        try:
            channel = await self._open_one()
        except ShadowError as error:
            self._failed(error)
        else:
            now = self._loop.time()
            self._told, self._hurries = False, True
            self._window.took(now - began, now)
            self._due = max(0, self._due - asked)
            self.add(channel)

    def _opened(self, task: asyncio.Task[None]) -> None:
        del self._opening[task]
        bug = None if task.cancelled() else task.exception()
        if bug is not None:
            if self._loop.time() >= self._not_before:  # once for those that were in progress together
                text = "unexpected error: a data channel cannot be opened (please report)"
                logging.getLogger("shadow").error(text, exc_info=bug)
            self._failed(ShadowError(f"internal error: {bug!r}"))
            self._hurries = False  # a server must not be able to have us repeat that as often as it likes
        self._open_more()

    def _failed(self, error: ShadowError) -> None:
        self._window.failed()
        now = self._loop.time()
        if now < self._not_before:  # those that were in progress together fail together
            return
        wait = self._backoff.wait(error.retry_after if isinstance(error, Refused) else 0.0)
        self._not_before = self._rest_until = now + wait
        if not self._elsewhere:
            text = f"cannot open a data channel: {error}; next try in {wait:.1f} s"
            self._log.log(events.SessionLost(robot=self._robot), logging.WARNING, text)
            return
        # A server must not be able to have its robots knock at a stranger's door as often as it likes.
        self._hurries = isinstance(error, Refused)
        text = f"cannot open data channels at {self._elsewhere}, which the server advertises: {error}"
        if self._told:
            events.STEPS.debug("%s; next try in %.1f s", text, wait)
        else:
            self._told = True
            text += "; no visitor reaches this robot until that works"
            self._log.log(
                events.AddressFailed(robot=self._robot, peer=self._elsewhere), logging.WARNING, text
            )

    # Standing by

    def _heard(self, channel: Channel, frame: Frame) -> None:
        if isinstance(frame, Start):
            since = self._channels.pop(channel)
            self._backoff.lived(self._loop.time() - since)
            self._undecided += 1
            self._on_start(channel, frame, self._outcome)
            self._open_more()
        elif isinstance(frame, Refusal):
            channel.close()
            self._lost(channel, frame.retry)

    def _outcome(self, connected: bool) -> None:  # noqa: FBT001 - the only thing there is to say
        self._undecided -= 1
        self._doubtful = not connected
        if connected:
            self._backoff.lived(self._backoff.healthy_after)
            self._pace.give_back()
        else:
            self._rest()
        self._open_more()

    def _lost(self, channel: Channel, retry: float = 0.0) -> None:
        since = self._channels.pop(channel)
        self._backoff.lived(self._loop.time() - since)
        if len(self._channels) < self._wanted:  # else it was one too many
            self._rest(retry)
            self._open_more()

    def _rest(self, at_least: float = 0.0) -> None:
        now = self._loop.time()
        if now >= self._rest_until or at_least:
            self._rest_until = max(self._rest_until, now + self._backoff.wait(at_least))

    # Giving up

    def _trim_later(self) -> None:
        if self._trimmer is None and self._idle and len(self._channels) > self._wanted:
            # Look twice in each idle time, so that a surplus is gone within a keepalive interval.
            self._trimmer = self._loop.call_later(self._idle / 2, self._trim)

    def _trim(self) -> None:
        """Give up what has been idle too long; the server takes the oldest ones first, so those stay."""
        self._trimmer = None
        now = self._loop.time()
        for channel, since in list(self._channels.items())[self._wanted :]:
            if now - since >= self._idle:
                del self._channels[channel]
                channel.retire(self._idle)
        self._trim_later()
