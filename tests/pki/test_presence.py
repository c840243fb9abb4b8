"""Files that are not there: all named at once, and a key under systemd by where it belongs."""

from pathlib import Path

import pytest

from shadow.errors import ConfigError
from shadow.pki.presence import NOT_THERE, check_presence


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    made = (tmp_path / "ca.crt", tmp_path / "011.crt", tmp_path / "011.key")
    for path in made:
        path.write_text("whatever")
    return made


def refusal(files: tuple[Path, Path, Path]) -> str:
    with pytest.raises(ConfigError) as caught:
        check_presence(*files, "`shadow-ca robot NAME`")
    return str(caught.value)


def test_all_are_there(files: tuple[Path, Path, Path]) -> None:
    check_presence(*files, "")


def test_one_is_not(files: tuple[Path, Path, Path]) -> None:
    files[1].unlink()
    assert refusal(files) == (
        f"certificate {files[1]}: No such file or directory; `shadow-ca init` and `shadow-ca robot NAME` "
        "make them where the CA is, and shadow-tunnel(5), FILES, says how they get here"
    )


def test_none_is_there(files: tuple[Path, Path, Path]) -> None:
    for path in files:
        path.unlink()
    ca, crt, key = files
    assert refusal(files).startswith(
        f"CA certificate {ca}, certificate {crt} and private key {key}: No such file or directory; "
    )


def test_a_folder_is_not_there(files: tuple[Path, Path, Path]) -> None:
    assert refusal((files[0] / "deeper", *files[1:])).startswith(
        f"CA certificate {files[0] / 'deeper'}: No such"
    )


@pytest.mark.parametrize("found", [None, NOT_THERE, NOT_THERE + b"\n"])
def test_a_key_that_systemd_did_not_find(
    files: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: bytes | None
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    key = credentials / "client.key"
    if found is not None:
        key.write_bytes(found)
    assert refusal((*files[:2], key)).startswith(
        f"private key {files[2]} (or what LoadCredential= of the unit names): No such file or directory; "
    )
    key.write_bytes(b"a key")
    check_presence(*files[:2], key, "")


def test_the_word_for_no_key_means_nothing_in_other_files(
    files: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    files[2].write_bytes(NOT_THERE)
    check_presence(*files, "")
