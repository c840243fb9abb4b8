"""Issuing certificates: for whom, where their files go, and what they may replace."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from ..errors import ConfigError, IdentityError
from ..names import check_robot_name
from ..pki.certificates import Purpose, common_name, has_purpose, load_certificates
from ..pki.files import NewFile, is_there, read_file, write_files
from ..pki.keys import key_bytes, load_private_key
from ..text import did_you_mean, many, shorten
from .authority import Pair
from .folder import index_path, leaf_files, load_copies, load_issued


@dataclass(frozen=True, slots=True)
class Leaf:
    """A new certificate with its key, and where they go.

    Attributes:
        pair: the certificate and its key.
        base: the path of both files, without ``.crt`` and ``.key``.
    """

    pair: Pair
    base: Path

    @property
    def crt(self) -> Path:
        """The certificate's file."""
        return self.base.with_name(f"{self.base.name}.crt")

    @property
    def key(self) -> Path:
        """The key's file."""
        return self.base.with_name(f"{self.base.name}.key")


def read_names(path: Path) -> list[str]:
    """The names of robots in a file, one a line; empty lines and those that begin with ``#`` are ignored.

    Raises:
        ConfigError: the file cannot be read, or holds a bad name, a name twice, or none.
    """
    what = f"list of names {path}"
    try:
        text = read_file(path, "list of names").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what}: not a text in UTF-8") from error
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        try:
            check_robot_name(name)
        except ConfigError as error:
            raise ConfigError(f"{what}, line {number}: {error}") from error
        if name in found:
            raise ConfigError(f"{what}, line {number}: {name} is in line {found[name]} already")
        found[name] = number
    if not found:
        raise ConfigError(f"{what}: it holds no name")
    return list(found)


def hand_out(folder: Path, leaves: Sequence[Leaf], *, renew: bool, force: bool) -> list[NewFile]:
    """Write certificates and keys, and the CA's copies: all of them, or none.

    Args:
        folder: the CA's; the caller holds the lock on it.
        leaves: what to write.
        renew: replace what this CA has issued to the same owner before, which must exist, and nothing else.
        force: replace whatever is there.

    Returns:
        What was written.

    Raises:
        ConfigError: something is in the way, or there is nothing to renew.
        LocalError: the machine failed (disk full).
    """
    if not force:
        for leaf in leaves:
            _check_place(folder, leaf, renew=renew)
    if renew:  # a certificate that is in its place, and was checked above, is on record
        _check_issued(folder, [leaf for leaf in leaves if force or not is_there(leaf.crt, "certificate")])
    files = [
        file for leaf in leaves for file in leaf_files(folder, leaf.base.parent, leaf.base.name, leaf.pair)
    ]
    write_files(files, force=renew or force)
    return files


def _check_place(folder: Path, leaf: Leaf, *, renew: bool) -> None:
    there = [path for path in (leaf.key, leaf.crt) if is_there(path, "file")]
    if not there:
        return
    why = _why_not_replaced(folder, leaf)
    if not renew:
        hint = "" if why else " (--renew puts a new key and certificate in its place)"
        raise ConfigError(f"{there[0]} is already there; nothing was written{hint}")
    if why:
        raise ConfigError(f"{there[0]} is not replaced, and nothing was written: {why}")


def _check_issued(folder: Path, leaves: Sequence[Leaf]) -> None:
    """Refuse to renew for an owner that has nothing: the name may be misspelled, and other steps follow."""
    if not leaves:
        return
    known = {_owner(one) for one in load_copies(folder)}
    never = [owner for leaf in leaves if (owner := _owner(leaf.pair.certificate)) not in known]
    if not never:
        return
    purpose, name = never[0]
    who = shorten(name) if name else "a server"
    if len(never) > 1:
        who += f", nor to {many(len(never) - 1, 'other')}"
    near = did_you_mean(name, sorted(other for kind, other in known if kind is purpose)) if name else ""
    new = {Purpose.SERVER: "one", Purpose.ROBOT: "a new robot", Purpose.PEER: "a new peer"}[purpose]
    raise ConfigError(
        f"nothing was ever issued to {who}, and nothing was written{near or ';'} "
        f"without --renew {new} gets its first certificate"
    )


def _why_not_replaced(folder: Path, leaf: Leaf) -> str | None:
    """Why the existing files are not what this CA has made for the same owner; None if they are.

    Key and certificate need not belong together: a crash may have replaced only one of them.
    """
    try:
        present = _present(folder, leaf)
        if not is_there(leaf.key, "private key"):
            return None
        key = load_private_key(leaf.key, "private key").public_key()
        if present is not None and key_bytes(present.public_key()) == key_bytes(key):
            return None
        made = [one for one in load_issued(folder) if _owner(one) == _owner(leaf.pair.certificate)]
        if any(key_bytes(one.public_key()) == key_bytes(key) for one in made):
            return None
    except (ConfigError, IdentityError) as error:
        return str(error)
    return f"{leaf.key} belongs to no certificate that this CA has made for the same name"


def _present(folder: Path, leaf: Leaf) -> x509.Certificate | None:
    """The certificate in the place of a new one.

    Raises:
        ConfigError: it is not this CA's, or it is another owner's.
    """
    if not is_there(leaf.crt, "certificate"):
        return None
    present = load_certificates(leaf.crt, "certificate")[0]
    copy = index_path(folder, present.serial_number)
    if not is_there(copy, "issued certificate") or present not in load_certificates(copy, "certificate"):
        raise ConfigError(f"{leaf.crt} was not made by this CA")
    if _owner(present) != _owner(leaf.pair.certificate):
        raise ConfigError(f"{leaf.crt} is the certificate of {shorten(common_name(present))}")
    return present


def purpose_of(certificate: x509.Certificate) -> Purpose:
    """What a certificate that we have made is for."""
    others = (Purpose.PEER, Purpose.SERVER)
    return next((one for one in others if has_purpose(certificate, one)), Purpose.ROBOT)


def _owner(certificate: x509.Certificate) -> tuple[Purpose, str]:
    """The owner; a server counts as the same even if its names have changed."""
    purpose = purpose_of(certificate)
    return purpose, "" if purpose is Purpose.SERVER else common_name(certificate)
