"""Giving out certificates: what is in the way, and what may be replaced."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest

from shadow.ca import authority as authorities
from shadow.ca import folder as folders
from shadow.ca.issuing import Leaf, hand_out, read_names
from shadow.errors import ConfigError
from shadow.pki import keys
from shadow.pki.certificates import check_pair, load_certificates
from shadow.pki.files import write_files
from shadow.pki.keys import load_private_key

NOW = dt.datetime.now(dt.UTC)
CA = authorities.create_authority("Test CA", 3650, NOW)
OTHER = authorities.create_authority("Test CA", 3650, NOW)


def robot(base: Path, name: str = "011", authority: authorities.Pair = CA) -> Leaf:
    return Leaf(authorities.issue_robot(authority, name, 30, NOW), base)


def server(base: Path, host: str = "a.example") -> Leaf:
    return Leaf(authorities.issue_server(CA, [host], 30, NOW), base)


@pytest.fixture
def there(tmp_path: Path) -> Leaf:
    """Robot 011 has a certificate of the CA in a folder."""
    write_files(folders.authority_files(tmp_path, CA), force=False)
    leaf = robot(tmp_path / "011")
    hand_out(tmp_path, [leaf], renew=False, force=False)
    return leaf


def state(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("missing", [(), ("key",), ("crt",), ("crt", "key")])
def test_the_same_robots_is_replaced(there: Leaf, tmp_path: Path, missing: tuple[str, ...]) -> None:
    for end in missing:
        (tmp_path / f"011.{end}").unlink()
    new = robot(there.base)
    hand_out(tmp_path, [new], renew=True, force=False)
    assert load_certificates(new.crt, "it") == [new.pair.certificate]
    check_pair(new.pair.certificate, new.crt, load_private_key(new.key, "it"), new.key)


def test_a_servers_of_another_name_is_replaced(there: Leaf, tmp_path: Path) -> None:
    del there
    hand_out(tmp_path, [server(tmp_path / "server")], renew=False, force=False)
    hand_out(tmp_path, [server(tmp_path / "server", "b.example")], renew=True, force=False)


def _foreign(leaf: Leaf) -> None:
    folder = leaf.base.parent
    other = robot(leaf.base, authority=OTHER)
    write_files(folders.leaf_files(folder / "other", folder, "011", other.pair), force=True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda leaf: (leaf.crt.unlink(), leaf.key.write_bytes(keys.key_pem(keys.new_key()))),
            r"/011\.key is not replaced, and nothing was written: .*/011\.key belongs to no certificate",
        ),
        (_foreign, r"/011\.crt was not made by this CA"),
        (lambda leaf: leaf.key.write_text("rubbish"), r"/011\.key: it holds no private key"),
        (lambda leaf: leaf.crt.write_text("rubbish"), r"/011\.crt: it holds no certificate"),
        (
            lambda leaf: leaf.key.write_bytes(keys.key_pem(keys.new_key())),
            r"/011\.key belongs to no certificate that this CA has made for the same name",
        ),
        (lambda leaf: (leaf.key.unlink(), leaf.key.mkdir()), r"/011\.key: Is a directory"),
    ],
)
def test_nothing_else_is_replaced(
    there: Leaf, tmp_path: Path, change: Callable[[Leaf], object], why: str
) -> None:
    change(there)
    before = state(tmp_path)
    for renew in (False, True):
        with pytest.raises(ConfigError, match=why if renew else "is already there; nothing was written$"):
            hand_out(tmp_path, [robot(there.base)], renew=renew, force=False)
        assert state(tmp_path) == before


def test_half_of_a_pair_is_replaced(there: Leaf, tmp_path: Path) -> None:
    """A crash has left the new key with the old certificate, or the other way round."""
    first = state(tmp_path)
    hand_out(tmp_path, [robot(there.base)], renew=True, force=False)
    for path in (there.key, there.crt):
        path.write_bytes(first[path])
        hand_out(tmp_path, [robot(there.base)], renew=True, force=False)
        first = state(tmp_path) if path == there.key else first
    hand_out(tmp_path, [robot(tmp_path / "012", "012")], renew=False, force=False)
    there.key.write_bytes((tmp_path / "012.key").read_bytes())
    with pytest.raises(ConfigError, match="belongs to no certificate that this CA has made"):
        hand_out(tmp_path, [robot(there.base)], renew=True, force=False)


def test_another_owners_is_not_replaced(there: Leaf, tmp_path: Path) -> None:
    for new in (robot(there.base, "012"), server(there.base, "b.example")):
        with pytest.raises(ConfigError, match=r"/011\.crt is the certificate of '011'"):
            hand_out(tmp_path, [new], renew=True, force=False)
    hand_out(tmp_path, [robot(there.base, "012")], renew=False, force=True)


def peer(base: Path, name: str = "a") -> Leaf:
    return Leaf(authorities.issue_peer(CA, name, 30, NOW), base)


def test_a_peer_is_an_owner_of_its_own(there: Leaf, tmp_path: Path) -> None:
    """Of all that have its usages or its name in part, none replaces it, and it replaces none."""
    base = tmp_path / "peer"
    hand_out(tmp_path, [peer(base)], renew=False, force=False)
    hand_out(tmp_path, [peer(base)], renew=True, force=False)
    for other in (peer(base, "b"), server(base, "a"), robot(base, "a")):
        with pytest.raises(ConfigError, match=r"/peer\.crt is the certificate of 'peer:a'"):
            hand_out(tmp_path, [other], renew=True, force=False)
    hand_out(tmp_path, [server(tmp_path / "server", "a")], renew=False, force=False)
    for place, owner in ((tmp_path / "server", "a"), (there.base, "011")):
        with pytest.raises(ConfigError, match=f"is the certificate of '{owner}'"):
            hand_out(tmp_path, [peer(place)], renew=True, force=False)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"001\n../x\n", r", line 2: robot name '\.\./x' is not allowed"),
        (b"001\n002,003\n", r", line 2: robot name '002,003' is not allowed"),
        (b"001\n\n001\n", ", line 3: 001 is in line 1 already"),
        (b"# 001\n", ": it holds no name"),
        (b"\xff\xfe0\x000\x00", ": not a text in UTF-8"),
    ],
)
def test_bad_lists_of_names(tmp_path: Path, text: bytes, why: str) -> None:
    path = tmp_path / "names"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=f"^list of names {path}{why}"):
        read_names(path)


def test_a_list_of_names(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_bytes(b"\xef\xbb\xbf002\r\n#003\n\n\t001  ")
    assert read_names(path) == ["002", "001"]
    with pytest.raises(ConfigError, match=r"list of names .*: No such file"):
        read_names(tmp_path / "none")
