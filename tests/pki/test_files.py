"""Files: whole or not there, private from their first moment, and nothing left behind."""

import errno
import os
import resource
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

import pytest

from shadow.errors import ConfigError, LocalError
from shadow.pki.files import PRIVATE, PUBLIC, READ_MAX, NewFile, read_file, read_owned_file, write_files

CHECKOUT = Path(__file__).parents[2]
NOBODY = 65534


@contextmanager
def umask(mask: int) -> Iterator[None]:
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


@contextmanager
def watching(look: Callable[[str, str], None]) -> Iterator[None]:
    """Call ``look(event, name)`` around every C function called, e.g. ``("c_return", "fsync")``."""

    def profile(_frame: FrameType, event: str, argument: object) -> None:
        if event in {"c_call", "c_return"}:
            sys.setprofile(None)
            look(event, str(getattr(argument, "__name__", "")))
            sys.setprofile(profile)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(before)


def tree(folder: Path) -> list[str]:
    """Everything below ``folder``, hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def run_as_nobody(code: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code without root's powers; what it needs must be imported before it drops them."""
    drop = f"import os\nif os.getuid() == 0: os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    head = "import sys\nfrom pathlib import Path\nfrom shadow.cli import ca\nfrom shadow.pki.files import *\n"
    return subprocess.run(
        [sys.executable, "-c", head + drop + code, *map(str, arguments)],
        cwd=CHECKOUT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can get to; ``tmp_path`` is for its owner alone."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


# --- reading ---


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * READ_MAX)
    assert read_file(path, "thing") == b"x" * READ_MAX
    data, status = read_owned_file(path, "thing")
    assert (len(data), status.st_uid, status.st_ino) == (READ_MAX, os.getuid(), path.stat().st_ino)


def test_read_follows_links(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"data")
    (tmp_path / "link").symlink_to("f")
    assert read_file(tmp_path / "link", "thing") == b"data"


def test_read_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read_file(Path("ca.crt"), "CA certificate")
    assert str(caught.value) == "CA certificate ca.crt: No such file or directory"


@pytest.mark.parametrize(("uid", "name"), [(0, "root"), (3999999999, "3999999999")])
def test_who_may_not_read_is_said(monkeypatch: pytest.MonkeyPatch, uid: int, name: str) -> None:
    """Often it is not who put the file there."""

    def refuse(*_arguments: object) -> int:
        raise PermissionError(errno.EACCES, "")

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    with pytest.raises(ConfigError) as caught:
        read_file(Path("ca.crt"), "CA certificate")
    assert str(caught.value) == f"CA certificate ca.crt: Permission denied for user {name}"


def test_read_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^thing {tmp_path}: Is a directory$"):
        read_file(tmp_path, "thing")


def test_read_leaves_no_descriptor_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(ConfigError):
            read_file(path, "thing")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_read_fifo_does_not_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="fifo: not a regular file"):
        read_file(tmp_path / "fifo", "thing")


def test_read_too_large(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * (READ_MAX + 1))
    with pytest.raises(ConfigError, match="f: larger than 1024 KiB"):
        read_file(tmp_path / "f", "thing")


def test_read_unreadable(open_folder: Path) -> None:
    path = open_folder / "secret"
    path.write_bytes(b"")
    path.chmod(0)
    done = run_as_nobody("read_file(Path(sys.argv[1]), 'private key')", path)
    assert f"ConfigError: private key {path}: Permission denied" in done.stderr


# --- writing ---


def test_write_content_and_modes(tmp_path: Path) -> None:
    with umask(0):
        write_files(
            [NewFile(tmp_path / "new" / "k", b"key", PRIVATE), NewFile(tmp_path / "c", b"crt", PUBLIC)],
            force=False,
        )
    assert tree(tmp_path) == ["c", "new", "new/k"]
    assert (tmp_path / "c").read_bytes() == b"crt"
    assert (tmp_path / "new/k").read_bytes() == b"key"
    assert [mode(tmp_path / name) for name in ("c", "new/k", "new")] == [0o644, 0o600, 0o700]
    assert (tmp_path / "c").stat().st_nlink == 1


def test_the_umask_may_take_but_not_give(tmp_path: Path) -> None:
    with umask(0o077):
        write_files([NewFile(tmp_path / "c", b"crt", PUBLIC)], force=False)
    assert mode(tmp_path / "c") == 0o600


