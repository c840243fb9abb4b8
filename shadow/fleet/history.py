"""Whether the engine still is the one that we have followed, and has all that we have seen of it.

An engine that was restored from a backup, or lost and set up anew, may look like the one before it: members
of the same names and tokens have the same id, an election raises a low term, and what other servers have
written meanwhile brings the revision beyond the one that we know. So the newest entry is looked up as of the
revision that we know: it is there unless the engine has another past.
"""

from .entries import Entries
from .etcd import Engine, Header
from .keys import Keys
from .turns import in_turns


class History:
    """What we have seen of an engine."""

    def __init__(self, engine: Engine, keys: Keys) -> None:
        self._engine = engine
        self._keys = keys
        self._seen: Header | None = None

    def begin(self, header: Header) -> None:
        """Everything was read as of this."""
        self._seen = header

    async def check(self, entries: Entries, revision: int) -> str | None:
        """Why ``entries``, as of ``revision``, are not what the engine had then; None: they are.

        Raises:
            Compacted: it no longer knows.
            Unavailable, EngineRefused: as for all that is asked.
        """
        seen, self._seen = self._seen, await self._engine.header(self._keys.prefix)
        if seen is not None and self._seen.cluster != seen.cluster:
            return "it is another engine"
        if self._seen.revision < revision or (seen is not None and self._seen.term < seen.term):
            return "it has gone back: was it restored from a backup?"
        if not await self._had(entries, revision):
            return "it has another past: was it restored from a backup, or set up anew?"
        return None

    async def _had(self, entries: Entries, revision: int) -> bool:
        """Whether the newest of the entries was there."""
        newest, name = 0, ""
        async for one in in_turns(list(entries)):
            changed = entries.revision(one)
            if newest < changed <= revision:  # of a revision that is not all in, one may be newer
                newest, name = changed, one
        if not newest:
            return True
        key, kept = self._keys.robot(name), entries.kept(name)
        page = await self._engine.page(key, key + b"\0", revision, limit=1)
        return [(found.revision, found.value) for found in page.found] == [kept]
