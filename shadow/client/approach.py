"""From the servers' names to WELCOME: through whichever of their addresses leads there.

That an address accepts a TCP connection says little: behind it may be a silent box, somebody else's server,
or ours while it shuts down. So an address is good once it has led to WELCOME, and not before. One that failed
at any step goes to the end of the line for a while, and while others wait behind it, it gets only a part of
the time.

All servers are equal, and so are all addresses of a family: a robot tries them in an order of its own, or a
whole fleet would have the same favourite (RFC 6724 sorts them). The one that has led to a session comes first
from then on.
"""

import asyncio
import errno
import logging
import math
import random
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from .. import events
from ..errors import PeerError, Refused, Unreachable
from ..net.address import Endpoint, Target, dial, interleave
from ..net.resolving import resolve
from ..transport import context as contexts
from ..transport import handshake
from ..transport.channel import Channel
from ..transport.hello import greet
from ..wire.frames import Hello, Welcome
from .attempts import Boot

_REMEMBERED = 600.0  # seconds for which an address that failed comes after those that did not
_PARTS_MAX = 4  # an address gets at least one part in this many of the time; the last one gets all of it
_LOOKUP_PART = 10  # the same for a lookup that we can do without: a visitor waits for its channel
_LATE = 1.0  # seconds for which one name's addresses wait for those of other names
_ADDRESSES_MAX = 8  # addresses to try in one go; those behind them come first in the next
_NO_ROOM = {"limit", "socket", "draining"}  # codes of refusals that say something of one server
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}  # not the fault of any address


@dataclass(frozen=True, slots=True)
class Call:
    """What a connection is for.

    Attributes:
        settings: how to do the handshake.
        hello: the HELLO to send.
        interval: keepalive in seconds, until the server says what it wants.
        reach: seconds for a TCP connection, if less than the usual time.
        boot: numbers its HELLOs; None: they need no number.
    """

    settings: contexts.Settings
    hello: Hello
    interval: float
    reach: float = math.inf
    boot: Boot | None = None

    def next_hello(self) -> Hello:
        """The HELLO for one more address: two servers must be able to tell which came later."""
        if self.boot is None:
            return self.hello
        return replace(self.hello, boot=self.boot.id, attempt=self.boot.count())


@dataclass(frozen=True, slots=True)
class Arrival:
    """The result of a call.

    Attributes:
        target: the address that led to the server.
        channel: the connection, paused; see ``hello.greet``.
        welcome: the server's WELCOME.
        took: seconds from the TCP connection to WELCOME.
    """

    target: Target
    channel: Channel
    welcome: Welcome
    took: float


