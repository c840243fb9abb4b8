"""The one door out of the process.

Every command's ``main`` is ``return run(body)`` in effect: errors raised on purpose become one line on
standard error and their exit status; anything else is a bug and shows its traceback (status 70). Run by
systemd the same goes to the journal as an event, so that it has a priority and an explanation.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable

from .. import journal
from ..errors import ShadowError
from ..journal import Event

EX_SOFTWARE = 70
EX_SIGINT = 130  # 128 + SIGINT, as a shell reports it


def run(program: str, body: Callable[[], int | None]) -> int:
    """Call ``body``; return the exit status it returns, or that of the error it raises."""
    try:
        status = body() or 0
        sys.stdout.flush()
    except ShadowError as error:
        _complain(f"{program}: {error}")
        return error.exit_status
    except KeyboardInterrupt:
        return EX_SIGINT
    except BrokenPipeError:
        # Whoever read our output has left (`shadow-ca list | head`): Python would complain at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:  # noqa: BLE001 - the last resort: a bug must leave its trace and a status
        _complain(traceback.format_exc().rstrip())
        return EX_SOFTWARE
    return status


def _complain(text: str) -> None:
    if journal.is_journal(sys.stderr, os.environ.get("JOURNAL_STREAM", "")):
        journal.setup()
        journal.log(Event.FAILED, logging.ERROR, text)
    else:
        print(text, file=sys.stderr)
