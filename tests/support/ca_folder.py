"""A CA's folder, and leaves in it, by the means of ``shadow.ca``."""

import datetime as dt
from pathlib import Path

from shadow.ca import authority as authorities
from shadow.ca import folder as folders
from shadow.pki.files import write_files

NOW = dt.datetime.now(dt.UTC)
CA = authorities.create_authority("Test CA", 3650, NOW)


def folder_with_ca(folder: Path, authority: authorities.Pair = CA) -> Path:
    write_files(folders.authority_files(folder, authority), force=True)
    return folder


def write_leaf(folder: Path, basename: str, leaf: authorities.Pair) -> Path:
    write_files(folders.leaf_files(folder, folder, basename, leaf), force=False)
    return folder / f"{basename}.crt"
