"""The mailbox: what a planned restart leaves for the next daemon, besides the streams (``relay.durable``).

When told to stop, the daemon puts letters here for its sessions, their channels, waiting visitors and the
sockets that visitors connect to, many to a bundle: for the service manager, thousands of robots are a few
dozen descriptors. Each letter is taken out once. If the next daemon dies halfway, what it had taken dies with
it, and what it had not taken is there for the one after.

A crash leaves nothing here: robots then reconnect, and their streams continue meanwhile.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .. import events
from .. import text as texts
from ..errors import LocalError, brief
from . import bundle
from .bundle import BundleWriter, Letter
from .fdstore import Store

_PREFIX = "p"  # and a number; short, because one environment variable carries all names together


class Mailbox:
    """Takes letters in."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._writer: BundleWriter | None = None
        self._count = 0

    def put(self, letter: Letter) -> None:
        """Leave a letter for the next daemon.

        Its descriptors must not be shut down afterwards, but may be closed.

        Raises:
            LocalError: it cannot be kept; the message says why.
        """
        if self._writer is not None and self._writer.put(letter):
            return
        if not self._next_writer().put(letter):
            raise LocalError("too much for one bundle")

    def _next_writer(self) -> BundleWriter:
        self.close()
        if self._store.free <= 0:
            raise LocalError(f"the service manager keeps no more than {self._store.limit} descriptors for us")
        writer = BundleWriter()
        with writer.bundle:
            try:
                self._store.add(f"{_PREFIX}{self._count}", writer.bundle.fileno())
            except BaseException:
                writer.close()
                raise
        self._count += 1
        self._writer = writer
        return writer

    def close(self) -> None:
        """Seal the bundle that is being filled."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def is_left(store: Store) -> bool:
    """True if the previous daemon has left anything that nobody has collected."""
    return store.was_passed(_is_ours)


def _is_ours(name: str) -> bool:
    return name.startswith(_PREFIX) and name[1:].isdecimal()


def collect(store: Store) -> Iterator[Letter]:
    """The letters of the previous daemon, in the order in which it put them in."""
    passed = store.take(_is_ours)
    for name, descriptor in sorted(passed, key=lambda entry: int(entry[0][1:])):
        store.count(1)
        errors = []
        for letter in _letters(descriptor):
            if isinstance(letter, Letter):
                yield letter
            else:
                errors.append(letter)
        if errors:
            what = texts.many(len(errors), "letter")
            text = f"{what} of the daemon before this one cannot be read: {errors[0]}; that ends"
            events.log(events.SessionGivenUp(), logging.ERROR, text)
        store.remove(name)


def deal(
    letters: Iterable[Letter],
    take: Callable[[Mapping[str, Any], list[socket.socket]], object],
    give_up: Callable[[Mapping[str, Any], str], object],
    count: int | None = None,
) -> None:
    """Hand each letter to ``take``: its facts, and its descriptors as sockets.

    If anything goes wrong with one, its sockets are closed and ``give_up`` is called; the others go on.

    Args:
        letters: what ``collect`` has found.
        take: takes one in; may raise anything, because another version may have written anything.
        give_up: gets the facts, and the reason, fit for the log.
        count: how many sockets there must be.
    """
    loop = asyncio.get_running_loop()
    for facts, descriptors in letters:
        sockets: list[socket.socket] = []
        try:
            sockets = bundle.as_sockets(descriptors, count)
            take(facts, sockets)
        except Exception as error:  # noqa: BLE001
            for sock in sockets:
                loop.remove_reader(sock)
            bundle.abandon([sock.detach() for sock in sockets])
            give_up(facts, brief(error))


def _letters(descriptor: int) -> Iterator[Letter | LocalError]:
    try:
        (box,) = bundle.as_sockets([descriptor])
    except LocalError as error:
        yield error
        return
    with box:
        yield from bundle.empty(box)
