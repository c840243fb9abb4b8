"""A server of the fleet as others dial it: it welcomes them, and hears what they say."""

import asyncio
import contextlib
import socket
from typing import Self

from cryptography import x509

from shadow.errors import PeerError
from shadow.fleet.peer_trust import PeerTrust
from shadow.net.address import Endpoint
from shadow.net.liveness import watch_for_death
from shadow.pki.certificates import Files
from shadow.transport.channel import Channel
from shadow.transport.context import Ktls, Settings
from shadow.transport.handshake import handshake
from shadow.transport.hello import hear_hello
from shadow.wire.conversation import Party
from shadow.wire.frames import Frame, Hello, Here, Refusal, Welcome
from tests.support import DEADLINE, Authority


def peer_trust(authority: Authority, server: str) -> PeerTrust:
    """Who a server is among its peers."""
    return PeerTrust(Files(authority.ca, *authority.peer(server)), server, Ktls.AUTO)


class Answering:
    """It stands in for one server, behind an address of its own.

    Attributes:
        answer: to HELLO; None: silence.
        answers: to what is said on a channel that stands by; None: silence.
        heard: what they say then.
        accepted: how many have connected.
        hellos: what they have said.
        certificates: which they have shown.
        channels: those that are there.
        lost: how the others have ended: None, or why.
        failures: handshakes that have failed.
    """

    def __init__(self, settings: Settings, host: str = "127.0.0.1", answer: Frame | None = None) -> None:
        """Listen; ``async with`` answers."""
        self.answer: Frame | None = answer or Welcome(1)
        self.answers: Frame | None = Here()
        self.heard: list[Frame] = []
        self.accepted = 0
        self.hellos: list[Hello] = []
        self.certificates: list[x509.Certificate] = []
        self.channels: list[Channel] = []
        self.lost: list[PeerError | None] = []
        self.failures: list[Exception] = []
        self._settings = settings
        self._listener = socket.create_server((host, 0))
        self._listener.setblocking(False)
        self.endpoint = Endpoint(*self._listener.getsockname()[:2])
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self.hear()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.be_deaf()
        self._listener.close()
        self.hang_up()

    def hear(self) -> None:
        """Answer whoever connects."""
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    async def be_deaf(self) -> None:
        """Whoever connects hears nothing."""
        asyncio.get_running_loop().remove_reader(self._listener)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hang_up(self) -> None:
        """End all channels."""
        for channel in self.channels:
            channel.close()
        self.channels.clear()

    def say(self, frame: Frame) -> None:
        """Say something on all of them."""
        for channel in self.channels:
            channel.send(frame)

    def _accept(self) -> None:
        # Not sock_accept() in a task: when that is cancelled, a connection may be lost, and left open.
        try:
            sock, _address = self._listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        self.accepted += 1
        task = asyncio.create_task(self._greet(sock))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._greeted(task, sock))

    def _greeted(self, task: asyncio.Task[None], sock: socket.socket) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # perhaps before it had begun
            sock.close()

    async def _greet(self, sock: socket.socket) -> None:
        try:
            watch_for_death(sock, 30.0)
            async with asyncio.timeout(DEADLINE):
                link = await handshake(sock, self._settings)
                channel, hello = await hear_hello(link, Party.ANSWERING)
        except (PeerError, OSError) as error:
            self.failures.append(error)
            sock.close()
            return
        except BaseException:
            sock.close()
            raise
        self.hellos.append(hello)
        self.certificates.append(link.certificate)
        self.channels.append(channel)
        channel.hear(lambda frame: self._heard(channel, frame), lambda error: self._lost(channel, error))
        if self.answer is not None:
            channel.send(self.answer)
        if isinstance(self.answer, Refusal):
            self.channels.remove(channel)
            channel.close()

    def _heard(self, channel: Channel, frame: Frame) -> None:
        self.heard.append(frame)
        if self.answers is not None:
            channel.send(self.answers)

    def _lost(self, channel: Channel, error: PeerError | None) -> None:
        self.lost.append(error)
        with contextlib.suppress(ValueError):
            self.channels.remove(channel)
