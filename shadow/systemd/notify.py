"""What we tell the service manager: ready, status, watchdog; see sd_notify(3), sd_watchdog_enabled(3)."""

import os
import time

import sdnotify

from ..errors import ConfigError
from ..text import printable


class Notifier:
    """Tells the service manager our state; does nothing where there is none.

    A status may contain a peer's words; a line break in them would start an assignment of the peer's own.
    """

    def __init__(self) -> None:
        # Without the variable, the object would leave a socket behind for the garbage collector.
        self._notifier = sdnotify.SystemdNotifier() if "NOTIFY_SOCKET" in os.environ else None
        self._status = ""

    def _notify(self, state: str) -> None:
        if self._notifier is not None:
            self._notifier.notify(state)

    def close(self) -> None:
        """Close the connection to the service manager."""
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()

    def ready(self, status: str) -> None:
        """``READY=1``: we are at work from now on."""
        self._status = status
        self._notify(f"READY=1\nSTATUS={printable(status)}")

    def status(self, status: str) -> None:
        """``STATUS=``: a line for humans; sent only if it differs from the last one."""
        if status != self._status:
            self._status = status
            self._notify(f"STATUS={printable(status)}")

    def reloading(self) -> None:
        """``RELOADING=1``; Type=notify-reload (systemd 253) requires ``MONOTONIC_USEC=`` with it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={now}")

    def stopping(self, status: str) -> None:
        """``STOPPING=1``: we are shutting down."""
        self._notify(f"STOPPING=1\nSTATUS={printable(status)}")

    def watchdog(self) -> None:
        """``WATCHDOG=1``: we are alive."""
        self._notify("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Seconds within which the service manager expects a sign of life, or None if it expects none.

    Raises:
        ConfigError: ``WATCHDOG_USEC`` is not a number.
    """
    usec, pid = os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID")
    if usec is None or (pid is not None and pid != str(os.getpid())):
        return None
    if not usec.isdecimal() or int(usec) == 0:
        raise ConfigError(f"WATCHDOG_USEC={usec!r} in the environment is not a number of microseconds")
    return int(usec) / 1e6
