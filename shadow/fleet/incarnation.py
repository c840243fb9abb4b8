"""Which life of a server this is (``keys.Live``), and how the next daemon learns that it goes on."""

import os
import secrets

from ..errors import LocalError
from ..systemd.fdstore import Store

_STORED = "inc"  # the name of its descriptor
_INC_MAX = 64  # bytes


def begin() -> str:
    """A life that nobody has led before."""
    return secrets.token_hex(16)


def leave(store: Store, inc: str) -> None:
    """Tell the next daemon that it is the same server: its entries count, and no robot has to move."""
    descriptor = os.memfd_create(_STORED, os.MFD_CLOEXEC)
    try:
        os.write(descriptor, inc.encode())
        store.add(_STORED, descriptor)
    except (OSError, LocalError):
        pass  # then it is another one
    finally:
        os.close(descriptor)


def take(store: Store) -> str:
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
