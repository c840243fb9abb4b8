"""The newest lists of revoked certificates that this server has seen, on its disk.

So a server that starts while the engine is away still knows them, wherever they have come from.
"""

import asyncio
import contextlib
import datetime as dt
import threading
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from ..errors import ConfigError, ShadowError, no_thread
from ..pki.crl import LIST_MAX, RevocationList, read_list
from ..pki.files import PUBLIC, NewFile, is_there, read_file, write_files
from ..pki.keys import key_bytes
from .lists import id_of

_WHAT = "revocation list"


def recall(folder: Path | None, ca: Sequence[x509.Certificate]) -> list[RevocationList]:
    """The lists of these CAs; what else there may be is none of ours.

    Args:
        folder: where they are; None: nowhere.
        ca: whom we trust.

    Raises:
        ConfigError: one cannot be read, or is not what it should be: as with the configured list, to go on
            without it would let in again whom it names.
    """
    if folder is None:
        return []
    found = []
    for authority in ca:
        path = _path(folder, key_bytes(authority.public_key()))
        if is_there(path, _WHAT):
            try:
                data = read_file(path, _WHAT, LIST_MAX)
                found.append(read_list(data, f"{_WHAT} {path}", authority))
            except ConfigError as error:
                text = f"{error}; if you remove it, the server takes it from the fleet's engine"
                raise ConfigError(text) from error
    return found


class Memory:
    """Keeps them.

    Writing takes as long as the disk likes, so there is a thread for each list that is being written. It is
    daemonic: a disk that hangs keeps nothing else from ending.
    """

    def __init__(self, folder: Path | None) -> None:
        """Keep nothing yet; ``folder``: see ``recall``."""
        self._folder = folder
        self._kept: dict[bytes, tuple[int, dt.datetime]] = {}

    async def keep(self, listed: RevocationList) -> None:
        """Keep a list in the place of the one before it, unless it is there already.

        Raises:
            ConfigError, LocalError: that did not work.
        """
        if self._folder is None or self._kept.get(listed.key) == listed.place:
            return
        self._kept[listed.key] = listed.place  # once: if it does not work, it will not work the next time
        loop = asyncio.get_running_loop()
        done: asyncio.Future[ShadowError | None] = loop.create_future()

        def settle(error: ShadowError | None) -> None:
            if not done.done():
                done.set_result(error)

        def work(path: Path) -> None:
            error = _write(path, listed.der)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is waiting any more
                loop.call_soon_threadsafe(settle, error)

        path = _path(self._folder, listed.key)
        try:
            threading.Thread(target=work, args=(path,), name="lists", daemon=True).start()
        except RuntimeError as why:
            raise no_thread("the thread that writes it", why) from why
        error = await done
        if error is not None:
            raise error


def _path(folder: Path, key: bytes) -> Path:
    return folder / f"crl-{id_of(key)}"


def _write(path: Path, der: bytes) -> ShadowError | None:
    """Write a file, unless it is as it should be; return what is wrong."""
    try:
        if not _is_file_with(path, der):
            write_files([NewFile(path, der, PUBLIC)], force=True)
    except ShadowError as error:
        return error
    return None


def _is_file_with(path: Path, der: bytes) -> bool:
    try:
        return not path.is_symlink() and path.read_bytes() == der
    except OSError:
        return False
