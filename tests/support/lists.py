"""Lists of revoked certificates, and servers that are told of them."""

import asyncio
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from shadow.daemon.config import parse_server
from shadow.fleet.etcd import Engine, Swap
from shadow.fleet.exchange import Shown
from shadow.fleet.keys import Keys, Pointer
from shadow.fleet.lists import Lists, id_of
from shadow.fleet.revoking import Revoking
from shadow.pki.certificates import load_certificates
from shadow.pki.crl import RevocationList, load_revocations
from shadow.pki.keys import key_bytes
from shadow.server.questions import Others, Question, Take
from shadow.server.trust import Trust
from tests.support import Authority, make_list


def read(own: Authority, path: Path) -> RevocationList:
    """The list in a file, all of it."""
    (listed,) = load_revocations(path, load_certificates(own.ca, "CA"), whole=True).lists
    return listed


def listed(own: Authority, number: int, *serials: int) -> RevocationList:
    """A list of a CA's."""
    return read(own, make_list(own, *serials, number=number))


def id_of_ca(own: Authority) -> str:
    return id_of(key_bytes(own.certificate.public_key()))


class Place:
    """A server of a fleet, as far as it is about lists; it looks at the engine when it is told.

    Attributes:
        cut_off: how often it has cut off who is revoked.
    """

    def __init__(
        self, own: Authority, engine: Engine, keys: Keys, name: str, state: Path | None = None
    ) -> None:
        crt, key = own.server()
        self.crl = own.folder / f"{name}.crl"
        words = f"--ca={own.ca}", f"--crt={crt}", f"--key={key}", f"--ldir={own.folder}", "--lport=1"
        self.trust = Trust(parse_server([*words, f"--crl={self.crl}", f"--fleet={name}"], {}))
        self.cut_off = 0
        self.others: Others = Others()
        overview = SimpleNamespace(overview=self)
        server: Any = SimpleNamespace(
            trust=self.trust,
            cut_off_revoked=self._cut_off_revoked,
            robots=SimpleNamespace(elsewhere=overview),
        )
        view: Any = SimpleNamespace(lists=asyncio.Event(), lists_elsewhere=False, up=True)
        self.revoking = Revoking(server, name, Lists(engine, keys), view, state)

    def _cut_off_revoked(self) -> None:
        self.cut_off += 1

    def configure(self, path: Path) -> None:
        """A reload finds another file."""
        path.replace(self.crl)
        self.trust.load()

    async def look(self) -> float:
        """For how long it would wait then."""
        pause = await self.revoking._compare()
        await asyncio.gather(*self.revoking._asking.values())
        return pause

    @property
    def number(self) -> int | None:
        """Which list it uses."""
        return self.trust.lists[0].number if self.trust.lists else None


async def write(engine: Engine, key: bytes, value: bytes | None) -> None:
    """Whatever was there; None: nothing."""
    found = await engine.get(key)
    (swapped,) = await engine.swap([Swap(key, 0 if found is None else found.revision, value)])
    assert swapped.ok


def pointer_to(one: RevocationList, **instead: Any) -> Pointer:
    """What a server would write."""
    fields = {
        "number": one.number, "since": int(one.since.timestamp()), "chunks": 1, "server": "evil",
        "sha256": hashlib.sha256(one.der).hexdigest(), **instead,
    }  # fmt: skip
    return Pointer(**fields)


class Trusting:
    """Stands in for what a server trusts: these lists."""

    def __init__(self, *lists: RevocationList) -> None:
        self.lists = lists


def told() -> Any:
    """What is told of newer lists."""
    return SimpleNamespace(lists=asyncio.Event(), lists_elsewhere=False)


class Neighbours(Others):
    """Other servers: each shows a list, fails, or shows something else than it says."""

    def __init__(self, **shown: Any) -> None:
        self.shown = shown
        self.asked: list[str] = []
        self.told = False

    @property
    def names(self) -> list[str]:
        return sorted(self.shown)

    async def ask(self, server: str, question: Question, uid: int, take: Take) -> None:
        self.asked.append(f"{server} {question.what}")
        shown = self.shown[server]
        if isinstance(shown, Exception):
            raise shown
        if callable(shown):
            await take(shown(question))
            return
        view = told()
        try:
            for fact in Shown(shown, view).answer(question):
                await take([fact])
        finally:
            self.told |= view.lists_elsewhere
