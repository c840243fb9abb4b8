"""What the service manager is told: ready, status, watchdog; see sd_notify(3) and sd_watchdog_enabled(3)."""

import os
import time

import sdnotify

from ..errors import ConfigError
from ..text import printable


class Notifier:
    """Tells the service manager how we are; silent where there is none.

    A peer's words may be in a status: a line break in it would begin an assignment of their own.
    """

    def __init__(self) -> None:
        # Made without the variable, it would leave a socket behind for the garbage collector.
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
        """``READY=1``: we do our work from now on."""
        self._status = status
        self._notify(f"READY=1\nSTATUS={printable(status)}")

    def status(self, status: str) -> None:
        """``STATUS=``: a line for humans; sent only if it differs from the last one."""
        if status != self._status:
            self._status = status
            self._notify(f"STATUS={printable(status)}")

    def reloading(self) -> None:
        """``RELOADING=1``; ``MONOTONIC_USEC=`` is what Type=notify-reload wants with it (systemd 253)."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={now}")

    def stopping(self, status: str) -> None:
        """``STOPPING=1``: we are on our way out."""
        self._notify(f"STOPPING=1\nSTATUS={printable(status)}")

    def watchdog(self) -> None:
        """``WATCHDOG=1``: we are alive."""
        self._notify("WATCHDOG=1")


def watchdog_interval() -> float | None:
    """Seconds within which the service manager wants a sign of life, or None if it wants none.

    Raises:
        ConfigError: ``WATCHDOG_USEC`` is not a number.
    """
    usec, pid = os.environ.get("WATCHDOG_USEC"), os.environ.get("WATCHDOG_PID")
    if usec is None or (pid is not None and pid != str(os.getpid())):
        return None
    if not usec.isdecimal() or int(usec) == 0:
        raise ConfigError(f"WATCHDOG_USEC={usec!r} in the environment is not a number of microseconds")
    return int(usec) / 1e6
