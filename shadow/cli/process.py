"""The one exit of every process.

Every command's ``main`` is in effect ``return run(body)``: errors raised on purpose become one line on
standard error and their exit status; anything else is a bug and shows its traceback (status 70). Under
systemd the same goes to the journal as an event, so that it has a priority and an explanation.
"""

import contextlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from .. import events
from ..errors import LocalError, OutputError, ShadowError, reason
from ..events import Event
from ..options import unknown_variables
from ..systemd import journal

_OUTPUT = 1  # the descriptor
EX_SOFTWARE = 70
EX_SIGINT = 130  # 128 + SIGINT, as a shell reports it
_FAILED = events.Failed()


def run(program: str, body: Callable[[], int | None]) -> int:
    """Call ``body``; return the exit status it returns, or that of the error it raises."""
    output, status = _mend_streams(), EX_SOFTWARE
    for text in unknown_variables(os.environ):
        _complain(f"{program}: {text}", events.UnknownSetting(), logging.WARNING)
    try:
        status = _status(program, body)
        sys.stdout.flush()
    except Exception:  # noqa: BLE001 - the last resort: a bug must leave its trace and a status
        if output.failure is None:
            _complain(traceback.format_exc().rstrip())
            status = EX_SOFTWARE
    # The code that printed may have ignored the error, as argparse does.
    return status if output.failure is None else _not_printed(program, output.failure)


def _status(program: str, body: Callable[[], int | None]) -> int:
    try:
        return body() or 0
    except ShadowError as error:
        _complain(f"{program}: {error}")
        return error.exit_status
    except KeyboardInterrupt:
        return EX_SIGINT
    except SystemExit as left:  # argparse has shown a help or a version
        return left.code if isinstance(left.code, int) else 0


def _not_printed(program: str, failure: OSError) -> int:
    # Python tries again at exit, and would complain: send what is left to /dev/null.
    os.dup2(os.open(os.devnull, os.O_WRONLY), _OUTPUT)
    if isinstance(failure, BrokenPipeError):  # the reader of our output has left (`shadow-ca list | head`)
        return 0
    error = OutputError(reason(failure))
    _complain(f"{program}: {error}")
    return error.exit_status


class _Output(io.FileIO):
    """Standard output, which remembers that it could not be written to.

    Attributes:
        failure: why.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        """See ``io``."""
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def _mend_streams() -> _Output:
    """Make sure that all three standard streams exist, even if they were closed, and accept every character.

    A free descriptor would become some socket's, and output would go there. A closed standard output becomes
    one that cannot be written to, so printing fails. Without standard error nobody could be told, so messages
    go nowhere.
    """
    modes = (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_WRONLY, "w"))
    for number, (name, access, mode) in enumerate(modes):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, access)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for good
    output = _Output(_OUTPUT, "w", closefd=False)
    out = sys.stdout
    # Only if nobody has replaced it, as tests do. If unbuffered (python -u), the file itself is the buffer.
    if isinstance(out, io.TextIOWrapper) and isinstance(getattr(out.buffer, "raw", out.buffer), io.FileIO):
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(output),
            encoding=out.encoding,
            line_buffering=out.line_buffering or out.write_through,
        )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return output


def _complain(text: str, event: Event = _FAILED, level: int = logging.ERROR) -> None:
    if journal.is_journal(sys.stderr, os.environ.get("JOURNAL_STREAM", "")):
        with contextlib.suppress(LocalError):  # no thread for that: then print it as it is
            journal.setup()
            events.log(event, level, text)
            return
    with contextlib.suppress(OSError):  # there is nobody left to tell
        print(text, file=sys.stderr, flush=True)
