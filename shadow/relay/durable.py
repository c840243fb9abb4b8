"""Durable streams: the service manager keeps copies of their sockets and pipes, so that they outlive us.

Every stream over kernel TLS is put into systemd's file descriptor store when it starts, and removed when it
has ended. Whatever ends the daemon in between, the next one finds the stream there and continues it: first
with what is in the pipes, then with the sockets. What it cannot read from those is in the progress table
(``progress``), which is kept too.

All methods must be called in the event loop's thread.
"""

import collections
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import events
from .. import text as texts
from ..errors import LocalError, brief
from ..net import tcp
from ..systemd import bundle
from ..systemd.fdstore import Store
from ..transport.link import KernelLink, Link, remembered
from . import progress, splice
from .ends import End, Plain, Side
from .flow import Pump, StreamCut
from .pool import Relay
from .progress import ProgressTable

_TABLE = "ledger"  # the name that earlier versions gave it
_PREFIX = "s"  # and the stream's slot; short, because one environment variable carries all names together
_TRIES = 2  # times a stream may bring the daemon down by being resumed
_DESCRIPTORS = 6  # of a stream: two sockets, two pipes
_RESERVE = 16  # one part in this many of the store is for the mailbox

TakeIn = Callable[[Pump, Mapping[str, Any]], object]
"""Takes in a stream that continues, with the facts stored with it; has the relay adopt it, last of all.

Raises:
    ShadowError, KeyError, TypeError, ValueError: these facts are no stream of ours.
"""


