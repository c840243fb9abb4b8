"""Has all servers of the fleet revoke the same certificates: a list that one of them has read counts at all.

Of each CA that we trust, the engine says which list is the newest. If that is newer than ours, it is fetched,
checked, used and kept; if ours is newer, the engine gets it from us. So a list comes to all servers from
whichever has it, and never goes back: an older one at the engine is replaced, not used.

A change is seen in the watch. Because some versions of etcd lose events of watches, the engine is also asked
now and then. While it is away, the other servers are asked themselves.
"""

import asyncio
import contextlib
import logging
from pathlib import Path

from cryptography import x509

from .. import events
from .. import text as texts
from ..errors import EngineRefused, ShadowError, Unavailable
from ..pki.crl import RevocationList
from ..pki.keys import key_bytes
from ..server.server import Server
from .exchange import ask_all
from .keys import Pointer, Strange, Stranger
from .lists import BadList, Lists, id_of, place_of, read_pointer
from .memory import Memory
from .view import View

_PAUSE = 10.0  # seconds
_AGAIN = 1.0  # seconds after a failure
_LEAST = 0.05  # seconds between two looks, whatever somebody writes to the engine


class Revoking:
    """``run`` it; ``look`` when our own lists may have changed."""

    def __init__(self, server: Server, name: str, lists: Lists, view: View, state: Path | None) -> None:
        """Look at nothing yet.

        Args:
            server: ours; it is told of lists that it does not have.
            name: its name in the fleet.
            lists: those that the engine has.
            view: says when to look.
            state: folder for what must not be forgotten; None: there is none.
        """
        self._server = server
        self._name = name
        self._lists = lists
        self._view = view
        self._memory = Memory(state)
        self._seen: dict[str, tuple[int, int]] = {}  # the newest list that the engine has had, by CA
        self._bad: dict[str, Pointer] = {}  # what is not worth another look
        self._incomplete: dict[str, Pointer] = {}
        self._said: dict[str, str] = {}
        self._failed = False
        self._keeping: dict[bytes, asyncio.Task[None]] = {}  # by CA
        self._asking: dict[bytes, asyncio.Task[None]] = {}  # by CA

    def look(self) -> None:
        """Compare our lists with the engine's soon."""
        self._view.lists.set()

    async def run(self) -> None:
        """Compare for ever."""
        try:
            while True:
                self._view.lists.clear()
                pause = await self._compare()
                await asyncio.sleep(_LEAST)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._view.lists.wait()
        finally:
            for task in (*self._keeping.values(), *self._asking.values()):
                task.cancel()

    async def _compare(self) -> float:
        """Compare once; return for how long to wait at most."""
        elsewhere, self._view.lists_elsewhere = self._view.lists_elsewhere, False
        failed_before, self._failed = self._failed, False
        for authority in self._server.trust.settings.ca:
            self._keep(key_bytes(authority.public_key()))
            if not self._view.up or not await self._compare_with_engine(authority) or elsewhere:
                self._ask_others(authority, again=elsewhere)
        return _AGAIN if self._failed and not failed_before else _PAUSE

    async def _compare_with_engine(self, authority: x509.Certificate) -> bool:
        """Whether that could be done: the engine may be gone, or full, before the view notices."""
        try:
            await self._compare_one(authority)
        except (Unavailable, EngineRefused):  # the view or who writes says so
            self._failed = True
            return False
        return True

    def _ask_others(self, authority: x509.Certificate, *, again: bool) -> None:
        """While the engine is away: have our list compared with those of the other servers.

        A stolen server may take long to answer, so that its own revocation comes late: what comes by way of
        the engine does not wait for it. ``again``: after that answer, if we wait for one already.
        """
        key = key_bytes(authority.public_key())
        if key in self._asking:
            self._view.lists_elsewhere |= again
            return
        task = self._asking[key] = asyncio.create_task(self._compare_with_others(authority, key))
        task.add_done_callback(lambda task: self._asked(key, task))

    def _asked(self, key: bytes, task: asyncio.Task[None]) -> None:
        del self._asking[key]
        if not task.cancelled() and task.exception() is not None:
            text = "unexpected error: other servers' lists are not used (please report)"
            logging.getLogger("shadow").error(text, exc_info=task.exception())
        if self._view.lists_elsewhere:
            self.look()

    async def _compare_with_others(self, authority: x509.Certificate, key: bytes) -> None:
        others = self._server.robots.elsewhere.overview.others
        found = await ask_all(others, authority, key, self._ours(key))
        if found is not None:
            server, listed = found
            self._use(listed, server, "asked for it")

    def _ours(self, key: bytes) -> RevocationList | None:
        return next((listed for listed in self._server.trust.lists if listed.key == key), None)

    async def _compare_one(self, authority: x509.Certificate) -> None:
        key = key_bytes(authority.public_key())
        ca, pointer = id_of(key), None
        found = await self._lists.pointer(ca)
        revision = 0 if found is None else found.revision
        if found is not None:
            try:
                pointer = read_pointer(found)
            except Stranger as stranger:
                self._say(ca, str(stranger.why))
                if stranger.why is Strange.VERSION:  # it may be about a newer list than ours
                    return
        ours = self._ours(key)
        place = place_of(ours)
        if pointer is None or pointer.place < place:
            if ours is not None:
                await self._put(ca, ours, pointer, revision)
        elif pointer.place == place:
            self._seen[ca] = place
        elif pointer != self._bad.get(ca):
            await self._fetch(authority, ca, pointer, revision)

    async def _fetch(self, authority: x509.Certificate, ca: str, pointer: Pointer, revision: int) -> None:
        """Use a list that is newer than ours."""
        try:
            listed = await self._lists.fetch(authority, ca, pointer)
        except BadList as error:
            self._say(ca, f"list {pointer.number} from server {pointer.server}: {error}")
            if error.incomplete and self._incomplete.get(ca) != pointer:
                self._incomplete[ca] = pointer  # perhaps it has just been replaced
                self.look()
                return
            if not error.incomplete:  # once: another version of us may find it good, and write it again
                self._bad[ca] = pointer
            await self._displace(authority, ca, revision)
            return
        self._seen[ca] = pointer.place
        self._use(listed, pointer.server, "by way of the fleet's engine")

    def _use(self, listed: RevocationList, server: str, how: str) -> None:
        """Use a list of another server's, unless a reload has brought a newer one meanwhile."""
        if not self._server.trust.learn(listed):
            return
        text = (
            f"revocation list {listed.number} of {listed.ca} came from server {server}, {how}: "
            f"{texts.many(len(listed.revoked), 'certificate')} revoked"
        )
        events.log(events.ListLearnt(server=server, number=str(listed.number)), logging.INFO, text)
        self._server.cut_off_revoked()
        self._keep(listed.key)

    async def _displace(self, authority: x509.Certificate, ca: str, revision: int) -> None:
        """Something that is no list must not keep others from having theirs there."""
        ours = self._ours(key_bytes(authority.public_key()))
        if ours is None:
            await self._lists.remove(ca, revision)
        else:
            await self._put(ca, ours, None, revision)

    async def _put(self, ca: str, ours: RevocationList, before: Pointer | None, revision: int) -> None:
        """Have the others use our list, which is newer than what they have from the engine."""
        if before is not None and before.place < self._seen.get(ca, before.place):
            self._say(ca, f"list {before.number}, which is older than the one that was there before")
        if not await self._lists.put(ca, ours, self._name, before, revision):
            self.look()
            return
        self._seen[ca] = place_of(ours)
        instead = f", instead of list {before.number}" if before is not None else ""
        text = f"the fleet's engine has revocation list {ours.number} of {ours.ca} from us now{instead}"
        events.log(events.ListPassedOn(number=str(ours.number)), logging.INFO, text)

    def _keep(self, key: bytes) -> None:
        """Have our list written to the disk.

        Whatever the disk does, the next list is not to wait for it before it counts; nor is it to be written
        at the same time, for the older one might then be what is there in the end.
        """
        ours = self._ours(key)
        if ours is not None and key not in self._keeping:
            task = self._keeping[key] = asyncio.create_task(self._write(ours))
            task.add_done_callback(lambda _task: self._kept(ours))

    def _kept(self, listed: RevocationList) -> None:
        del self._keeping[listed.key]
        if self._ours(listed.key) is not listed:
            self.look()

    async def _write(self, ours: RevocationList) -> None:
        try:
            await self._memory.keep(ours)
        except ShadowError as error:
            text = f"revocation list {ours.number} of {ours.ca} is in use, but only until a restart: {error}"
            events.log(events.ListNotKept(number=str(ours.number)), logging.WARNING, text)

    def _say(self, ca: str, what: str) -> None:
        """Say once that something at the engine is not used."""
        if self._said.get(ca) != what:
            self._said[ca] = what
            text = f"a revocation list at the fleet's engine is not used: {what}"
            events.log(events.ListRefused(), logging.WARNING, text)
