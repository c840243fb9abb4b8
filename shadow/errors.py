"""Every error that Shadow raises on purpose, and the exit status each one ends a process with.

The tree tells whose fault it is::

    ShadowError                70  EX_SOFTWARE     ours, unless a subclass says better
    ├── UsageError              2                  the command line (the status argparse uses)
    ├── ConfigError            78  EX_CONFIG       the operator's files and settings; retrying is useless
    │   └── EngineRefused      78                  the fleet's engine does not accept our certificate or login
    ├── ClockError             75  EX_TEMPFAIL     this machine's clock: a certificate is not valid *yet*
    ├── LocalError             71  EX_OSERR        this machine: ports, descriptors, disk
    ├── OutputError            74  EX_IOERR        standard output: closed, or the disk behind it is full
    ├── NotPermitted           77  EX_NOPERM       permission denied to this user
    └── PeerError              76  EX_PROTOCOL     the other end of a connection
        ├── FrameError         76                  it sent something that is no valid frame
        ├── HandshakeError     76                  TLS failed
        │   └── CertificateRefused                 because the peer does not accept our certificate
        ├── IdentityError      76                  TLS worked, but with somebody we must not talk to
        ├── Refused            77  EX_NOPERM       the other end refused, and said why
        ├── Unreachable        69  EX_UNAVAILABLE  nobody there, or no answer in time
        └── Unavailable        69  EX_UNAVAILABLE  the fleet's engine does not answer, or cannot for now
            ├── Compacted      69                  it no longer has the changes, or the state, asked for
            ├── EngineFull     69                  it has no room for what is written
            └── LeaseLost      69                  it no longer has the lease that a key was to hang on

An error that only a bug of ours can cause is no ``ShadowError``: nobody foresees it, nobody catches it, and
it leaves its traceback (status 70). ``LocalProtocolError`` is one of these, the counterpart of
``FrameError``, which is the peer's fault.

Statuses are those of sysexits(3). systemd units name 2 and 78 in ``RestartPreventExitStatus=``: systemd does
not retry what needs an operator. Library code raises; daemons log; only ``shadow.cli.process`` exits.
"""

import errno
import os
import pwd

from .text import printable


def reason(error: OSError) -> str:
    """Why a system call failed, in the C library's words (asyncio puts its own in ``strerror``)."""
    return os.strerror(error.errno) if error.errno is not None else str(error)


def file_reason(error: OSError) -> str:
    """Like ``reason``, for a file: names the user who is denied, often not the one who put the file there."""
    denied = error.errno in {errno.EACCES, errno.EPERM}
    return f"{reason(error)} for {this_user()}" if denied else reason(error)


def this_user() -> str:
    """The user we run as, in words."""
    number = os.geteuid()
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"


def brief(error: BaseException, limit: int = 200) -> str:
    """What went wrong, fit for a log line: an error raised on purpose, or an unexpected one."""
    text = str(error) if isinstance(error, ShadowError) else repr(error)
    return printable(text if len(text) <= limit else text[:limit] + "…")


class ShadowError(Exception):
    """Base of all errors raised on purpose; ``str()`` is one line for a human."""

    exit_status = 70


class UsageError(ShadowError):
    """The command line cannot be understood."""

    exit_status = 2


class ConfigError(ShadowError):
    """A file or a setting is wrong, and stays wrong until somebody changes it."""

    exit_status = 78


class EngineRefused(ConfigError):
    """The fleet's engine refuses us, and will until somebody changes a setting, here or there."""


class ClockError(ShadowError):
    """A certificate is not valid yet: most likely this machine's clock has not been set."""

    exit_status = 75


class LocalError(ShadowError):
    """This machine could not do its part (port taken, no descriptors left, disk full)."""

    exit_status = 71


class OutputError(ShadowError):
    """The requested output cannot be printed; the argument is the reason."""

    exit_status = 74

    def __init__(self, why: str) -> None:
        super().__init__(f"cannot write to standard output: {why}")


class NotPermitted(ShadowError):
    """This user may not do what it asked for."""

    exit_status = 77


class PeerError(ShadowError):
    """The other end of a connection did something wrong or went away."""

    exit_status = 76


class FrameError(PeerError):
    """The peer sent something that is no frame, or a frame that it may not send now."""


class LocalProtocolError(Exception):
    """We were about to send a frame that we may not send now: a bug of ours."""


class HandshakeError(PeerError):
    """The TLS handshake failed."""


class CertificateRefused(HandshakeError):
    """The peer does not accept our certificate, and said why."""


class IdentityError(PeerError):
    """The handshake succeeded, but the certificate is not that of the expected peer."""


class Unreachable(PeerError):
    """Nobody answered, or not in time."""

    exit_status = 69


class Unavailable(PeerError):
    """The fleet's engine does not answer, or not in time, or cannot do it for now."""

    exit_status = 69


class Compacted(Unavailable):
    """The engine no longer has the history from the revision asked for."""


class EngineFull(Unavailable):
    """The engine has no room: it takes nothing that anybody writes until somebody makes some."""


class LeaseLost(Unavailable):
    """The engine no longer has this lease: it has ended, or was never granted."""


class Refused(PeerError):
    """The peer refused.

    Attributes:
        code: machine-readable reason, one of the codes in ``docs/PROTOCOL.md``.
        text: what the peer said, for humans.
        retry_after: minimum number of seconds to stay away; 0 if the peer did not say.
    """

    exit_status = 77

    def __init__(self, code: str, text: str, retry_after: float = 0.0) -> None:
        super().__init__(f"refused ({printable(code)}): {printable(text)}")
        self.code = code
        self.text = text
        self.retry_after = retry_after


def no_thread(what: str, error: Exception) -> LocalError:
    """The error for a thread that cannot be started; Python reports that as a RuntimeError."""
    return LocalError(f"cannot start {what}: {error} (TasksMax= or LimitNOFILE= of the unit, ulimit -u)")


def reason_of(error: OSError) -> str:
    """Our own words for errors that we created ourselves, the C library's for its own."""
    if error.errno in {None, errno.ECONNABORTED} and error.strerror:
        return error.strerror
    return reason(error)
