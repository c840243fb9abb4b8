"""The streams of one robot: in three steps to the relay, and back when they have ended."""

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from shadow.errors import LocalError
from shadow.net.lines import Line
from shadow.relay.ends import Plain
from shadow.relay.roster import Roster
from shadow.transport.link import KernelLink, Link
from tests.support import DEADLINE, tcp_pair


class Pump:
    """What the relay has of a stream."""

    def __init__(self, near: Any, link: Any) -> None:
        self.links = [end for end in (near, link) if isinstance(end, Link)]


class Durable:
    """A relay and a store that note down what is asked of them; one step may fail."""

    def __init__(self, fails: str = "") -> None:
        self.done: list[tuple[str, Any]] = []
        self.on_end: Callable[[Any], object]
        self.relay = SimpleNamespace(make=self._make, adopt=self._adopt)
        self._fails = fails

    def _step(self, name: str, *what: object) -> None:
        if name == self._fails:
            raise LocalError("no descriptors left")
        self.done.append((name, *what))  # type: ignore[arg-type]

    def _make(self, near: object, link: KernelLink) -> Pump:
        self._step("make", link.suite)
        return Pump(near, link)

    def keep(self, _pump: object, facts: object) -> None:
        self._step("keep", facts)

    def _adopt(self, pump: Any, on_end: Callable[[Any], object]) -> None:
        self._step("adopt", *(link.line for link in pump.links))
        self.on_end = on_end

    def ended(self, _pump: object) -> None:
        self._step("ended", threading.current_thread())


def test_a_stream_comes_and_goes() -> None:
    async def body() -> None:
        durable: Any = Durable()
        over: asyncio.Queue[tuple[Any, str]] = asyncio.Queue()
        roster: Roster[str] = Roster(durable, lambda pump, known: over.put_nowait((pump, known)))
        (near, far), (plain, other) = tcp_pair(), tcp_pair()
        roster.begin(Plain(plain), KernelLink(near, "a suite", []), "what is known", {"a": "fact"})
        line = roster.lines.of(near)
        assert line is not None
        assert durable.done == [("make", "a suite"), ("keep", {"a": "fact"}), ("adopt", line)]
        ((pump, known),) = roster.items()
        assert (known, list(roster), len(roster)) == ("what is known", [pump], 1)
        # Its end is reported from another thread, and told in the event loop's.
        threading.Thread(target=durable.on_end, args=[pump]).start()
        assert await asyncio.wait_for(over.get(), DEADLINE) == (pump, "what is known")
        assert durable.done[3:] == [("ended", threading.current_thread())]
        assert len(roster) == 0
        for sock in (near, far, plain, other):
            sock.close()

    asyncio.run(body())


def test_each_link_gets_its_line_unless_somebody_knows_a_better_one() -> None:
    async def body() -> None:
        durable: Any = Durable()
        roster: Roster[str] = Roster(durable, lambda _pump, _known: None)
        pairs = [tcp_pair() for _ in range(3)]
        ours, theirs, known = (KernelLink(inner, "a suite", []) for inner, _outer in pairs)
        known.line = line = Line()
        roster.begin(theirs, ours, "what is known", {})
        assert ours.line is theirs.line is roster.lines.of(ours.sock) is not None
        roster.begin(known, ours, "what is known", {})
        assert known.line is line is not ours.line
        for pair in pairs:
            for sock in pair:
                sock.close()

    asyncio.run(body())


@pytest.mark.parametrize("step", ["make", "keep"])
def test_one_that_cannot_begin(step: str) -> None:
    """The other end of the tunnel hears of it; what is on this side is the caller's."""

    async def body() -> None:
        durable: Any = Durable(step)
        roster: Roster[str] = Roster(durable, lambda _pump, _known: None)
        (near, far), (plain, other) = tcp_pair(), tcp_pair()
        with pytest.raises(LocalError):
            roster.begin(Plain(plain), KernelLink(near, "a suite", []), "what is known", {})
        assert len(roster) == 0
        with pytest.raises(ConnectionResetError):
            far.recv(1)
        assert plain.fileno() != -1
        for sock in (far, plain, other):
            sock.close()

    asyncio.run(body())


def test_one_that_cannot_go_on_is_not_on_it() -> None:
    async def body() -> None:
        durable: Any = Durable("adopt")
        roster: Roster[str] = Roster(durable, lambda _pump, _known: None)
        near, far = tcp_pair()
        pump: Any = Pump(None, KernelLink(near, "a suite", []))
        with pytest.raises(LocalError):
            roster.go_on(pump, "what is known")
        assert list(roster) == []
        near.close()
        far.close()

    asyncio.run(body())
