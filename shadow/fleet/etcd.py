"""The fleet's engine, etcd: what of its API we use, with types.

https://etcd.io/docs/v3.4/learning/api/. In the gateway's JSON, 64-bit integers are strings, bytes are
base64, and what is zero, false or empty is left out.
"""

import binascii
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

from ..errors import LeaseLost
from ..net.address import Endpoint
from .credentials import Identity
from .gateway import Gateway
from .verdicts import Json, check_watch

SWAPS_MAX = 64
"""Swaps that one transaction may have: etcd takes 128 operations by default (``--max-txn-ops``)."""
PAGE = 1000
"""Keys of one page; their values together are far less than a request of etcd's may have."""

_INTEGER_MAX = 2**64


class Header(NamedTuple):
    """Where an answer comes from, in the engine's history.

    Attributes:
        cluster: the engine's id.
        term: of the leader, rises with each election.
        revision: of the newest change, anywhere in the engine.
    """

    cluster: int
    term: int
    revision: int


class KeyValue(NamedTuple):
    """A key that is there, its value, the revision of its last change, and the lease it hangs on (or 0)."""

    key: bytes
    value: bytes
    revision: int
    lease: int = 0


class Swap(NamedTuple):
    """A compare-and-swap.

    Attributes:
        key: what to change.
        expected: change it only if this is the revision of its last change; 0: only if it is not there.
        value: what it becomes; None: it is deleted.
        lease: what it hangs on, or 0.
        unless: change it only if this key is not there; empty: whatever else there is.
    """

    key: bytes
    expected: int
    value: bytes | None
    lease: int = 0
    unless: bytes = b""


class Swapped(NamedTuple):
    """What became of a swap.

    Attributes:
        ok: it was done.
        revision: of the transaction; if ``ok``, that of the key's last change from now on.
        current: if not ``ok``, what the key is; None: it is not there.
    """

    ok: bool
    revision: int
    current: KeyValue | None = None


class Change(NamedTuple):
    """A change of a key at a revision; ``value`` is None if it was deleted."""

    key: bytes
    value: bytes | None
    revision: int


class Page(NamedTuple):
    """Some of the keys in a range, in their order, and whether there are more after the last."""

    header: Header
    found: list[KeyValue]
    more: bool


class Batch(NamedTuple):
    """Changes in the order of their revisions; ``whole``: the last one's revision has no more of them."""

    changes: list[Change]
    whole: bool


class Engine:
    """A client of the engine. All that is asked raises Unavailable and EngineRefused, see ``Gateway.call``.

    Attributes:
        members: how many there are to ask.
    """

    def __init__(self, endpoints: Sequence[Endpoint], identity: Identity) -> None:
        """Connect to nobody yet.

        Args:
            endpoints: the members' addresses, at least one; hosts as in their certificates.
            identity: who we are to them.
        """
        self._gateway = Gateway(endpoints, identity)
        self.members = len(endpoints)

    def use(self, identity: Identity) -> None:
        """Be somebody else from now on: files were read again."""
        self._gateway.use(identity)

    async def close(self) -> None:
        """Close all connections."""
        await self._gateway.close()

    async def get(self, key: bytes) -> KeyValue | None:
        """What a key is now: no change that anybody has been told of is missing (linearizable)."""
        found = (await self._range({"key": _encode(key)})).found
        return found[0] if found else None

    async def header(self, key: bytes) -> Header:
        """Where the engine is now, as ``get`` would see it; ``key``: one that we may read."""
        return (await self._range({"key": _encode(key), "count_only": True})).header

    async def page(
        self, start: bytes, end: bytes, revision: int = 0, limit: int = PAGE, *, serializable: bool = False
    ) -> Page:
        """The first keys from ``start`` on, and before ``end``.

        Args:
            start: the first key that may be among them.
            end: the first that may not.
            revision: as of when; 0: now.
            limit: how many at most.
            serializable: any member may answer with what it knows; cheaper, and perhaps not the newest.

        Raises:
            Compacted: the engine no longer has this revision.
        """
        bounds = {"key": _encode(start), "range_end": _encode(end), "limit": str(limit)}
        return await self._range({**bounds, "revision": str(revision), "serializable": serializable})

    async def names(self, start: bytes, end: bytes, limit: int = PAGE) -> Page:
        """As ``page``, without the values: they may be large."""
        bounds = {"key": _encode(start), "range_end": _encode(end), "limit": str(limit)}
        return await self._range({**bounds, "keys_only": True})

    async def swap(self, swaps: Sequence[Swap]) -> list[Swapped]:
        """Have swaps done, each independently of the others, in one transaction.

        If an answer was lost they may be tried twice: then a swap that was done is reported as one that was
        not, and ``current`` is what it has written.

        Args:
            swaps: at most ``SWAPS_MAX``, each of a key of its own.

        Raises:
            LeaseLost: a lease has ended; nothing was done.
        """
        if not swaps:
            return []
        if len(swaps) > SWAPS_MAX or len({swap.key for swap in swaps}) < len(swaps):
            raise ValueError(f"{len(swaps)} swaps in one transaction, or several of one key")

        def read(said: Json) -> list[Swapped]:
            revision = _header(said).revision
            answers = [_swapped(one["response_txn"], revision) for one in said["responses"]]
            if len(answers) != len(swaps):
                raise ValueError
            return answers

        return await self._gateway.call("/v3/kv/txn", {"success": list(map(_nested, swaps))}, read)

    async def watch(self, start: bytes, end: bytes, revision: int) -> AsyncGenerator[Batch, None]:
        """Changes of keys from ``start`` on, and before ``end``; close the iterator (``aclosing``).

        The first batch is empty: it says that the engine is watching.

        Args:
            start: the first key.
            end: the first key that is none of them.
            revision: the first revision whose changes are wanted.

        Raises:
            Compacted: the engine no longer has all of them.
            Unavailable: it has come to an end, or nothing came for too long.
        """
        request = {"key": _encode(start), "range_end": _encode(end), "start_revision": str(revision)}
        body = {"create_request": {**request, "fragment": True}}
        async with aclosing(self._gateway.stream("/v3/watch", body, _batch)) as stream:
            async for batch in stream:
                yield batch

    async def grant(self, seconds: int) -> int:
        """A new lease, which ends unless it is kept alive; its id."""
        return await self._gateway.call("/v3/lease/grant", {"TTL": str(seconds)}, _lease)

    async def keep_alive(self, lease: int) -> None:
        """Have a lease last again.

        Raises:
            LeaseLost: it has ended.
        """
        if not await self._gateway.call("/v3/lease/keepalive", {"ID": str(lease)}, _time_to_live):
            raise LeaseLost("the lease has ended")

    async def revoke(self, lease: int) -> None:
        """End a lease, and delete the keys that hang on it; it may have ended already."""
        with suppress(LeaseLost):
            await self._gateway.call("/v3/lease/revoke", {"ID": str(lease)}, _header)

    async def _range(self, request: Json) -> Page:
        return await self._gateway.call("/v3/kv/range", request, _page)


