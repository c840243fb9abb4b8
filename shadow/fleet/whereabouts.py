"""Where a robot is that is not here: by the directory, or, without it, by asking every server."""

import asyncio
import contextlib
from collections.abc import Collection
from dataclasses import dataclass

from ..errors import ShadowError, Unreachable
from ..transport.channel import Channel
from ..wire.frames import Frame, Here, Moved, Who
from .peers import Peers
from .registrar import Registrar

_NAMES_MAX = 16  # asked for at once: visitors may make up names, and others need the channels
_WHO_WITHIN = 1.0  # seconds that each server has to say whether a robot is there


@dataclass(frozen=True, slots=True)
class Place:
    """Where a robot may be.

    Attributes:
        server: which server.
        sid: of its session there; empty if that is not known.
        revision: of the entry that says so; 0: none does.
    """

    server: str
    sid: str
    revision: int


class Whereabouts:
    """Finds places.

    Attributes:
        name: ours in the fleet.
    """

    def __init__(self, registrar: Registrar, peers: Peers) -> None:
        """Ask nobody yet.

        Args:
            registrar: knows what the directory says.
            peers: the channels to other servers.
        """
        self.name = registrar.name
        self._registrar = registrar
        self._view = registrar.view
        self._peers = peers
        self._loop = asyncio.get_running_loop()
        self._asking: dict[str, asyncio.Task[Place | None]] = {}
        self._turns = asyncio.Semaphore(_NAMES_MAX)

    async def close(self) -> None:
        """Ask no more."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def moved(self, name: str) -> Moved:
        """What to say to a server that looks for a robot here."""
        return self._registrar.moved(name)

    def has_newer(self, name: str, place: Place) -> bool:
        """Whether the directory says that a robot is somewhere else by now."""
        entry = self._view.robot(name)
        newer = entry is not None and entry.server != place.server and entry.revision > place.revision
        return self._view.up and newer

    async def find(self, name: str, hint: Place | None, tried: Collection[Place]) -> Place | None:
        """Where to look for a robot next.

        Args:
            name: the robot's.
            hint: what a server has said that it has left.
            tried: where it was not, a moment ago.
        """
        entry = self._view.robot(name)
        found = [] if entry is None else [Place(entry.server, entry.sid, entry.revision)]
        if hint is not None and (entry is None or hint.revision > entry.revision):
            found.insert(0, hint)
        present = self._peers.names
        for place in found:
            if place.server in present and place not in tried:
                return place
        complete = self._view.up and self._view.intake.open
        place_asked = None if complete else await self._ask_all(name)
        return None if place_asked in tried else place_asked

    async def _ask_all(self, name: str) -> Place | None:
        """Ask all servers; many who want the same robot ask once."""
        asking = self._asking.get(name)
        if asking is None:
            asking = self._asking[name] = self._loop.create_task(self._who_has(name))
            asking.add_done_callback(lambda _task: self._asking.pop(name))
        return await asyncio.shield(asking)

    async def _who_has(self, name: str) -> Place | None:
        async with self._turns:
            servers = self._peers.names
            answers = await asyncio.gather(*(self._who(server, name) for server in servers))
        found = [(server, here) for server, here in zip(servers, answers, strict=True) if here and here.sid]
        if not found:
            return None
        server, here = min(found, key=lambda one: (one[1].heard, one[0]))
        # Of one boot, the later session is the robot's, whichever was heard last.
        same = [one for one in found if one[1].boot == here.boot]
        server, here = max(same, key=lambda one: one[1].attempt)
        return Place(server, here.sid, 0)

    async def _who(self, server: str, name: str) -> Here | None:
        with contextlib.suppress(ShadowError, TimeoutError):
            async with asyncio.timeout(_WHO_WITHIN), self._peers.lend(server, _WHO_WITHIN) as channel:
                answer = await ask(channel, Who(name), _WHO_WITHIN)
                return answer if isinstance(answer, Here) else None
        return None


async def ask(channel: Channel, frame: Frame, within: float) -> Frame:
    """Say a frame on a channel that stands by, and wait for the answer.

    Returns:
        The answer; the channel is paused, since a stream's bytes may follow.

    Raises:
        Unreachable: the channel was lost, or it takes too long.
    """
    answer: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()

    def on_frame(heard: Frame) -> None:
        channel.pause()
        if not answer.done():
            answer.set_result(heard)

    def on_lost(error: object) -> None:
        if not answer.done():
            answer.set_exception(Unreachable(f"the connection to it was lost: {error or 'it hung up'}"))

    channel.hear(on_frame, on_lost)
    channel.send(frame)
    # Not wait_for() or timeout(): on a machine that stood still, both would discard an answer received.
    await asyncio.wait([answer], timeout=within)
    if not answer.done():
        raise Unreachable(f"no answer within {within:g} s")
    return answer.result()