class DurableStreams:
    """Keeps the streams that can be kept, and resumes those that were.

    Attributes:
        relay: moves the bytes of all.
        store: where they are kept.
        protected: streams that survive without us.
        unprotected: streams over kernel TLS that are not kept, because there is no store or it is full.
    """

    def __init__(self, relay: Relay, store: Store) -> None:
        """Take over the progress table that is in the store, if there is one.

        Raises:
            LocalError: no memory.
        """
        self.relay = relay
        self.store = store
        self.protected = 0
        self.unprotected = 0
        self._slots: dict[Pump, int] = {}
        self._inherited = False  # the table knows the streams that the previous daemon has left
        self._table = self._open_table() if store.limit else None

    @property
    def remark(self) -> str:
        """What the status line should say about streams that a restart would lose; usually nothing."""
        return (
            f" ({self.unprotected} not kept over a restart)" if self.store.limit and self.unprotected else ""
        )

    def keep(self, pump: Pump, facts: Mapping[str, Any]) -> None:
        """Have a stream kept: after ``Relay.make`` and before ``Relay.adopt``, so before its first byte.

        A stream that cannot be kept runs all the same, and ends with us. If anything is raised, which is a
        bug, nothing of the stream is left open but its sockets, which are the caller's.

        Args:
            pump: the stream; ``ended`` must be called when it is over.
            facts: what ``resume`` will tell about it; fit for JSON.
        """
        links = [link.record for link in pump.links if isinstance(link, KernelLink)]
        if len(links) < len(pump.links):
            return
        slot = self._take_slot(pump)
        if slot is None:
            return
        try:
            with bundle.pack({**facts, "slot": slot, **_links_facts(links)}, pump.descriptors) as box:
                self.store.add(f"{_PREFIX}{slot}", box.fileno())
        except LocalError as error:
            self._not_kept(f"streams will not outlive this daemon: {error}")
        except BaseException:
            pump.close_stores()
            self._give_back(self._slots.pop(pump))
            raise
        else:
            pump.kept = True
            self.protected += 1

    def ended(self, pump: Pump) -> None:
        """A stream is over: drop what is kept of it."""
        slot = self._slots.pop(pump, None)
        if pump.kept:
            self.protected -= 1
            self.store.remove(f"{_PREFIX}{slot}")
        elif pump.in_kernel:
            self.unprotected -= 1
        if slot is not None:
            self._give_back(slot)

    def resume(self, take_in: TakeIn) -> int:
        """Continue all streams that the previous daemon has left; return how many there were.

        Whatever is wrong with a stream ends only that one, and is logged once for all that have the fault.
        """
        count, given_up = 0, collections.Counter[str]()
        for name, descriptor in self.store.take(_is_stream):
            self.store.count(1)
            try:
                self._resume(name, descriptor, take_in)
                count += 1
            except Exception as error:  # noqa: BLE001 - what another version wrote may be anything
                self._drop(name)
                given_up[brief(error)] += 1
        for why, number in given_up.items():
            what = "a stream" if number == 1 else f"{number} streams"
            verb = "cannot go on and ends" if number == 1 else "cannot go on and end"
            text = f"{what} of the daemon before this one {verb}: {why}"
            events.log(events.StreamGivenUp(), logging.ERROR, text)
        if count:
            text = f"resumed {texts.many(count, 'stream')} of the daemon before this one"
            events.log(events.StreamsResumed(streams=count), logging.INFO, text)
        return count

    # --- inside ---

    def _open_table(self) -> ProgressTable:
        """The table in the store; a new one if there is none that this version can read."""
        passed = [descriptor for _name, descriptor in self.store.take(lambda name: name == _TABLE)]
        why = f"there are {len(passed)}"
        if len(passed) == 1:
            try:
                found = ProgressTable(passed[0])
            except LocalError as error:
                why = str(error)
            else:
                self._inherited = True
                self.store.count(1)
                return found
        elif passed:
            bundle.close_all(passed)
        if passed:
            self.store.count(1)
            self.store.remove(_TABLE)
            text = f"the progress table of the daemon before this one cannot be read: {why}; its streams end"
            events.log(events.StreamGivenUp(), logging.ERROR, text)
        descriptor = progress.create()
        self.store.add(_TABLE, descriptor)
        return ProgressTable(descriptor)

    def _take_slot(self, pump: Pump) -> int | None:
        """Have a stream record its progress in the progress table, if there is room for one more."""
        if self._table is None or self.store.free <= self.store.limit // _RESERVE:
            self._not_kept(
                "the service manager keeps no more streams for us: further ones will not outlive this daemon "
                f"(FileDescriptorStoreMax={self.store.limit})"
            )
            return None
        try:
            slot, entry = self._table.take()
        except LocalError as error:
            self._not_kept(f"streams will not outlive this daemon: {error}")
            return None
        pump.note_in(entry)
        self._slots[pump] = slot
        return slot

    def _not_kept(self, why: str) -> None:
        if self.store.limit and not self.unprotected:
            events.log(events.StoreFull(), logging.WARNING, why)
        self.unprotected += 1

    def _resume(self, name: str, descriptor: int, take_in: TakeIn) -> None:
        """Continue one stream.

        Raises:
            Exception: it cannot continue, and has ended.
        """
        (box,) = bundle.as_sockets([descriptor])
        with box:
            facts, descriptors = bundle.unpack(box)
        pump = self._assemble(int(name[1:]), facts, descriptors)
        try:
            if pump.entry.tries >= _TRIES:
                raise LocalError(f"the daemon ended {_TRIES} times when it went on")
            if pump.entry.cut:
                pump.cut = StreamCut(Side.LINK, OSError(None, "it was being cut off when the daemon ended"))
            pump.entry.tries += 1
            pump.kept = True
            take_in(pump, facts)
        except BaseException:
            pump.cut = StreamCut(Side.LINK, OSError(None, "given up"))
            pump.close()
            self._give_back(self._slots.pop(pump))
            raise
        self.protected += 1

    def _assemble(self, slot: int, facts: Mapping[str, Any], descriptors: Sequence[int]) -> Pump:
        """A stream's pump; on failure, its descriptors are closed."""
        pipes = descriptors[2:]
        try:
            sockets = bundle.as_sockets(descriptors[:2])
        except BaseException:
            bundle.close_all(pipes)
            raise
        with contextlib.ExitStack() as undo:
            undo.callback(bundle.close_all, pipes)
            undo.callback(lambda: bundle.abandon([sock.detach() for sock in sockets]))
            _check_descriptors(descriptors)
            if self._table is None or not self._inherited:
                raise LocalError("nothing tells how far it is")
            if facts["slot"] != slot:
                raise LocalError("it is under another one's name")
            near, link = _remembered_ends(sockets, facts)
            entry = self._table.retake(slot)
            undo.callback(self._give_back, slot)
            pump = splice.resume_pump(near, link, pipes, entry)
            undo.pop_all()
        self._slots[pump] = slot
        return pump

    def _give_back(self, slot: int) -> None:
        if self._table is not None:
            self._table.give_back(slot)

    def _drop(self, name: str) -> None:
        """Have an unusable entry dropped, unless it has the same name as a usable one."""
        if int(name[1:]) not in self._slots.values():
            self.store.remove(name)


def _check_descriptors(descriptors: Sequence[int]) -> None:
    """Make sure that these are the descriptors of two sockets and two pipes, all different.

    Raises:
        LocalError: they are not.
    """
    things = {(status.st_dev, status.st_ino) for status in map(os.fstat, descriptors)}
    if len(descriptors) != _DESCRIPTORS or len(things) != _DESCRIPTORS - 2:  # a pipe has two ends
        raise LocalError(f"{len(descriptors)} descriptors of {len(things)} things are no stream")


def _links_facts(links: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What ``_remembered_ends`` needs besides the sockets.

    Of two links, none is where versions that know only one look for it: they would take the other for a plain
    socket.
    """
    return links[0] if len(links) == 1 else dict(zip((Side.NEAR, Side.LINK), links, strict=True))


def _remembered_ends(sockets: Sequence[socket.socket], facts: Mapping[str, Any]) -> tuple[End, Link]:
    """The ends that another process has recorded.

    Raises:
        LocalError: their sockets are of another kind.
        KeyError, TypeError, ValueError: the facts are not those of a stream.
    """
    near, link = sockets
    if Side.NEAR in facts:
        return remembered(near, facts[Side.NEAR]), remembered(link, facts[Side.LINK])
    tcp.check_connection(near, socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)
    return Plain(near), remembered(link, facts)


def _is_stream(name: str) -> bool:
    return name.startswith(_PREFIX) and name[1:].isdecimal()
