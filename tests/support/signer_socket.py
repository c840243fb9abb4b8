"""What systemd does for shadow-ca-signer.socket: a process for each who connects, on its standard input."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from shadow.pki.certificates import Credentials, Purpose, load_credentials
from shadow.pki.keys import new_key
from shadow.pki.request import make_request
from shadow.wire.frames import Sign
from tests.support import CHECKOUT, DEADLINE, Authority, now

PROGRAM = (sys.executable, "-m", "shadow.cli.signer")


def ca_folder(authority: Authority, folder: Path) -> Path:
    """The CA as ``shadow-ca`` keeps it: ``ca.crt`` and ``ca.key``."""
    folder.mkdir()
    (folder / "ca.crt").write_bytes(authority.ca.read_bytes())
    key = folder / "ca.key"
    key.touch(0o600)
    key.write_bytes(authority.key_pem)
    return folder


class SignerSocket:
    """Listens until the block ends.

    Attributes:
        command: what is run for each who connects; a test may change it.
        statuses: what the processes ended with.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.path = path
        self.folder = folder
        self.command = [*PROGRAM, f"--dir={folder}"]
        self.statuses: list[int] = []
        self._log = path.with_suffix(".log")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _address = self._listener.accept()
                with connection, self._log.open("ab") as log:
                    done = subprocess.run(
                        self.command, stdin=connection.fileno(), stdout=log, stderr=log, cwd=CHECKOUT,
                        check=False, env={**os.environ, "PYTHONUNBUFFERED": "1"}, timeout=DEADLINE,
                    )  # fmt: skip
                self.statuses.append(done.returncode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(DEADLINE)
        if error is not None:
            sys.stderr.write(f"--- the signer ---\n{self.log}")


AGED = (-20.0, 10.0)  # days: past two thirds of its life


def credentials(own: Authority, *, days: tuple[float, float] = AGED, name: str = "011") -> Credentials:
    """A robot's, as it has them."""
    crt, key = own.issue(f"{name}{days}", name, Purpose.ROBOT, days=days)
    return load_credentials(own.ca, crt, key, Purpose.ROBOT, now())


def request(own: Authority, *, days: tuple[float, float] = AGED, name: str = "011") -> Sign:
    """What a robot with such a certificate asks for."""
    return make_request(name, new_key(), credentials(own, days=days, name=name))