@pytest.mark.parametrize("force", [False, True])
def test_private_and_whole_at_every_moment(tmp_path: Path, *, force: bool) -> None:
    path = tmp_path / "k"
    if force:
        path.write_bytes(b"old")
        path.chmod(0o600)
    modes: set[int] = set()
    contents: set[bytes | None] = set()

    def look(_event: str, _name: str) -> None:
        modes.update(mode(found) for found in tmp_path.iterdir())
        contents.add(path.read_bytes() if path.exists() else None)

    with umask(0), watching(look):
        write_files([NewFile(path, b"new" * 1000, PRIVATE)], force=force)
    assert modes == {0o600}
    assert contents == {b"old" if force else None, b"new" * 1000}


@pytest.mark.parametrize("force", [False, True])
def test_on_the_disk_before_it_has_its_name(tmp_path: Path, *, force: bool) -> None:
    calls: list[str] = []

    def look(event: str, name: str) -> None:
        if event == "c_call" and name in {"fsync", "link", "replace"}:
            calls.append(name)

    with watching(look):
        write_files([NewFile(tmp_path / name, b"x", PUBLIC) for name in "ab"], force=force)
    named = ["link", "replace"] * 2 if force else ["link"] * 2
    assert calls == ["fsync", "fsync", *named, "fsync"]  # the last one is the folder's


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"mine")
    files = [NewFile(tmp_path / name, b"new", PUBLIC) for name in ("sub/a", "b")]
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/b is already there; "):
        write_files(files, force=False)
    assert tree(tmp_path) == ["b"]
    assert (tmp_path / "b").read_bytes() == b"mine"


def test_dangling_link_is_something_too(tmp_path: Path) -> None:
    """And it is found at the start, before anything has been written."""
    (tmp_path / "a").symlink_to("elsewhere")
    calls: set[str] = set()
    with watching(lambda _event, name: calls.add(name)), pytest.raises(ConfigError, match="already there"):
        write_files([NewFile(tmp_path / name, b"new", PUBLIC) for name in "ba"], force=False)
    assert "fsync" not in calls
    assert tree(tmp_path) == ["a"]


def test_force_replaces_a_link_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "a").symlink_to("precious")
    write_files([NewFile(tmp_path / "a", b"new", PUBLIC)], force=True)
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert not (tmp_path / "a").is_symlink()
    assert tree(tmp_path) == ["a", "precious"]


@pytest.mark.parametrize("link", ["top/sub", "top/sub/deep"])
@pytest.mark.parametrize("force", [False, True])
def test_no_link_is_followed_on_the_way_from_the_folder_around(
    tmp_path: Path, link: str, *, force: bool
) -> None:
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / link).parent.mkdir(parents=True)
    (tmp_path / link).symlink_to(tmp_path / "elsewhere")
    top = tmp_path / "top"
    files = [NewFile(top / "new/a", b"x", PUBLIC, top), NewFile(top / "sub/deep/a", b"x", PUBLIC, top)]
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match=rf"{tmp_path / link} is a symbolic link, .*; nothing was written"):
        write_files(files, force=force)
    assert tree(tmp_path) == before


def test_the_folder_around_may_itself_be_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "top").symlink_to("real")
    top = tmp_path / "top"
    write_files(
        [NewFile(top / "sub/a", b"x", PUBLIC, top), NewFile(top / "b", b"x", PUBLIC, top)], force=False
    )
    assert (tmp_path / "real/sub/a").read_bytes() == (tmp_path / "real/b").read_bytes() == b"x"


def test_a_link_made_after_the_look_leads_nowhere(tmp_path: Path) -> None:
    """What is written stays in the folder that was opened, whatever has its name by then."""
    top, elsewhere = tmp_path / "top", tmp_path / "elsewhere"
    elsewhere.mkdir()

    def look(event: str, name: str) -> None:
        if (event, name) == ("c_call", "fsync") and not (top / "moved").exists():
            (top / "sub").rename(top / "moved")
            (top / "sub").symlink_to(elsewhere)

    with watching(look):
        write_files([NewFile(top / "sub/a", b"x", PUBLIC, top)], force=False)
    assert (tree(elsewhere), tree(top / "moved")) == ([], ["a"])


