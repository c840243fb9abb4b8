"""The whole fleet in memory: a snapshot of the engine's keys, and one watch for every change after it.

A watch that ends is taken up at another member, where it ended. Everything is read again only if that cannot
work: the engine has forgotten the changes in between (compaction), it is another engine, it was restored from
a backup (``history``), or what we have turned out to be wrong (``audit``).

However many changes come at once, everybody else has a turn in between (``turns``).
"""

import asyncio
import contextlib
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

from .. import events
from .. import text as texts
from ..errors import Compacted, EngineRefused, Unavailable, brief
from ..text import printable
from .entries import Entries, Holder
from .etcd import Batch, Engine, Header, after
from .history import History
from .intake import Intake
from .keys import Entry, Family, Keys, Live, Strange, Stranger, parse_entry, parse_live
from .turns import in_turns

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0  # seconds between attempts
_REFUSED_PAUSE = 10.0  # seconds: somebody has to change a setting first
_HEALTHY = 1.0  # seconds after which a watch that ends has been a good one
_KEY_SHOWN = 80  # characters of a key, in the log
_REASON_MAX = 400  # characters: each member may have its own


class Subscriber(Protocol):
    """Who is told of each change, in the order of their revisions, once the view has it."""

    def on_change(self, robot: str, entry: Entry | None, revision: int) -> None:
        """A robot has another entry, or none, since a revision."""

    def on_live(self, server: str) -> None:
        """A server came, went, or says something else about itself."""

    def on_reset(self) -> None:
        """Everything was read anew; differences have been told, in the order of the names."""

    def on_engine(self, *, up: bool) -> None:
        """The engine answers, and the view follows it; or not."""


class Audience(list[Subscriber]):
    """Several who are told the same, each in its turn."""

    def on_change(self, robot: str, entry: Entry | None, revision: int) -> None:
        """See ``Subscriber``."""
        for one in self:
            _tell(one.on_change, robot, entry, revision)

    def on_live(self, server: str) -> None:
        """See ``Subscriber``."""
        for one in self:
            _tell(one.on_live, server)

    def on_reset(self) -> None:
        """See ``Subscriber``."""
        for one in self:
            _tell(one.on_reset)

    def on_engine(self, *, up: bool) -> None:
        """See ``Subscriber``."""
        for one in self:
            _tell(one.on_engine, up=up)


class Strangers(Counter[Strange]):
    """How many keys and values that are none of ours were met, and of which kind."""

    def note(self, key: bytes, why: Strange) -> None:
        """Count one, and say so once for each kind: how many there are is not ours to decide."""
        self[why] += 1
        if self[why] == 1:
            shown = printable(key[:_KEY_SHOWN].decode(errors="replace"))
            text = f"the fleet's engine has {why}, which is ignored, as are all others like it: {shown}"
            events.log(events.KeyIgnored(), logging.WARNING, text)