def after(prefix: bytes) -> bytes:
    """The first key that does not begin with ``prefix``, which does not end with 0xff."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def _encode(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def _integer(said: Any) -> int:
    """A number up to 64 bits, as text or not."""
    number = int(said)
    if not 0 <= number < _INTEGER_MAX:
        raise ValueError(said)
    return number


def _lease(said: Json) -> int:
    lease = _integer(said["ID"])
    if not lease:
        raise ValueError("no lease")
    return lease


def _time_to_live(said: Json) -> int:
    return _integer(said.get("TTL", 0))


def _header(said: Json) -> Header:
    header = said["header"]
    numbers = (header["cluster_id"], header.get("raft_term", 0), header["revision"])
    return Header(*map(_integer, numbers))


def _page(said: Json) -> Page:
    return Page(_header(said), list(map(_key_value, said.get("kvs", ()))), bool(said.get("more")))


def _batch(said: Json) -> Batch:
    check_watch(said)
    return Batch(list(map(_change, said.get("events", ()))), not said.get("fragment"))


def _key_value(said: Json) -> KeyValue:
    value = said.get("value", "")
    lease = _integer(said["lease"]) if "lease" in said else 0
    revision = _integer(said["mod_revision"])
    return KeyValue(binascii.a2b_base64(said["key"]), binascii.a2b_base64(value), revision, lease)


def _change(said: Json) -> Change:
    found = _key_value(said["kv"])
    kind = said.get("type", "PUT")
    if kind not in {"PUT", "DELETE"}:
        raise ValueError(kind)
    return Change(found.key, found.value if kind == "PUT" else None, found.revision)


def _nested(swap: Swap) -> Json:
    """A transaction inside the transaction, which succeeds or fails alone."""
    key = _encode(swap.key)
    compare = [{"key": key, "target": "MOD", "mod_revision": str(swap.expected)}]
    if swap.unless:
        compare.append({"key": _encode(swap.unless), "target": "CREATE", "create_revision": "0"})
    if swap.value is None:
        then: Json = {"request_delete_range": {"key": key}}
    else:
        put = {"key": key, "value": _encode(swap.value)}
        then = {"request_put": {**put, "lease": str(swap.lease)} if swap.lease else put}
    otherwise = {"request_range": {"key": key}}
    return {"request_txn": {"compare": compare, "success": [then], "failure": [otherwise]}}


def _swapped(said: Json, revision: int) -> Swapped:
    if said.get("succeeded"):
        return Swapped(ok=True, revision=revision)
    found = said["responses"][0]["response_range"].get("kvs", ())
    return Swapped(ok=False, revision=revision, current=_key_value(found[0]) if found else None)
