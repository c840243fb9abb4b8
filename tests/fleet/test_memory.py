"""Lists of revoked certificates that outlive the daemon: whole, and nobody else's."""

import asyncio
import stat
from pathlib import Path

import pytest

from shadow.errors import ConfigError, LocalError
from shadow.fleet import memory as module
from shadow.fleet.memory import Memory, recall
from shadow.pki.crl import LIST_MAX, RevocationList
from tests.support import Authority
from tests.support.lists import id_of_ca, listed


def keep(memory: Memory, *lists: RevocationList) -> None:
    async def run() -> None:
        for one in lists:
            await memory.keep(one)

    asyncio.run(run())


def numbers(folder: Path | None, *authorities: Authority) -> list[int]:
    return [one.number for one in recall(folder, [one.certificate for one in authorities])]


def path(folder: Path, own: Authority) -> Path:
    return folder / f"crl-{id_of_ca(own)}"


def test_what_was_kept_is_there_again(own: Authority, tmp_path: Path) -> None:
    folder, other = tmp_path / "state", Authority(tmp_path / "other", "Other CA")
    keep(Memory(folder), listed(own, 1), listed(other, 7), listed(own, 2, 5))
    assert numbers(folder, own, other) == [2, 7]
    assert numbers(folder, other) == [7], "not of a CA that is not trusted any more"
    (again,) = recall(folder, [own.certificate])
    assert set(again.revoked) == {5}
    assert again.der == path(folder, own).read_bytes()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(one.name for one in folder.iterdir()) == sorted(
        path(folder, each).name for each in (own, other)
    )


def test_without_a_folder_nothing_is_kept(own: Authority, tmp_path: Path) -> None:
    keep(Memory(None), listed(own, 1))
    assert numbers(None, own) == []
    assert numbers(tmp_path / "missing", own) == []


def test_a_link_in_the_place_of_the_file_is_replaced(own: Authority, tmp_path: Path) -> None:
    """Even if what it leads to is right: and that stays as it is."""
    one, target = listed(own, 1), tmp_path / "target"
    for content in (b"precious", one.der):
        target.write_bytes(content)
        path(tmp_path, own).unlink(missing_ok=True)
        path(tmp_path, own).symlink_to(target)
        keep(Memory(tmp_path), one)
        assert not path(tmp_path, own).is_symlink()
        assert path(tmp_path, own).read_bytes() == one.der
        assert target.read_bytes() == content


def test_it_is_written_once(own: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by the daemon after this one."""
    written = []
    monkeypatch.setattr(module, "write_files", lambda files, **_how: written.append(files[0].data))
    one, memory = listed(own, 1), Memory(tmp_path)
    keep(memory, one, one)
    assert written == [one.der]
    path(tmp_path, own).write_bytes(one.der)
    keep(Memory(tmp_path), one)
    assert written == [one.der]


def test_a_folder_that_cannot_be_written_to(own: Authority, tmp_path: Path) -> None:
    """Said once: who is asked again does not wait for a disk that is broken."""
    (tmp_path / "file").touch()
    memory = Memory(tmp_path / "file")
    with pytest.raises((ConfigError, LocalError), match=r"cannot write .*file: Not a directory"):
        keep(memory, listed(own, 1))
    keep(memory, listed(own, 1))


def too_large(file: Path, _own: Authority) -> None:
    with file.open("wb") as made:
        made.truncate(LIST_MAX + 1)


def damaged(file: Path, own: Authority) -> None:
    file.write_bytes(listed(own, 1).der[:-1])


def of_another_ca(file: Path, own: Authority) -> None:
    file.write_bytes(listed(Authority(own.folder / "forger"), 1).der)


def a_link_to_nowhere(file: Path, _own: Authority) -> None:
    file.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (too_large, "larger than 16384 KiB"),
        (damaged, "damaged: not a revocation list"),
        (of_another_ca, "was not signed by a CA that we trust"),
        (a_link_to_nowhere, "No such file or directory"),
    ],
)
def test_what_is_not_as_it_was_written(own: Authority, tmp_path: Path, how, why: str) -> None:  # type: ignore[no-untyped-def]
    how(path(tmp_path, own), own)
    with pytest.raises(ConfigError, match=rf"crl-[0-9a-f]{{64}}\S* .*{why}.*; if you remove it, ") as caught:
        numbers(tmp_path, own)
    assert "\n" not in str(caught.value)