class View:
    """What the engine has of one fleet.

    Attributes:
        entries: where the robots are.
        revision: up to which all changes are in.
        up: the engine answers, and the view follows it.
        resets: how often everything was read.
        strangers: what else is among our keys.
        busy: changes are being taken in: some of those after ``revision`` may be in already.
        intake: whether the engine takes what we write; if not, the view lacks what nobody can write.
        touched: the robots that have changed since somebody put a set here.
        lists: set when it is time to look at the lists of revoked certificates, which are not in the view.
        lists_elsewhere: another server has told us itself that it has a newer list than we.
    """

    def __init__(self, engine: Engine, keys: Keys, subscriber: Subscriber) -> None:
        """Begin without any; ``run`` it."""
        self.entries = Entries()
        self.revision = 0
        self.up = False
        self.resets = 0
        self.strangers = Strangers()
        self.touched: set[str] | None = None
        self.busy = False
        self.lists, self.lists_elsewhere = asyncio.Event(), False
        self._engine = engine
        self._keys = keys
        self._subscriber = subscriber
        self._servers: dict[str, tuple[int, Live]] = {}
        self.intake = Intake(lambda: self.up)
        self._history = History(engine, keys)
        self._wanted = True  # to read everything
        self._failures = 0
        self._lost_by: type[Exception] | None = None
        self._since, self._heard = math.inf, -math.inf  # by the loop's clock

    def robot(self, name: str) -> Entry | None:
        """Where a robot is."""
        return self.entries.get(name)

    def live(self, server: str) -> Live | None:
        """What a server says about itself, if it is alive."""
        found = self._servers.get(server)
        return None if found is None else found[1]

    @property
    def servers(self) -> list[str]:
        """The names of those that are alive, sorted."""
        return sorted(self._servers)

    def counts(self, entry: Entry | Holder) -> bool:
        """Whether an entry's server is alive, and still the one that wrote it."""
        live = self.live(entry.server)
        return live is not None and live.inc == entry.inc

    @property
    def age(self) -> float:
        """For how many seconds we have not heard from the engine: 0 while we follow it, infinite at first."""
        return 0.0 if self.up else _now() - self._heard

    @property
    def summary(self) -> str:
        """How many robots and servers there are."""
        robots, servers = len(self.entries), len(self._servers)
        return f"{texts.many(robots, 'robot')} of {texts.many(servers, 'server')}"

    def doubt(self, why: str) -> None:
        """What we have may be wrong: read everything again, soon."""
        if not self._wanted:
            self._wanted = True
            text = (
                f"the fleet's engine has other entries than we were told ({why}): reading all of them again"
            )
            events.log(events.ViewDoubted(), logging.WARNING, text)

    def describe(self) -> Iterator[str]:
        """Lines for debugging."""
        age = "following the engine" if self.up else f"heard from the engine {self.age:.0f} s ago"
        yield f"view: {self.summary}, revision {self.revision}, {age}, read {self.resets} times"
        for strange, count in self.strangers.items():
            yield f"  {strange}: {count}"

    async def run(self) -> None:
        """Follow the engine for ever."""
        while True:
            try:
                await self._follow()
            except (Unavailable, EngineRefused) as error:
                await asyncio.sleep(self._failed(error))

    def _failed(self, error: Unavailable | EngineRefused) -> float:
        """Say so if no member lets us follow; return for how long to wait."""
        if _now() - self._since > _HEALTHY:
            self._failures = 0
        self._failures += 1
        if isinstance(error, Compacted):
            self._wanted = True
        elif isinstance(error, EngineRefused) or self._failures > self._engine.members:
            self._lost(error)
        if isinstance(error, EngineRefused):
            return _REFUSED_PAUSE
        ceiling = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(self._failures, 16))
        return 0.0 if self._failures == 1 else random.uniform(0, ceiling)  # noqa: S311

    async def _follow(self) -> None:
        """Read everything if we must, then take in what changes, until the watch ends or we doubt."""
        self._since = math.inf
        try:
            if not self._wanted:
                await self._check()
            if self._wanted:
                await self._read_all()
        except Unavailable:
            self._failures += self._engine.members  # all have been asked
            raise
        watch = self._engine.watch(self._keys.prefix, after(self._keys.prefix), self.revision + 1)
        async with contextlib.aclosing(watch) as batches:
            async for batch in batches:
                self._since = min(self._since, _now())
                self._heard = _now()
                await self._take(batch)
                if not self.up:
                    self._found()
                if self._wanted:
                    return

    async def _check(self) -> None:
        """See whether the engine is still the one that we have followed, with all that we have seen."""
        fault = await self._history.check(self.entries, self.revision)
        if fault is not None:
            self.doubt(fault)

    async def _read_all(self) -> None:
        """Read the keys as of one revision, page by page; others look at the view meanwhile."""
        self._wanted, self.busy = False, True
        complete = False
        try:
            robots, servers, header = await self._read_pages()
            await self._forget_all_but(robots, servers, header.revision)
            self._history.begin(header)
            self.revision, complete = header.revision, True
        finally:
            self._wanted |= not complete
            self.busy = False
        self.resets += 1
        _tell(self._subscriber.on_reset)

    async def _read_pages(self) -> tuple[set[str], set[str], Header]:
        """Take in robots and servers, but nothing else: it may be large; their names, and the revision."""
        header = await self._engine.header(self._keys.prefix)
        servers = await self._read_range(self._keys.servers, header.revision)
        return await self._read_range(self._keys.robots, header.revision), servers, header

    async def _read_range(self, start: bytes, revision: int) -> set[str]:
        """Take in the keys that begin with ``start``, as of a revision; return the names in them."""
        end, seen = after(start), set[str]()
        while True:
            page = await self._engine.page(start, end, revision)
            async for found in in_turns(page.found):
                if (subject := self._put(found.key, found.value, found.revision, anew=True)) is not None:
                    seen.add(subject[1])
            if not page.more or not page.found:
                return seen
            start = max(start, page.found[-1].key) + b"\0"  # forward, whatever it says

    async def _forget_all_but(self, robots: set[str], servers: set[str], revision: int) -> None:
        async for name in in_turns(list(self.entries)):
            if name not in robots:
                self._remove(Family.ROBOT, name, revision)
        for name in self._servers.keys() - servers:
            self._remove(Family.SERVER, name, revision)

    async def _take(self, batch: Batch) -> None:
        self.busy = True
        async for change in in_turns(batch.changes):
            if change.value is not None:
                self._put(change.key, change.value, change.revision)
            else:
                with contextlib.suppress(Stranger):
                    self._remove(*self._keys.parse(change.key), change.revision)
        if batch.changes:
            newest = batch.changes[-1].revision
            self.revision = max(self.revision, newest if batch.whole else newest - 1)
        self.busy = False

    def _put(
        self, key: bytes, value: bytes, revision: int, *, anew: bool = False
    ) -> tuple[Family, str] | None:
        """Take in what a key is; return what it is about, unless it is none of ours.

        ``anew``: even if what we have is newer, for the engine may have gone back.
        """
        subject = None
        try:
            family, name = subject = self._keys.parse(key)
            if family is Family.ROBOT:
                if anew or revision > self.entries.revision(name):
                    self._put_robot(name, value, revision)
            elif family is Family.SERVER:
                self._put_server(name, value, revision)
            elif family is Family.LIST:
                self.lists.set()
        except Stranger as stranger:
            self.strangers.note(key, stranger.why)
            if subject is not None:
                self._remove(*subject, revision)
            return None
        return subject

    def _put_robot(self, name: str, value: bytes, revision: int) -> None:
        entry = parse_entry(value, revision)
        if self.touched is not None:
            self.touched.add(name)
        if self.entries.put(name, entry, value):
            _tell(self._subscriber.on_change, name, entry, revision)

    def _put_server(self, name: str, value: bytes, revision: int) -> None:
        before, live = self.live(name), parse_live(value)
        self._servers[name] = revision, live
        if live != before:  # most changes are signs of life
            _tell(self._subscriber.on_live, name)

    def _remove(self, family: Family, name: str, revision: int) -> None:
        if family is Family.SERVER:
            if self._servers.pop(name, None) is not None:
                _tell(self._subscriber.on_live, name)
        elif family is Family.ROBOT:
            if self.touched is not None:
                self.touched.add(name)
            if self.entries.remove(name):
                _tell(self._subscriber.on_change, name, None, revision)
        elif family is Family.LIST:
            self.lists.set()

    def _found(self) -> None:
        self.up, self._lost_by = True, None
        self.lists.set()
        events.log(events.EngineFound(), logging.INFO, f"following the fleet's engine: {self.summary}")
        _tell(self._subscriber.on_engine, up=True)

    def _lost(self, error: Unavailable | EngineRefused) -> None:
        if self._lost_by is not type(error):
            self._lost_by = type(error)
            level = logging.ERROR if isinstance(error, EngineRefused) else logging.WARNING
            text = f"{brief(error, _REASON_MAX)}; robots and visitors here are served all the same"
            events.log(events.EngineLost(), level, text)
        if self.up:
            self.up = False
            _tell(self._subscriber.on_engine, up=False)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _tell(told: Callable[..., None], *what: object, **how: object) -> None:
    try:
        told(*what, **how)
    except Exception:
        logging.getLogger("shadow").exception(
            "unexpected error: a change in the fleet was not taken in (please report)"
        )
