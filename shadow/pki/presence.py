"""Whether the files that one side needs exist at all: the usual first mistake, so one error names them all.

Under systemd the key is a credential. If the service manager cannot find it, ``SetCredential=`` of our units
makes it pass the word ``NOT_THERE`` instead, so that the daemon starts and can say what is missing.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError

NOT_THERE = b"missing"
"""What our units pass in place of a key that does not exist."""


def check_presence(ca: Path, crt: Path, key: Path, advice: str) -> None:
    """Refuse to start without one of the three files.

    Args:
        ca: file with the CA's certificate.
        crt: file with our certificate.
        key: file with our private key.
        advice: the command that makes the latter two.

    Raises:
        ConfigError: it names all that are missing, and how to make them.
    """
    named = name_missing(ca, crt, key)
    if named:
        raise ConfigError(
            f"{named}: No such file or directory; `shadow-ca init` and {advice} make them where the CA is, "
            "and shadow-tunnel(5), FILES, says how they get here"
        )


def name_missing(ca: Path, crt: Path, key: Path, whose: str = "") -> str:
    """Those of the three files that do not exist, in words; empty if all do.

    Args:
        ca: file with the CA's certificate.
        crt: file with our certificate.
        key: file with our private key.
        whose: goes in front of what each is, such as ``"engine's "``.
    """
    missing = [
        *_missing(f"{whose}CA certificate", ca),
        *_missing(f"{whose}certificate", crt),
        *_missing_key(f"{whose}private key", crt, key),
    ]
    *first, last = missing or [""]
    return f"{', '.join(first)} and {last}" if first else last


def _missing(what: str, path: Path) -> Iterator[str]:
    if not _is_there(path):
        yield f"{what} {path}"


def _missing_key(what: str, crt: Path, key: Path) -> Iterator[str]:
    handed_over = os.environ.get("CREDENTIALS_DIRECTORY")  # systemd.exec(5)
    if handed_over is None or key.parent != Path(handed_over):
        yield from _missing(what, key)
    elif not _is_there(key) or _begins(key).strip() == NOT_THERE:
        # Nobody tells us where systemd looked: beside the certificate, unless a drop-in says otherwise.
        yield f"{what} {crt.with_suffix('.key')} (or what LoadCredential= of the unit names)"


def _begins(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(NOT_THERE) + 1)
    except OSError:
        return b""


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass  # it is there; the code that reads it will say what is wrong
    return True
