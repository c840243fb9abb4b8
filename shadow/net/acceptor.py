"""Accepting connections, with patience where descriptors or memory run out."""

import asyncio
import errno
import select
import socket
from collections.abc import Callable

_ACCEPTS_AT_ONCE = 64
_PAUSE = 1.0  # seconds until accepting is tried again when descriptors have run out
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Accepts connections on a listening socket as long as there are descriptors for them.

    When they run out, or are needed elsewhere, it pauses for a second and tries again: waiting connections
    stay in the backlog, and open ones are not disturbed.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_accept: Callable[[socket.socket], None],
        on_exhausted: Callable[[OSError], None],
        may_accept: Callable[[], bool] = lambda: True,
    ) -> None:
        """Accept from now on.

        Args:
            sock: the listening socket.
            on_accept: gets each connection.
            on_exhausted: called when there was no descriptor or no memory left.
            may_accept: asked before each.
        """
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._may_accept = may_accept
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._on_accept = on_accept
        self._on_exhausted = on_exhausted
        self._held = self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._acceptable)

    def hold(self) -> None:
        """Stop accepting until ``resume``."""
        self._held = True
        self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        """Accept again."""
        self._held = False
        if self._timer is None and not self._closed:
            self._loop.add_reader(self._sock, self._acceptable)

    def close(self) -> None:
        """Stop for good; the listening socket stays open."""
        self._closed = True
        self._loop.remove_reader(self._sock)
        if self._timer is not None:
            self._timer.cancel()

    def _acceptable(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            if self._held or self._closed:
                return
            if not self._may_accept():
                self._pause()
                return
            try:
                connection, _address = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # Other errors belong to the connection that was to be accepted (accept(2)): try again.
                if error.errno in _EXHAUSTED:
                    self._pause()
                    self._on_exhausted(error)
                return
            connection.setblocking(False)
            self._on_accept(connection)
            if not self._poll.poll(0):  # `may_accept` is for somebody who is there
                return

    def _pause(self) -> None:
        self._loop.remove_reader(self._sock)
        self._timer = self._loop.call_later(_PAUSE, self._unpause)

    def _unpause(self) -> None:
        self._timer = None
        if not self._held:
            self.resume()
