"""The CA's folder: its certificate and key, what it has issued, and whom it has revoked.

It holds ``ca.crt``, ``ca.key``, ``ca.crl`` and ``issued/SERIAL.pem``, a copy of each certificate ever issued:
to list or revoke a certificate we must know it, even when the robot that has it is gone.

Every writer must hold the lock on it (``locking``) from its first look on.
"""

import datetime as dt
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import ConfigError, IdentityError
from ..pki.certificates import (
    check_authority,
    check_pair,
    check_validity,
    common_name,
    load_certificates,
    validity,
)
from ..pki.files import PRIVATE, PUBLIC, NewFile, find_files, is_there, read_owned_file
from ..pki.keys import key_pem, parse_private_key
from ..text import many
from .authority import Pair, issuer_key, key_identifier

CA_CRT = "ca.crt"
CA_KEY = "ca.key"
CA_CRL = "ca.crl"
_INDEX = "issued"


def load_authority(folder: Path, now: dt.datetime) -> Pair:
    """The CA in ``folder``, ready to issue; of several certificates in ``ca.crt`` the first one counts.

    Raises:
        ConfigError: a file is missing or damaged, the key is open to others, the two do not belong
            together, or the CA has expired.
        ClockError: the CA is not valid yet.
    """
    crt_path, key_path = folder / CA_CRT, folder / CA_KEY
    certificate = load_certificates(crt_path, "CA certificate")[0]
    check_authority(certificate, crt_path)
    pem, status = read_owned_file(key_path, "CA key")
    _check_guarded(status, key_path, folder)
    key = parse_private_key(pem, key_path, "CA key")
    check_pair(certificate, crt_path, key, key_path)
    check_validity(certificate, f"CA certificate {crt_path}", now)
    return Pair(certificate, key)


def _check_guarded(status: os.stat_result, path: Path, folder: Path) -> None:
    """Refuse a key that others could have read, or put there (the folder may be writable by a group)."""
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(
            f"CA key {path} is open to others than its owner (mode {stat.S_IMODE(status.st_mode):04o}); "
            f"consider who may have it, then: chmod 600 {path}"
        )
    if status.st_uid not in {os.geteuid(), 0, folder.stat().st_uid}:
        raise ConfigError(f"CA key {path} belongs to another user (uid {status.st_uid})")


def authority_files(folder: Path, authority: Pair) -> list[NewFile]:
    """The files to write for a new CA."""
    return _pair_files(folder / CA_CRT, folder / CA_KEY, authority, folder)


def check_unused(folder: Path) -> None:
    """Make sure that no CA in ``folder`` has issued anything: a new one in its place would destroy it.

    Raises:
        ConfigError: one has, or we cannot tell.
    """
    done = [f"issued {many(len(found), 'certificate')}"] if (found := issued_paths(folder)) else []
    if is_there(folder / CA_CRL, "revocation list"):
        done.append(f"made a list of revoked ones, {CA_CRL}")
    if done:
        raise ConfigError(
            f"a CA in {folder} has {' and '.join(done)}: another in its place would be the end of that; "
            "take another folder"
        )


def leaf_files(ca_folder: Path, folder: Path, basename: str, leaf: Pair) -> list[NewFile]:
    """The files to write for a new leaf: the CA's own copy first, so that none gets out unrecorded.

    Raises:
        ConfigError: ``basename`` would make the leaf overwrite a CA.
    """
    crt_path, key_path = folder / f"{basename}.crt", folder / f"{basename}.key"
    if crt_path.name == CA_CRT:  # a robot may be called `ca`, but --force is not meant for that
        raise ConfigError(f"{crt_path} is the name of the CA's own file: choose another with --basename")
    within = ca_folder if folder == ca_folder else None
    return [index_file(ca_folder, leaf.certificate), *_pair_files(crt_path, key_path, leaf, within)]


def index_path(ca_folder: Path, serial: int) -> Path:
    """Where the CA keeps its copy of the certificate with this serial number."""
    return ca_folder / _INDEX / f"{serial:040x}.pem"


def index_file(ca_folder: Path, certificate: x509.Certificate) -> NewFile:
    """The CA's own copy of a certificate."""
    pem = certificate.public_bytes(Encoding.PEM)
    return NewFile(index_path(ca_folder, certificate.serial_number), pem, PUBLIC, ca_folder)


def _pair_files(crt_path: Path, key_path: Path, pair: Pair, within: Path | None) -> list[NewFile]:
    crt = pair.certificate.public_bytes(Encoding.PEM)
    return [
        NewFile(key_path, key_pem(pair.key), PRIVATE, within),
        NewFile(crt_path, crt, PUBLIC, within),
    ]


def load_issued(folder: Path, known: Sequence[x509.Certificate] = ()) -> list[x509.Certificate]:
    """The certificates that the CA in ``folder`` has issued, oldest first.

    Those of a former CA in the same folder are left out: a CA can only revoke its own.

    Args:
        folder: the CA's.
        known: what was found before; it is not read again, because such a file never changes.

    Raises:
        ConfigError: there is no CA, or a file is damaged.
    """
    authority = load_certificates(folder / CA_CRT, "CA certificate")[0]
    issuer = key_identifier(authority)
    read = {index_path(folder, certificate.serial_number): certificate for certificate in known}
    certificates = [read.get(path) or _load_copy(path) for path in issued_paths(folder)]
    found = [certificate for certificate in certificates if issuer_key(certificate) == issuer]
    return sorted(found, key=_age)


def load_copies(folder: Path) -> list[x509.Certificate]:
    """What CAs in ``folder`` have issued, including former ones, in no particular order.

    Raises:
        ConfigError: a file is damaged.
    """
    return [_load_copy(path) for path in issued_paths(folder)]


def issued_paths(folder: Path) -> list[Path]:
    """The files with the copies of all certificates that CAs in ``folder`` have issued.

    Raises:
        ConfigError: their folder cannot be read.
    """
    return find_files(folder / _INDEX, ".pem", "folder of issued certificates")


def _load_copy(path: Path) -> x509.Certificate:
    certificate = load_certificates(path, "issued certificate")[0]
    try:
        common_name(certificate)  # all of ours have one, and everything relies on it
    except IdentityError as error:
        raise ConfigError(f"issued certificate {path}: {error}") from error
    return certificate


def _age(certificate: x509.Certificate) -> tuple[dt.datetime, str, int]:
    """The sort key: many begin in the same second."""
    return validity(certificate)[0], common_name(certificate), certificate.serial_number
