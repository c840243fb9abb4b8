"""Channels to the other servers of the fleet, for visitors whose robots are there.

To each server that is present, ``WARM`` channels stand by, so that a visitor does not wait for a handshake.
Whoever needs one takes it, and another takes its place; who needs one when there is none dials. A channel
that stands by costs callbacks and no task.

Servers are those that the fleet's directory has: one that goes is forgotten at once.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator

from .. import events
from .. import text as texts
from ..errors import Refused, ShadowError, Unreachable, brief
from ..net.address import Endpoint
from ..transport.channel import Channel
from ..wire.frames import Frame, Hello, Refusal
from ..wire.timing import Backoff
from .peer_trust import PeerTrust
from .peer_way import Manner, Way

WARM = 2  # channels to each server that stand by
LENT_MAX = 64  # channels to each server that are lent, or dialled for somebody who waits for one


class Peers:
    """The channels to all of them."""

    def __init__(self, hello: Hello, trust: PeerTrust, interval: float, timeout: float) -> None:
        """Know of none yet.

        Args:
            hello: the HELLO to say on each channel.
            trust: who we are; what it has read last is good for the next channel.
            interval: keepalive in seconds, for the kernel.
            timeout: seconds for a channel, from the server's name to WELCOME.
        """
        self._us = hello.robot
        self._trust = trust
        self._manner = Manner(hello, trust, interval, timeout)
        self._peers: dict[str, _Peer] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def names(self) -> list[str]:
        """The servers that are present, sorted."""
        return sorted(self._peers)

    def meet(self, server: str, endpoint: Endpoint | None) -> None:
        """A server has come, with the address at which others reach it, or has another one, or has gone.

        Args:
            server: its id; nothing happens if it is ours.
            endpoint: the address; None: it has gone, or has none.
        """
        present = self._peers.get(server)
        if server == self._us or (present is not None and present.way.endpoint == endpoint):
            return
        if present is not None:
            del self._peers[server]
            ending = present.leave()
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
        if endpoint is not None:
            self._peers[server] = _Peer(Way(server, endpoint, self._manner), self._trust)

    async def take(self, server: str) -> Channel:
        """A channel to a server, paused: set who hears it (``Channel.hear``).

        Whoever takes one gives it back once, whatever has become of it.

        Raises:
            Unreachable: there is no such server, or it cannot be reached, or it refuses us.
        """
        peer = self._peers.get(server)
        if peer is None:
            raise Unreachable(f"server {server} is not one of the fleet, or does not say where to reach it")
        return await peer.take()

    def revocation(self, channel: Channel) -> str | None:
        """Why its server's certificate is no longer good, if it was revoked since the channel was taken."""
        return self._trust.revocation(channel.link)

    def give_back(self, server: str, channel: Channel) -> None:
        """A channel that was taken is not needed any more.

        After FAILED, MOVED or HERE it may stand by again; in the middle of anything else it is closed. One
        that carries a stream now, or was lost, is no longer ours, and only makes room for another.
        """
        peer = self._peers.get(server)
        if peer is None or not peer.give_back(channel):  # the server that it leads to has gone
            channel.close()

    @contextlib.asynccontextmanager
    async def lend(self, server: str, within: float) -> AsyncIterator[Channel]:
        """``take`` one, and give it back at the end of the block.

        Args:
            server: to which server.
            within: seconds to wait for one: all may be lent.

        Raises:
            Unreachable: see ``take``; or it takes too long.
        """
        try:
            async with asyncio.timeout(within):
                channel = await self.take(server)
        except TimeoutError:
            raise Unreachable(f"no channel to server {server} within {within:g} s") from None
        try:
            yield channel
        finally:
            self.give_back(server, channel)

    def cut_off_revoked(self) -> None:
        """Hang up on servers whose certificates are revoked now; their streams are their robots' concern."""
        for peer in self._peers.values():
            peer.cut_off_revoked()

    async def close(self) -> None:
        """End all that stand by; those that are lent are their takers'."""
        for server in self.names:
            self.meet(server, None)
        await asyncio.gather(*self._ending, return_exceptions=True)

    def describe(self) -> Iterator[str]:
        """Lines for debugging."""
        yield f"peers: {texts.many(len(self._peers), 'other server')}"
        for server in self.names:
            yield f"  {self._peers[server].summary}"


