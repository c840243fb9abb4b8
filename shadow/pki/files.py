"""Files that must be complete or absent: reading within bounds, writing all or nothing.

A file is first written under a name nobody looks for, flushed to the disk, and then given its real name
in one step. A reader sees the old file or the new one, never a part; and a key has its mode from the moment
it exists.
"""

import contextlib
import errno
import itertools
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, LocalError, ShadowError, file_reason

READ_MAX = 2**20  # bytes; a bundle of a hundred certificates has some 200 KiB
_FLUSHED_AT_ONCE = 4
PUBLIC = 0o644  # certificates; the umask may remove bits
PRIVATE = 0o600  # keys
FOLDER = 0o700  # folders made here hold keys

# What the operator must fix; anything else (disk full, input/output error) is the machine's fault.
_OPERATORS = frozenset(
    {
        errno.EACCES,
        errno.EEXIST,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file to be written.

    Attributes:
        path: where; missing parent folders are created, for the owner alone.
        data: all of it.
        mode: permission bits, ``PUBLIC`` or ``PRIVATE``.
        within: a folder around it, if what root writes there must belong to the owner of that folder; on the
            way from there to the file, no link is followed.
    """

    path: Path
    data: bytes
    mode: int
    within: Path | None = None


@dataclass(frozen=True, slots=True)
class _Folder:
    """An open folder, by descriptor, and the one whose owner gets what root writes there."""

    descriptor: int
    within: int | None


@dataclass(frozen=True, slots=True)
class _Staged:
    """A file written under a temporary name, in the same open folder as its real name."""

    path: Path
    folder: int
    temporary: str


def read_file(path: Path, what: str, limit: int = READ_MAX) -> bytes:
    """All bytes of a regular file.

    Args:
        path: the file; symbolic links are followed.
        what: what the file is to the reader of an error message, e.g. ``CA certificate``.
        limit: bytes that it may have at most.

    Raises:
        ConfigError: missing, unreadable, not a regular file, or too large.
    """
    return read_owned_file(path, what, limit)[0]


def read_owned_file(path: Path, what: str, limit: int = READ_MAX) -> tuple[bytes, os.stat_result]:
    """Like ``read_file``, with the status of the very file that was read.

    Raises:
        ConfigError: as for ``read_file``.
    """
    try:
        # O_NONBLOCK: opening a FIFO would otherwise wait for a writer, for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise ConfigError(f"{what} {path}: not a regular file")
            # A folder passes this check because read(2) then reports it in better words.
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(limit + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"{what} {path}: {file_reason(error)}") from error
    if len(data) > limit:
        raise ConfigError(f"{what} {path}: larger than {limit // 1024} KiB")
    return data, status


def is_there(path: Path, what: str) -> bool:
    """Whether there is anything at ``path``, even a dangling link.

    Unlike ``Path.exists``, this does not take what cannot be seen for missing.

    Raises:
        ConfigError: we cannot tell.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ConfigError(f"{what} {path}: {file_reason(error)}") from error
    return True


def find_files(folder: Path, suffix: str, what: str) -> list[Path]:
    """The files in ``folder`` whose names end with ``suffix``, sorted; none if there is no folder.

    Raises:
        ConfigError: the folder cannot be read (``Path.glob`` would take it for an empty one).
    """
    try:
        return sorted(path for path in folder.iterdir() if path.name.endswith(suffix))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{what} {folder}: {file_reason(error)}") from error


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make ``folder``, for the owner alone, unless it is there; if the block fails, remove what was made.

    Raises:
        ConfigError, LocalError: it cannot be made.
    """
    with ExitStack() as undo:
        _make_folders(folder / "it", undo)
        yield
        undo.pop_all()


def write_files(files: Sequence[NewFile], *, force: bool) -> None:
    """Write all of ``files``, or none: if this raises, what was there before is there again.

    Only a process killed halfway leaves hidden files behind (``.NAME.….new``), private ones unreadable to
    others; they do not disturb the next attempt. Symbolic links at a target are never followed, nor are those
    between a folder that ``within`` names and the target.

    Args:
        files: what to write, in this order; no path may come twice.
        force: replace what is already there.

    Raises:
        ConfigError: a file is already there and ``force`` is not set, or a folder cannot be written to, or
            is a link.
        LocalError: the machine failed (disk full).
    """
    for file in files:
        _check_target(file.path, force=force)
    # Left in reverse: names are taken back first, then temporary files, then the folders they were in.
    with ExitStack() as opened, ExitStack() as made, ExitStack() as leftovers, ExitStack() as undo:
        folders: dict[tuple[Path, Path | None], _Folder] = {}
        staged = []
        for file in files:
            place = file.path.parent, file.within
            if place not in folders:
                folders[place] = _open_folder(*place, opened, made)
            staged.append(_stage(file, folders[place], leftovers))
        _flush(staged)
        for one in staged:
            if force:
                _replace(one, leftovers, undo)
            else:
                _name(one, undo)
        for (path, _within), folder in folders.items():
            with _explained(path):
                os.fsync(folder.descriptor)
        undo.pop_all()
        made.pop_all()


def _check_target(path: Path, *, force: bool) -> None:
    """Refuse early, before anything has been done; ``os.link`` decides the race with other processes."""
    with _explained(path):
        if not os.path.lexists(path):
            return
        if path.is_dir() and not path.is_symlink():
            raise ConfigError(f"{path}: {os.strerror(errno.EISDIR)}")
    if not force:
        raise _already_there(path)


def _already_there(path: Path) -> ConfigError:
    return ConfigError(f"{path} is already there; nothing was written")


def _make_folders(path: Path, undo: ExitStack) -> None:
    with _explained(path):
        missing = list(itertools.takewhile(lambda folder: not folder.exists(), path.parents))
    for folder in reversed(missing):
        with _explained(folder):
            folder.mkdir(FOLDER)
            undo.callback(_quietly, folder.rmdir)


def _open_folder(path: Path, within: Path | None, opened: ExitStack, made: ExitStack) -> _Folder:
    """Open a folder, and make it if it is missing.

    From ``within`` on it goes from one open folder to the next, and follows no link: with a link, even one
    made between check and write, the owner of that folder could have root write elsewhere, and own what
    root wrote.
    """
    top = path if within is None else within
    _make_folders(top / "it", made)
    with _explained(top):
        outer = descriptor = opened.enter_context(_opened(top, os.O_DIRECTORY))
    for folder in _between(top, path):
        with _explained(folder):
            new = _made_in(descriptor, folder.name, made)
            try:
                inner = _opened(folder.name, os.O_DIRECTORY | os.O_NOFOLLOW, descriptor)
                descriptor = opened.enter_context(inner)
            except OSError:
                if _is_link(folder.name, descriptor):
                    why = f"a symbolic link, which is not followed in the folder {top}"
                    raise ConfigError(f"{folder} is {why}; nothing was written") from None
                raise
            if new:
                _hand_over(descriptor, outer)
    return _Folder(descriptor, None if within is None else outer)


def _between(top: Path, path: Path) -> list[Path]:
    """The folders on the way down from ``top`` to ``path``, including ``path``."""
    return [folder for folder in reversed([path, *path.parents]) if top in folder.parents]


def _made_in(descriptor: int, name: str, undo: ExitStack) -> bool:
    """Make a folder in an open one, unless something of that name exists."""
    try:
        os.mkdir(name, FOLDER, dir_fd=descriptor)
    except FileExistsError:
        return False
    undo.callback(_quietly, lambda: os.rmdir(name, dir_fd=descriptor))
    return True


def _is_link(name: str, descriptor: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _hand_over(descriptor: int, within: int | None) -> None:
    """Give what root has made to the owner of the folder around it, who has to work with it later."""
    if within is not None and os.geteuid() == 0 and (owner := os.fstat(within)).st_uid != 0:
        with contextlib.suppress(PermissionError):  # root of a user namespace, or without that capability
            os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _stage(file: NewFile, folder: _Folder, leftovers: ExitStack) -> _Staged:
    """Write the bytes under a temporary name."""
    staged = _Staged(file.path, folder.descriptor, _temporary(file.path, "new"))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with _explained(file.path):
        # Registered before it exists: an interrupt between the two lines must not leave it behind.
        leftovers.callback(_quietly, lambda: os.unlink(staged.temporary, dir_fd=staged.folder))
        descriptor = os.open(staged.temporary, flags, file.mode, dir_fd=staged.folder)
        with os.fdopen(descriptor, "wb") as stream:
            _hand_over(stream.fileno(), folder.within)
            stream.write(file.data)
    return staged


def _flush(staged: Sequence[_Staged]) -> None:
    """Flush staged files to the disk, some of many at once: a disk takes them together as fast as one."""
    if len(staged) <= _FLUSHED_AT_ONCE:
        list(map(_sync, staged))
    else:
        with ThreadPoolExecutor(_FLUSHED_AT_ONCE) as pool:
            list(pool.map(_sync, staged))


def _name(staged: _Staged, undo: ExitStack) -> None:
    """Give a staged file its name, unless that is taken: link(2) decides and acts in one step."""
    folder, name = staged.folder, staged.path.name
    try:
        with _explained(staged.path):
            os.link(staged.temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except ConfigError as error:
        if isinstance(error.__cause__, FileExistsError):
            raise _already_there(staged.path) from error
        raise
    undo.callback(_quietly, lambda: os.unlink(name, dir_fd=folder))


def _replace(staged: _Staged, leftovers: ExitStack, undo: ExitStack) -> None:
    """Put a staged file in the place of another, which keeps a second name until everything is done."""
    folder, name = staged.folder, staged.path.name
    backup = _temporary(staged.path, "old")
    with _explained(staged.path):
        try:
            leftovers.callback(_quietly, lambda: os.unlink(backup, dir_fd=folder))
            os.link(name, backup, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            undo.callback(_quietly, lambda: os.unlink(name, dir_fd=folder))
        else:
            undo.callback(_quietly, lambda: os.replace(backup, name, src_dir_fd=folder, dst_dir_fd=folder))
        os.replace(staged.temporary, name, src_dir_fd=folder, dst_dir_fd=folder)


def _temporary(path: Path, kind: str) -> str:
    # Shortened, because NAME itself may be as long as the file system allows.
    return f".{path.name[:64]}.{secrets.token_hex(8)}.{kind}"


def _sync(staged: _Staged) -> None:
    """Make what was written survive a power cut."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK  # somebody may have put a link there, or a FIFO
    with _explained(staged.path), _opened(staged.temporary, flags, staged.folder) as descriptor:
        os.fsync(descriptor)


@contextlib.contextmanager
def _opened(path: Path | str, flags: int, folder: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _quietly(action: Callable[[], object]) -> None:
    with contextlib.suppress(OSError):
        action()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the system's error into one line that names the file; its type says whose fault it is."""
    try:
        yield
    except OSError as error:
        kind: type[ShadowError] = ConfigError if error.errno in _OPERATORS else LocalError
        raise kind(f"cannot write {path}: {file_reason(error)}") from error