class Approach:
    """The way to any of some servers; it outlives sessions, and so remembers what failed."""

    def __init__(
        self,
        servers: Mapping[Endpoint, str],
        patience: float,
        *,
        told: bool = False,
        shuffle: Callable[[list[Any]], None] = random.shuffle,
    ) -> None:
        """Try nothing yet.

        Args:
            servers: where they are, and which name each one's certificate must be for; empty: what the
                settings of a call say.
            patience: seconds for resolving a name, for a handshake, and again for WELCOME.
            told: a peer has told us where.
            shuffle: puts a list into a random order.
        """
        self._servers = servers
        self._patience = patience
        self._told = told
        self._shuffle = shuffle
        self._found: dict[Endpoint, list[Target]] = {}  # by the last lookup of each that found any
        self._failed: dict[Target, float] = {}  # when each failed; the latest comes last
        self._best: Target | None = None
        self._avoided: Target | None = None  # until the next lookup says what other addresses its server has
        self._left: Target | None = None  # the last that was avoided, until it no longer answers
        self._loop = asyncio.get_running_loop()

    def prefer(self, target: Target) -> None:
        """This address has led to a session: it comes first as long as it does not fail."""
        self._best = target

    def avoid(self, target: Target) -> None:
        """The server at this address comes after all others for a while, as if it had failed.

        So do its other addresses if it has a name of its own; if all servers have one name, who can tell?
        But as long as we have a session there, its channels go there and nowhere else.
        """
        self._avoided = self._left = target
        self._note_failure(target, answers=True)

    async def call(self, call: Call, known: Target | None = None) -> Arrival:
        """Open a connection and get it welcomed.

        Args:
            call: what it is for.
            known: the only address to try, unless it has failed recently (to be avoided is no failure): then
                try all, those of the last lookup if the name server does not answer at once.

        Raises:
            Refused: a server refused us; its other addresses are not tried, those of other servers only if it
                has no room.
            PeerError: no address has led to WELCOME. Of several reasons it gives that of the first address
                that was reached, if any.
        """
        if known is not None and (known == self._left or not self._has_failed(known)):
            line = [known]
        else:
            line = await self._addresses(known)
        return await self._try_all(self._in_order(line)[:_ADDRESSES_MAX], call, known)

    async def _addresses(self, known: Target | None) -> list[Target]:
        """Those of the servers; if one is ``known``, a dead name server delays us only briefly.

        Then they are those of its server, as far as we know which one that is: the others do not know our
        session.
        """
        if known is None:
            found = await self._look_up(list(self._servers), self._patience)
            self._found.update(found)
            self._avoid_all()
            return self._mixed(list(found.values()))
        servers = [server for server, targets in self._found.items() if known in targets]
        servers = servers or [server for server, name in self._servers.items() if name == known.name]
        try:
            self._found.update(await self._look_up(servers, self._patience / _LOOKUP_PART))
        except Unreachable as error:
            events.STEPS.debug("%s", error)
        line = self._mixed([self._found[server] for server in servers if server in self._found])
        return line if known in line else [*line, known]

    def _avoid_all(self) -> None:
        """Avoid all addresses of the server that is to be avoided, not just the one that we had."""
        avoided, self._avoided = self._avoided, None
        if avoided is None or len(self._servers) == 1:
            return
        same = {one for targets in self._found.values() if avoided in targets for one in targets}
        line = sorted(same - {avoided}, key=str)
        self._shuffle(line)
        for target in [*line, avoided]:
            self._note_failure(target, answers=True)

    async def _look_up(self, servers: Sequence[Endpoint], within: float) -> dict[Endpoint, list[Target]]:
        """The addresses of those servers whose names are resolved in time.

        Raises:
            Unreachable: there are none; the message has all reasons.
        """
        found: dict[Endpoint, list[Target]] = {}
        failed: dict[Endpoint, Unreachable] = {}
        lookups = {asyncio.create_task(resolve(one, within, told=self._told)): one for one in servers}
        waiting = set(lookups)
        try:
            while waiting:
                done, waiting = await asyncio.wait(
                    waiting, timeout=_LATE if found else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for lookup in done:
                    server = lookups[lookup]
                    try:
                        targets = lookup.result()
                    except Unreachable as error:
                        failed[server] = error
                        events.STEPS.debug("%s", error)
                    else:
                        found[server] = [replace(one, name=self._servers[server]) for one in targets]
        finally:
            for lookup in waiting:
                lookup.cancel()
        if not found:
            errors = [failed[server] for server in servers]
            raise errors[0] if len(errors) == 1 else Unreachable("; ".join(map(str, errors)))
        return {server: found[server] for server in servers if server in found}

    def _mixed(self, found: list[list[Target]]) -> list[Target]:
        """All of them, in any order within a family, and with alternating families (RFC 8305, section 4).

        The first family is the one that the resolver prefers for one of the servers.
        """
        self._shuffle(found)
        targets = list(dict.fromkeys(chain.from_iterable(found)))
        first = targets[0].family if targets else 0
        self._shuffle(targets)
        return interleave(sorted(targets, key=lambda target: target.family != first))

    async def _try_all(self, line: list[Target], call: Call, known: Target | None) -> Arrival:
        why: PeerError | None = None
        while line:
            try:
                sock, target = await self._reach(line, call.reach)
            except Unreachable as error:
                why = why or error
                continue
            line.remove(target)
            events.STEPS.debug("reached %s", target)
            began = self._loop.time()
            within = self._patience / min(len(line) + 1, _PARTS_MAX)
            try:
                channel, welcome = await self._greet(sock, _for(target, call), within)
            except Refused as error:
                why = error
                line = self._elsewhere(line, target, error) if known is None else []
                if line and not self._has_failed(target):
                    self._log(target, error, call.hello.robot)
                if target != known:  # there may be another server behind the next one
                    self._note_failure(target, answers=True)
            except PeerError as error:
                why = error if why is None or isinstance(why, Unreachable) else why
                if line and not self._has_failed(target):
                    self._log(target, error, call.hello.robot)
                self._note_failure(target)
            else:
                self._failed.pop(target, None)
                return Arrival(target, channel, welcome, self._loop.time() - began)
        assert why is not None  # noqa: S101 - a name resolves to at least one address
        raise why

    def _elsewhere(self, line: list[Target], target: Target, refused: Refused) -> list[Target]:
        """What is left of the line after a server has refused us: others may have room."""
        if refused.code not in _NO_ROOM:
            return []
        there = [targets for targets in self._found.values() if target in targets]
        return [one for one in line if not any(one in targets for targets in there)]

    async def _reach(self, line: list[Target], at_most: float) -> tuple[socket.socket, Target]:
        """Connect to the first address that answers.

        Those that have not failed recently come first. Addresses that do not answer leave the line.
        """
        candidates = [target for target in line if not self._has_failed(target)] or list(line)
        within = self._patience if len(candidates) == len(line) else self._patience / 2
        gone: set[Target] = set()

        def failed(target: Target, error: OSError) -> None:
            gone.add(target)
            events.STEPS.debug("%s is not to be reached: %s", target, error)
            if error.errno not in _OURS:
                self._note_failure(target)

        try:
            return await dial(candidates, min(within, at_most), failed)
        except Unreachable:
            gone.update(candidates)
            raise
        finally:
            line[:] = [target for target in line if target not in gone]

    async def _greet(self, sock: socket.socket, call: Call, within: float) -> tuple[Channel, Welcome]:
        link = await handshake.secure(sock, call.settings, call.interval, within)
        return await greet(link, call.next_hello(), within)

    def _in_order(self, targets: list[Target]) -> list[Target]:
        """The best, those that have not failed recently, then the others, the latest failure last."""
        places = {target: place for place, target in enumerate(self._failed, 1)}
        return sorted(
            targets,
            key=lambda target: places[target] if self._has_failed(target) else -(target == self._best),
        )

    def _has_failed(self, target: Target) -> bool:
        return self._loop.time() - self._failed.get(target, -_REMEMBERED) < _REMEMBERED

    def _note_failure(self, target: Target, *, answers: bool = False) -> None:
        now = self._loop.time()
        if target == self._left and not answers:
            self._left = None
        self._failed.pop(target, None)
        self._failed[target] = now
        for other in [other for other, when in self._failed.items() if now - when >= _REMEMBERED]:
            del self._failed[other]

    def _log(self, target: Target, error: PeerError, robot: str) -> None:
        servers = " or ".join(map(str, self._servers))
        text = f"{target} does not lead to {servers}: {error}; trying other addresses"
        events.log(events.AddressFailed(robot=robot, peer=str(target)), logging.WARNING, text)


def _for(target: Target, call: Call) -> Call:
    """The call, if it goes to this address: only the server that should be there will do."""
    if not target.name:
        return call
    return replace(call, settings=replace(call.settings, server_names=(target.name,)))


class Door:
    """The way to the server that has our session: by one address, for as long as that leads there.

    Attributes:
        settings: how to do handshakes; a reload replaces it.
    """

    def __init__(
        self,
        approach: Approach,
        hello: Hello,
        settings: contexts.Settings,
        interval: float,
        target: Target | None,
    ) -> None:
        """Make a way in.

        Args:
            approach: the way to all addresses at which the server takes data channels.
            hello: the HELLO to send.
            settings: how to do handshakes.
            interval: of the session's keepalive, in seconds.
            target: the one of them to try first; None: not known yet.
        """
        self.settings = settings
        self._approach = approach
        self._hello = hello
        self._interval = interval
        self._target = target

    async def open(self) -> Channel:
        """Open a data channel; it is welcomed and paused.

        Raises:
            PeerError: that failed.
        """
        arrival = await self._approach.call(Call(self.settings, self._hello, self._interval), self._target)
        self._target = arrival.target
        return arrival.channel