class _Peer:
    """One of the servers, from when it comes until it goes.

    Attributes:
        way: how to get there.
    """

    def __init__(self, way: Way, trust: PeerTrust) -> None:
        self.way = way
        self._trust = trust
        self._loop = asyncio.get_running_loop()
        self._warm: set[Channel] = set()
        self._lent: set[Channel] = set()
        self._turns = asyncio.Semaphore(LENT_MAX)
        self._takers: set[asyncio.Timeout] = set()
        self._backoff = Backoff()
        self._rest_until = 0.0  # for channels that nobody waits for
        self._well_since: float | None = None
        self._down_since: float | None = None
        self._why = ""
        self._look = asyncio.Event()
        self._task = self._loop.create_task(self._keep())

    @property
    def summary(self) -> str:
        """One line for debugging."""
        counts = f"{len(self._warm)} standing by, {len(self._lent)} lent, {len(self._takers)} waited for"
        if self._down_since is None:
            return f"{self.way}: {counts}"
        seconds = self._loop.time() - self._down_since
        return f"{self.way}: {counts}; out of reach for {seconds:.0f} s: {self._why}"

    # Lending

    async def take(self) -> Channel:
        """See ``Peers.take``."""
        try:
            async with asyncio.timeout(None) as taker:  # ``leave`` sets its time
                self._takers.add(taker)
                try:
                    return await self._take()
                finally:
                    self._takers.remove(taker)
        except TimeoutError:
            raise Unreachable(f"{self.way} has gone") from None
        except ShadowError as error:
            raise Unreachable(f"{self.way} is out of reach: {brief(error)}") from error

    async def _take(self) -> Channel:
        await self._turns.acquire()
        try:
            channel = self._pick() or await self.way.open()
        except BaseException:
            self._turns.release()
            raise
        self._lent.add(channel)
        if self._down_since is not None:  # no longer, it seems
            self._rest_until = 0.0
            self._look.set()
        return channel

    def _pick(self) -> Channel | None:
        """One that stands by, paused, if there is any that is still good."""
        while self._warm:
            channel = self._warm.pop()
            self._look.set()
            if _is_silent(channel) and not self._trust.revocation(channel.link):
                channel.pause()
                return channel
            channel.close()
            self._rest()
        return None

    def give_back(self, channel: Channel) -> bool:
        """See ``Peers.give_back``; False: it was not taken from here."""
        if channel not in self._lent:
            return False
        self._lent.remove(channel)
        self._turns.release()
        if channel.stands_by:
            self._stand_by(channel)
        else:
            channel.close()
        return True

    def leave(self) -> asyncio.Task[None]:
        """The server has gone: forget it, and turn away whoever waits; return the task that ends."""
        self._task.cancel()
        for taker in self._takers:
            taker.reschedule(self._loop.time())
        for channel in self._warm:
            channel.close()
        self._warm.clear()
        return self._task

    def cut_off_revoked(self) -> None:
        """See ``Peers.cut_off_revoked``: what is lent is looked at before it becomes a stream."""
        for channel in [one for one in self._warm if self._trust.revocation(one.link)]:
            channel.close()
            self._lost(channel)

    # Standing by

    async def _keep(self) -> None:
        """Have enough channels stand by, for ever."""
        while True:
            self._look.clear()
            if len(self._warm) >= WARM:
                await self._look.wait()
            elif self._loop.time() < self._rest_until:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(self._rest_until):
                        await self._look.wait()
            else:
                await self._open()

    async def _open(self) -> None:
        try:
            channel = await self.way.open()
        except ShadowError as error:
            self._failed(error)
        except Exception as error:
            if self._down_since is None:
                text = "unexpected error: another server cannot be dialled (please report)"
                logging.getLogger("shadow").exception(text)
            self._failed(ShadowError(f"internal error: {error!r}"))
        else:
            self._succeeded()
            self._stand_by(channel)

    def _succeeded(self) -> None:
        now = self._loop.time()
        if self._well_since is None:
            self._well_since = now
        if self._down_since is not None:
            text = f"{self.way} is within reach again, after {now - self._down_since:.1f} s"
            self._down_since = None
            events.log(
                events.PeerFound(server=self.way.server, peer=str(self.way.endpoint)), logging.INFO, text
            )

    def _failed(self, error: ShadowError) -> None:
        self._rest(error.retry_after if isinstance(error, Refused) else 0.0)
        self._why = brief(error)
        if self._down_since is None:
            self._down_since = self._loop.time()
            text = (
                f"{self.way} is out of reach: {self._why}; its robots cannot be visited from here meanwhile"
            )
            lost = events.PeerLost(server=self.way.server, peer=str(self.way.endpoint))
            events.log(lost, logging.WARNING, text)

    def _stand_by(self, channel: Channel) -> None:
        if len(self._warm) >= WARM:
            channel.close()
            return
        self._warm.add(channel)
        channel.hear(lambda frame: self._heard(channel, frame), lambda _error: self._lost(channel))

    def _heard(self, channel: Channel, frame: Frame) -> None:
        """The conversation allows nothing but REFUSED."""
        channel.close()
        self._lost(channel, frame.retry if isinstance(frame, Refusal) else 0.0)

    def _lost(self, channel: Channel, retry: float = 0.0) -> None:
        self._warm.discard(channel)
        self._rest(retry)

    def _rest(self, at_least: float = 0.0) -> None:
        """A channel was lost or could not be had: dial the next one in a while, longer each time."""
        now = self._loop.time()
        if self._well_since is not None:
            self._backoff.lived(now - self._well_since)
            self._well_since = None
        if now >= self._rest_until or at_least:  # else it is the same failure
            self._rest_until = max(self._rest_until, now + self._backoff.wait(at_least))
        self._look.set()


def _is_silent(channel: Channel) -> bool:
    """Whether nothing at all has come since it was last read: neither a word nor an end."""
    try:
        channel.link.sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return channel.live
    except OSError:  # of the connection, or a record that is not data
        pass
    return False
