"""The vault: streams whose sockets and pipes the service manager keeps copies of, so that they outlive us.

Every stream over kernel TLS is put into systemd's file descriptor store when it starts, and taken out when it
has ended. Whatever ends the daemon in between, the next one finds it there and goes on: first with what lies
in the pipes, then with the sockets. What cannot be read from those is in the ``ledger``, which is kept too.

All methods are for the event loop's thread.
"""

import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any

from . import journal, ledger, parcel, splice
from .errors import LocalError, printable
from .flow import Pump, Side, StreamCut
from .journal import Event
from .ledger import Ledger
from .link import KernelLink, Link, remembered
from .relay import OnEnd, Relay
from .sd_daemon import Store

_LEDGER = "ledger"
_PREFIX = "s"  # and the stream's slot: all names together travel in one variable of the environment
_TRIES = 2  # times a stream may bring the daemon down by being resumed
_DESCRIPTORS = 6  # of a stream: two sockets, two pipes
_RESERVE = 16  # of the store, one part in so many is for the depot

Welcome = Callable[[Pump, Mapping[str, Any]], OnEnd]
"""Takes in a stream that goes on, with the facts it was kept with; returns who is told of its end.

Raises:
    ShadowError, KeyError, TypeError, ValueError: these facts are no stream of ours.
"""


class Vault:
    """Starts streams, and keeps those that can be kept.

    Attributes:
        relay: moves their bytes.
        store: where they are kept.
        unprotected: streams over kernel TLS that are not kept, for there is no store or it is full.
    """

    def __init__(self, relay: Relay, store: Store) -> None:
        """Take over the ledger that is in the store, if there is one.

        Raises:
            LocalError: no memory.
        """
        self.relay = relay
        self.store = store
        self.unprotected = 0
        self._slots: dict[Pump, int] = {}
        self._ledger = self._open_ledger() if store.limit else None

    @property
    def remark(self) -> str:
        """What a status line should say of streams that would be lost; mostly nothing."""
        return (
            f" ({self.unprotected} not kept over a restart)" if self.store.limit and self.unprotected else ""
        )

    @property
    def protected(self) -> int:
        """Streams that go on without us."""
        return len(self._slots)

    def start(self, plain: socket.socket, link: Link, facts: Mapping[str, Any], on_end: OnEnd) -> Pump:
        """Begin a stream, as ``Relay.start`` does, and keep it if possible.

        Args:
            plain: the visitor's or the service's socket.
            link: the TLS connection.
            facts: what ``resume`` is to tell about it; fit for JSON.
            on_end: called from a relay's thread; ``ended`` must then be called from the event loop's.

        Raises:
            LocalError: no descriptors left; the sockets are still the caller's.
        """
        if not link.in_kernel:
            return self.relay.start(plain, link, on_end)
        if self._ledger is None or self.store.free <= self.store.limit // _RESERVE:
            self._not_kept()
            return self.relay.start(plain, link, on_end)
        slot = self._ledger.take()
        try:
            return self.relay.start(
                plain, link, on_end, self._ledger.entry(slot), lambda pump: self._keep(pump, slot, facts)
            )
        except LocalError:
            self._ledger.give_back(slot)
            raise

    def ended(self, pump: Pump) -> None:
        """A stream is over: what is kept of it can go."""
        slot = self._slots.pop(pump, None)
        if slot is not None:
            self.store.remove(f"{_PREFIX}{slot}")
            self._ledger_give_back(slot)
        elif pump.link.in_kernel:
            self.unprotected -= 1

    def resume(self, welcome: Welcome) -> int:
        """Go on with all streams that the daemon before us has left; how many there were."""
        count = 0
        for name, descriptor in self.store.take(_is_stream):
            self.store.count(1)
            count += self._resume(name, descriptor, welcome)
        if count:
            text = f"resumed {journal.many(count, 'stream')} of the daemon before this one"
            journal.log(Event.STREAMS_RESUMED, logging.INFO, text, streams=count)
        return count

    # --- inside ---

    def _open_ledger(self) -> Ledger:
        for _name, descriptor in self.store.take(lambda name: name == _LEDGER):
            self.store.count(1)
            return Ledger(descriptor)
        descriptor = ledger.create()
        self.store.add(_LEDGER, descriptor)
        return Ledger(descriptor)

    def _not_kept(self) -> None:
        if self.store.limit and not self.unprotected:
            text = "the service manager keeps no more streams for us: further ones will not outlive this "
            text += f"daemon (FileDescriptorStoreMax={self.store.limit})"
            journal.log(Event.STORE_FULL, logging.WARNING, text)
        self.unprotected += 1

    def _keep(self, pump: Pump, slot: int, facts: Mapping[str, Any]) -> None:
        assert isinstance(pump.link, KernelLink)  # noqa: S101 - others are not kept
        with parcel.pack({**facts, "slot": slot, **pump.link.record}, pump.descriptors) as box:
            self.store.add(f"{_PREFIX}{slot}", box.fileno())
        self._slots[pump] = slot
        pump.kept = True

    def _resume(self, name: str, descriptor: int, welcome: Welcome) -> bool:
        """Go on with one stream; whatever is wrong with it ends that stream, and no other."""
        try:
            (box,) = parcel.as_sockets([descriptor])
            with box:
                pump, slot, facts = self._unpack(box)
        except (LocalError, KeyError, TypeError, ValueError) as error:
            self._give_up(name, f"{type(error).__name__}: {error}")
            return False
        try:
            if pump.entry.tries >= _TRIES:
                raise LocalError(f"the daemon ended {_TRIES} times when it went on")
            on_end = welcome(pump, facts)
        except Exception as error:  # noqa: BLE001 - what another version wrote may be anything
            pump.cut = StreamCut(Side.LINK, OSError(None, "given up"))
            pump.close()
            self._ledger_give_back(slot)
            self._give_up(name, str(error) or repr(error))
            return False
        if pump.entry.cut:
            pump.cut = StreamCut(Side.LINK, OSError(None, "it was being cut off when the daemon ended"))
        pump.entry.tries += 1
        pump.kept = True
        self._slots[pump] = slot
        self.relay.resume(pump, on_end)
        return True

    def _unpack(self, box: socket.socket) -> tuple[Pump, int, Mapping[str, Any]]:
        facts, descriptors = parcel.unpack(box)
        if len(descriptors) != _DESCRIPTORS or self._ledger is None:
            parcel.close_all(descriptors)
            raise LocalError(f"{len(descriptors)} descriptors are no stream")
        pipes = descriptors[2:]
        try:
            plain, sock = parcel.as_sockets(descriptors[:2])
        except BaseException:
            parcel.close_all(pipes)
            raise
        try:
            slot, link = int(facts["slot"]), remembered(sock, facts)
            return splice.resume_pump(plain, link, pipes, self._ledger.retake(slot)), slot, facts
        except BaseException:
            plain.close()
            sock.close()
            parcel.close_all(pipes)
            raise

    def _ledger_give_back(self, slot: int) -> None:
        if self._ledger is not None:
            self._ledger.give_back(slot)

    def _give_up(self, name: str, why: str) -> None:
        self.store.remove(name)
        text = f"a stream of the daemon before this one cannot go on and ends: {printable(why)}"
        journal.log(Event.STREAM_GIVEN_UP, logging.ERROR, text)


def _is_stream(name: str) -> bool:
    return name.startswith(_PREFIX) and name[1:].isdecimal()
