"""How a server joins its fleet: what has to be right before it starts, and what it keeps over a restart."""

import datetime as dt
import os
import secrets
from collections.abc import Iterator

from ..daemon.config import ServerConfig
from ..daemon.membership import Membership
from ..errors import LocalError
from ..pki.certificates import load_certificates
from ..pki.expiry import Term
from ..server.robot import SOFTWARE
from ..server.server import Extra, Server
from ..systemd.fdstore import Store
from .credentials import Identity, load_identity
from .etcd import Engine
from .fleet import Fleet
from .keys import Keys, Live

_STORED = "inc"  # the name of its descriptor
_INC_MAX = 64  # bytes


class Member(Extra):
    """A server's membership: checked when it is made, in force from ``open`` on."""

    def __init__(self, membership: Membership, config: ServerConfig) -> None:
        """Check everything that can be checked without the engine.

        Raises:
            ConfigError: a file is wrong.
            ClockError: our certificate is not valid yet.
        """
        self._membership = membership
        self._config = config
        self._identity = self._load()
        self._fleet: Fleet | None = None
        self._store: Store | None = None

    def _load(self) -> Identity:
        robots = load_certificates(self._config.ca, "CA certificate")
        files, login = self._membership.files, self._membership.login
        return load_identity(files, login, robots, dt.datetime.now(dt.UTC))

    def open(self, server: Server) -> None:
        """Claim the robots that are here already, and whatever comes from now on."""
        membership, store = self._membership, server.durable.store
        before = _take_inc(store)
        # If none of its sessions goes on, its robots are as good as new: others need not believe in them.
        inc = before if before and server.resumed["sessions"] else secrets.token_hex(16)
        live = Live(inc, None, self._config.advertise, draining=False, software=SOFTWARE)
        engine = Engine(membership.engine, self._identity)
        self._store = store
        self._fleet = Fleet(server, membership.server, Keys(membership.fleet), engine, live)

    def reload(self) -> None:
        """Read our files again.

        Raises:
            ShadowError: one is broken; the old ones stay in use.
        """
        self._identity = self._load()
        if self._fleet is not None:
            self._fleet.use(self._identity)

    @property
    def terms(self) -> list[Term]:
        """What of our files expires."""
        return list(self._identity.terms)

    @property
    def status(self) -> str:
        """A few words for ``systemctl status``."""
        return "" if self._fleet is None else self._fleet.status

    def describe(self) -> Iterator[str]:
        """Lines for debugging."""
        if self._fleet is not None:
            yield from self._fleet.describe()

    async def close(self) -> None:
        """Leave the fleet to the next daemon of this server, or for good."""
        if self._fleet is not None and self._store is not None:
            await self._fleet.close(leaving=not self._store.limit)
            if self._store.limit:
                _leave_inc(self._store, self._fleet.inc)


def _leave_inc(store: Store, inc: str) -> None:
    """Tell the next daemon that it is the same server: its entries count, and no robot has to move."""
    descriptor = os.memfd_create(_STORED, os.MFD_CLOEXEC)
    try:
        os.write(descriptor, inc.encode())
        store.add(_STORED, descriptor)
    except (OSError, LocalError):
        pass  # then it is another one
    finally:
        os.close(descriptor)


def _take_inc(store: Store) -> str:
    """What the daemon before this one has left; empty if nothing of use."""
    inc = ""
    for name, descriptor in store.take(lambda name: name == _STORED):
        store.count(1)
        try:
            inc = os.pread(descriptor, _INC_MAX, 0).decode("ascii")
        except (OSError, UnicodeDecodeError):
            pass
        finally:
            os.close(descriptor)
            store.remove(name)
    return inc if inc.isalnum() else ""
