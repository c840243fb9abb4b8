"""Several machines on one: network namespaces, each with a line of its own to a router. For root only.

The thread that has made the router stays on it until the end, and reaches all; what it starts ``inside`` a
machine is there. Namespaces exist for as long as something is in them or has them open: nothing is left.
"""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

_NEWNET = 0x40000000  # CLONE_NEWNET, see namespaces(7)
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "cannot change the network namespace")


def _here() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def run(*words: str, passed: tuple[int, ...] = ()) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, pass_fds=passed)


class Net:
    """The router and its lines. A context manager.

    Attributes:
        lossy: how the lines are, as ``tc-netem(8)`` wants it; empty if this kernel has no netem.
    """

    def __init__(self, lossy: str) -> None:
        self.lossy = lossy
        self._names: list[str] = []
        self._open: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._outside = _here()
        _check(_libc.unshare(_NEWNET))
        self._router = _here()
        try:
            self._make_router()
        except BaseException:
            self.__exit__(None, None, None)  # or whatever comes next would be here, without a line
            raise
        return self

    def _make_router(self) -> None:
        run("ip", "link", "set", "lo", "up")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        try:
            run("tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "0ms")
            run("tc", "qdisc", "del", "dev", "lo", "root")
        except subprocess.CalledProcessError:
            self.lossy = ""

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        _check(_libc.setns(self._outside, _NEWNET))
        for descriptor in (self._outside, self._router, *self._open.values()):
            os.close(descriptor)

    def add(self, name: str) -> str:
        """Another machine; its address."""
        self._names.append(name)
        _check(_libc.unshare(_NEWNET))
        there = self._open[name] = _here()
        _check(_libc.setns(self._router, _NEWNET))
        peer = ("peer", "name", "eth0", "netns", f"/proc/self/fd/{there}")
        run("ip", "link", "add", name, "type", "veth", *peer, passed=(there,))
        self._set_up(name, f"{self._network(name)}.1")
        with self.inside(name):
            run("ip", "link", "set", "lo", "up")
            self._set_up("eth0", self.address(name))
            run("ip", "route", "add", "default", "via", f"{self._network(name)}.1")
        return self.address(name)

    def _set_up(self, device: str, address: str) -> None:
        run("ip", "address", "add", f"{address}/24", "dev", device)
        run("ip", "link", "set", device, "up")
        if self.lossy:
            run("tc", "qdisc", "add", "dev", device, "root", "netem", *self.lossy.split())

    def _network(self, name: str) -> str:
        return f"10.77.{self._names.index(name) + 1}"

    def address(self, name: str) -> str:
        """A machine's."""
        return f"{self._network(name)}.2"

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Be there: this thread, with the sockets that it makes and the processes that it starts."""
        before = _here()
        _check(_libc.setns(self._open[name], _NEWNET))
        try:
            yield
        finally:
            _check(_libc.setns(before, _NEWNET))
            os.close(before)

    @contextlib.contextmanager
    def unplugged(self, name: str) -> Iterator[None]:
        """Its line is down."""
        run("ip", "link", "set", name, "down")
        try:
            yield
        finally:
            run("ip", "link", "set", name, "up")

    @contextlib.contextmanager
    def apart(self, one: str, others: list[str]) -> Iterator[None]:
        """Nothing gets from ``one`` to the others, nor back; nobody is told."""
        pairs = [(one, other) for other in others] + [(other, one) for other in others]
        for begin, end in pairs:
            run("ip", "rule", "add", *self._rule(begin, end))
        try:
            yield
        finally:
            for begin, end in pairs:
                run("ip", "rule", "del", *self._rule(begin, end))

    def _rule(self, begin: str, end: str) -> list[str]:
        return ["from", self.address(begin), "to", self.address(end), "blackhole"]
