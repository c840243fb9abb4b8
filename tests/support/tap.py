"""A line that a test can interrupt: TCP on loopback, passed on to somebody."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

from tests.support import DEADLINE


class Tap:
    """Passes on what comes to its port. A context manager.

    Attributes:
        port: where it listens, on 127.0.0.1.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._flows = threading.Event()
        self._flows.set()
        self._over = threading.Event()
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def cut(self) -> None:
        """From now on nothing comes through, and nobody is told."""
        self._flows.clear()

    def mend(self) -> None:
        """What is on its way arrives, and all that follows."""
        self._flows.set()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self.mend()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(DEADLINE)
            assert not thread.is_alive()
        for end in self._ends:
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _address = self._listener.accept()
                self._ends.append(near)
                self._begin(self._connect, near)

    def _connect(self, near: socket.socket) -> None:
        self._flows.wait()
        if self._over.is_set():
            return
        try:
            far = socket.create_connection(("127.0.0.1", self._target), DEADLINE)
        except OSError:
            near.shutdown(socket.SHUT_RDWR)
            return
        far.settimeout(None)
        self._ends.append(far)
        if self._over.is_set():
            far.shutdown(socket.SHUT_RDWR)
        self._begin(self._pass_on, near, far)
        self._pass_on(far, near)

    def _begin(self, work: object, *ends: socket.socket) -> None:
        thread = threading.Thread(target=work, args=ends, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._flows.wait()
                if self._over.is_set():
                    return
                sink.sendall(data)
            self._flows.wait()
            sink.shutdown(socket.SHUT_WR)
