"""A robot's certificates: the one that its operator gave it, and those that it has renewed since.

``--crt`` and ``--key`` name the operator's pair, which is never touched. The state folder holds the following
files, each written in one step, so that whenever the machine stops there is a usable pair:

``pair.pem``
    the latest pair that the server has accepted: key and certificate in one file.
``next.key``
    the key that the robot requests a certificate for. It is stored before the first request: a repeated
    request for the same key gets the same certificate.
``next.crt``
    the certificate for it, until the server has accepted it once.

Of the operator's pair and the accepted one, the newer is used, so new files from the operator win. The next
one is used if neither is good any more.
"""

import contextlib
import datetime as dt
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from .. import events
from ..errors import ConfigError, IdentityError, LocalError, PeerError, ShadowError, file_reason
from ..pki.certificates import (
    Credentials,
    Files,
    Purpose,
    common_name,
    load_certificates,
    load_credentials,
    parse_certificate,
    validity,
)
from ..pki.files import PRIVATE, PUBLIC, NewFile, write_files
from ..pki.grace import judged_at
from ..pki.keys import PrivateKey, key_bytes, key_pem, load_private_key, new_key

_Clock = Callable[[Path], dt.datetime]  # the time to judge the certificate of a file by

_DUE = 2 / 3  # of a certificate's lifetime
_SPREAD = 1 / 30  # of it, so that robots set up on the same day do not come in the same hour


@dataclass(frozen=True, slots=True)
class LoadedPair:
    """Credentials, and the file that the certificate is in."""

    credentials: Credentials
    crt: Path

    @property
    def certificate(self) -> x509.Certificate:
        """Our own."""
        return self.credentials.chain[0]

    @property
    def due(self) -> dt.datetime:
        """When to request the next one."""
        start, end = validity(self.certificate)
        share = int(self.credentials.fingerprint[:8], 16) / 2**32
        return start + (end - start) * (_DUE + _SPREAD * share)