@pytest.mark.parametrize("fails", [False, True])
def test_no_descriptor_is_left(tmp_path: Path, *, fails: bool) -> None:
    top = tmp_path / "top"
    names = ["sub/a", "other/a", *(["x" * 256] if fails else [])]
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(ConfigError) if fails else nullcontext():
        write_files([NewFile(top / name, b"x", PUBLIC, top) for name in names], force=False)
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_force_replaces(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o666)
    write_files([NewFile(tmp_path / name, b"new", PRIVATE) for name in "ab"], force=True)
    assert tree(tmp_path) == ["a", "b"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"new"
    assert mode(tmp_path / "a") == 0o600


def test_force_spares_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ConfigError, match="a: Is a directory"):
        write_files([NewFile(tmp_path / "a", b"new", PUBLIC)], force=True)
    assert tree(tmp_path) == ["a"]


def test_somebody_else_was_faster(tmp_path: Path) -> None:
    """The check at the start cannot see what appears later; the link does."""
    rival = tmp_path / "b"

    def look(event: str, name: str) -> None:
        if (event, name) == ("c_return", "fsync") and not rival.exists():
            rival.write_bytes(b"theirs")

    with watching(look), pytest.raises(ConfigError, match="b is already there"):
        write_files([NewFile(tmp_path / name, b"ours", PUBLIC) for name in ("sub/a", "b")], force=False)
    assert tree(tmp_path) == ["b"]
    assert rival.read_bytes() == b"theirs"


def test_force_puts_the_old_back_when_a_later_file_fails(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "link").symlink_to("a")
    targets = [*(tmp_path / name for name in ("a", "b", "link")), tmp_path / ("x" * 256)]
    files = [NewFile(path, b"new", PUBLIC) for path in targets]
    with pytest.raises(ConfigError, match=os.strerror(errno.ENAMETOOLONG)):
        write_files(files, force=True)
    assert tree(tmp_path) == ["a", "link"]
    assert (tmp_path / "a").read_bytes() == b"old"
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("force", [False, True])
def test_interrupted(tmp_path: Path, *, force: bool) -> None:
    (tmp_path / "a").write_bytes(b"old")
    target = tmp_path / ("a" if force else "new/b")
    seen: list[str] = []

    def look(event: str, name: str) -> None:
        # The second fsync is the folder's: the new file has its name by then.
        if event == "c_call" and name == "fsync":
            seen.append(name)
            if len(seen) == 2:
                raise KeyboardInterrupt

    with watching(look), pytest.raises(KeyboardInterrupt):
        write_files([NewFile(target, b"new", PUBLIC)], force=force)
    assert tree(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for target in ("file/a", "file/sub/a"):
        files = [NewFile(tmp_path / "first/a", b"x", PUBLIC), NewFile(tmp_path / target, b"x", PUBLIC)]
        with pytest.raises(ConfigError, match=f"cannot write .*: {os.strerror(errno.ENOTDIR)}"):
            write_files(files, force=False)
        assert tree(tmp_path) == ["file"]


def test_folder_not_writable(open_folder: Path) -> None:
    code = "write_files([NewFile(Path(sys.argv[1]) / 'sub' / 'a', b'x', PUBLIC)], force=False)"
    done = run_as_nobody(code, open_folder)
    assert f"ConfigError: cannot write {open_folder}/sub: Permission denied" in done.stderr
    assert tree(open_folder) == []


def test_folder_not_searchable(open_folder: Path) -> None:
    (open_folder / "closed").mkdir(0o700)
    code = "write_files([NewFile(Path(sys.argv[1]) / 'closed' / 'sub' / 'a', b'x', PUBLIC)], force=False)"
    if os.getuid() == 0:
        done = run_as_nobody(code, open_folder)
        assert "ConfigError: cannot write" in done.stderr
        assert "Permission denied" in done.stderr


def test_disk_full(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(LocalError, match=rf"cannot write {tmp_path}/b: File too large"):
            write_files(
                [NewFile(tmp_path / "a", b"x", PUBLIC), NewFile(tmp_path / "b", b"x" * 2000, PUBLIC)],
                force=False,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tree(tmp_path) == []


def test_of_many_each_is_on_the_disk_before_the_first_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In threads, which a profile of this one does not see."""
    flushed: list[bool] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append((tmp_path / "00").exists())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_files([NewFile(tmp_path / f"{number:02}", b"x", PUBLIC) for number in range(40)], force=False)
    assert flushed == [False] * 40 + [True]  # the last one is the folder


def test_one_of_many_that_cannot_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        del descriptor
        raise OSError(errno.EIO, "")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(LocalError, match=r"cannot write .*: Input/output error"):
        write_files([NewFile(tmp_path / f"{number:02}", b"x", PUBLIC) for number in range(40)], force=False)
    assert list(tmp_path.iterdir()) == []