class CertificateStore:
    """The pairs of one robot.

    Attributes:
        current: the one in use; None until one was good.
        next: the one that the server has yet to accept, if any.
    """

    def __init__(self, files: Files, state: Path | None, robot: str) -> None:
        """``load`` comes next; without a ``state`` folder there is only the operator's pair."""
        self.current: LoadedPair | None = None
        self.next: LoadedPair | None = None
        self._files = files
        self._state = state
        self._robot = robot
        self._said: set[str] = set()

    @property
    def renews(self) -> bool:
        """True if there is a place for renewed certificates."""
        return self._state is not None

    def load(self, now: dt.datetime, *, late: bool = False) -> LoadedPair:
        """Read everything again, and choose what to use from now on.

        Args:
            now: the present, aware.
            late: if none is good, accept one that has expired but may still be renewed.

        Raises:
            ConfigError, ClockError: none of the pairs is good; the message is about the operator's. The
                previous choice stays.
        """
        try:
            return self._choose(lambda _crt: now)
        except ConfigError as error:
            if late:
                with contextlib.suppress(ShadowError):
                    return self._choose(functools.partial(_late, now))
            raise error

    def _choose(self, at: _Clock) -> LoadedPair:
        found = [self._stored("pair.pem", "pair.pem", at)]
        fault: ShadowError | None = None
        try:
            found.append(self._load(self._files.crt, self._files.key, at))
        except ShadowError as error:
            fault = error
        following = self._stored("next.crt", "next.key", at)
        good = [pair for pair in found if pair] or [pair for pair in [following] if pair]
        if not good:
            raise fault or ConfigError("no certificate")
        self.current = max(good, key=lambda pair: validity(pair.certificate)[0])
        used = self.current.certificate
        self.next = following if following and following.certificate != used else None
        return self.current

    def _stored(self, crt: str, key: str, at: _Clock) -> LoadedPair | None:
        """A pair in the state folder, if there is a usable one."""
        if self._state is None or not (self._state / crt).exists():
            return None
        try:
            return self._load(self._state / crt, self._state / key, at)
        except ShadowError as error:
            text = f"robot {self._robot}: a renewed certificate cannot be used: {error}"
            if text not in self._said:
                self._said.add(text)
                events.log(events.RenewalFailed(robot=self._robot, code="unusable"), logging.WARNING, text)
            return None

    def _load(self, crt: Path, key: Path, at: _Clock) -> LoadedPair:
        credentials = load_credentials(self._files.ca, crt, key, Purpose.ROBOT, at(crt))
        try:
            name = common_name(credentials.chain[0])
        except IdentityError as error:  # our own file, no peer's
            raise ConfigError(f"{crt}: {error}") from error
        if name != self._robot:
            raise ConfigError(f"{crt} is for robot {name!r}, not for {self._robot!r} (--robot)")
        return LoadedPair(credentials, crt)

    # Renewing

    def is_due(self, now: dt.datetime) -> bool:
        """True if it is time for another certificate."""
        return self.next is not None or (self.current is not None and now >= self.current.due)

    def key_to_ask_for(self) -> ec.EllipticCurvePrivateKey:
        """The next key; it is on disk when this returns.

        Raises:
            LocalError: it cannot be stored.
        """
        path = self._path("next.key")
        with contextlib.suppress(ConfigError):  # there is none yet, or it is damaged
            found = load_private_key(path, "next private key")
            if isinstance(found, ec.EllipticCurvePrivateKey):
                return found
        key = new_key()
        self._write(NewFile(path, key_pem(key), PRIVATE))
        return key

    def add(self, der: bytes, now: dt.datetime) -> LoadedPair:
        """Store what the signer has sent: it becomes ``next``.

        Raises:
            PeerError: it is not for the key that we asked for, or no peer of ours would accept it.
            LocalError: it cannot be stored.
        """
        certificate, key = parse_certificate(der), self.key_to_ask_for()
        if key_bytes(certificate.public_key()) != key_bytes(key.public_key()):
            raise IdentityError("the new certificate is for another key than was asked for")
        path = self._path("next.crt")
        self._write(NewFile(path, certificate.public_bytes(Encoding.PEM), PUBLIC))
        try:
            self.next = self._load(path, self._path("next.key"), lambda _crt: now)
        except ShadowError as error:
            self._remove("next.crt")
            raise PeerError(f"the new certificate cannot be used: {error}") from error
        return self.next

    def accepted(self, pair: LoadedPair) -> None:
        """The server has accepted a pair: if it is the next one, it replaces the current one.

        Raises:
            LocalError: it cannot be stored; it is used nevertheless, and remains the next one on disk.
        """
        if self._state is None or pair.crt != self._path("next.crt"):
            return
        self.current, self.next = pair, None
        pem = _pem(pair.credentials.key, pair.credentials.chain)
        self._write(NewFile(self._path("pair.pem"), pem, PRIVATE))
        self._remove("next.crt")
        self._remove("next.key")
        self.current = LoadedPair(pair.credentials, self._path("pair.pem"))

    def drop_next(self) -> None:
        """The server does not accept the next certificate: request one again, for the same key."""
        self.next = None
        self._remove("next.crt")

    def _path(self, name: str) -> Path:
        if self._state is None:
            raise LocalError("there is no place for renewed certificates (--state)")
        return self._state / name

    @staticmethod
    def _write(file: NewFile) -> None:
        try:
            write_files([file], force=True)
        except ConfigError as error:
            raise LocalError(str(error)) from error

    def _remove(self, name: str) -> None:
        path = self._path(name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise LocalError(f"cannot remove {path}: {file_reason(error)}") from error


def _late(now: dt.datetime, crt: Path) -> dt.datetime:
    return judged_at(load_certificates(crt, "certificate")[0], now)


def _pem(key: PrivateKey, chain: list[x509.Certificate]) -> bytes:
    return b"".join([key_pem(key), *(certificate.public_bytes(Encoding.PEM) for certificate in chain)])
