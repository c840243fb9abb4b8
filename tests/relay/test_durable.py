"""The durable: what is kept of a stream, and how the next daemon goes on with it.

There is no service manager here and need not be kernel TLS: a dictionary keeps the descriptors, and a plain
TCP socket plays the link, which splice does not mind. tests/machine/test_outlive.py has the real ones.
"""

import errno
import gc
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from cryptography import x509

from shadow import events
from shadow.errors import LocalError
from shadow.relay.durable import DurableStreams
from shadow.relay.ends import End, Plain, Side
from shadow.relay.flow import Pump
from shadow.relay.pool import Relay
from shadow.systemd import bundle
from shadow.transport.link import KernelLink, Link
from tests.support import DEADLINE, Authority, tcp_pair, userspace_linked, wait_for, write_all
from tests.support.log import Said
from tests.support.store import Store

PEERS_SUITE = "ECDHE-RSA-CHACHA20-POLY1305"


@pytest.fixture(autouse=True)
def no_ledger_is_left() -> Iterator[None]:
    """Its memory is given back with the last entry: others count descriptors."""
    yield
    gc.collect()


class Daemon:
    """A relay and a durable, as a daemon has them."""

    def __init__(self, store: Store, *, resume: bool = True) -> None:
        self.relay = Relay(threads=1)
        self.durable = DurableStreams(self.relay, store)  # type: ignore[arg-type]
        self.resumed: list[tuple[Pump, Mapping[str, Any]]] = []
        self.ended: list[Pump] = []
        self.tries: list[int] = []
        self.count = self.durable.resume(self._welcome) if resume else 0

    def _welcome(self, pump: Pump, facts: Mapping[str, Any]) -> None:
        if facts["robot"] == "unwanted":
            raise LocalError("nobody wants it")
        self.resumed.append((pump, facts))
        self.tries.append(pump.entry.tries)
        self.relay.adopt(pump, self.ended.append)

    def start(self, ends: "Ends", **facts: object) -> Pump:
        pump = self.relay.make(ends.inner, ends.link)
        self.durable.keep(pump, {"robot": "011", **facts})
        self.relay.adopt(pump, self.ended.append)
        return pump

    def stop(self) -> None:
        self.relay.stop()

    def reap(self) -> None:
        wait_for(lambda: self.ended, "the stream's end")
        self.durable.ended(self.ended.pop())


class Ends:
    """``near`` ─ one end │ the other ─ ``far``.

    The inner one is a plain socket, or a link with a peer who has a certificate.
    """

    def __init__(self, certificate: x509.Certificate, peer: x509.Certificate | None = None) -> None:
        self.near, inner = socket.socketpair() if peer is None else tcp_pair()
        sock, self.far = tcp_pair()
        for end in (inner, sock):
            end.setblocking(False)
        for end in (self.near, self.far):
            end.settimeout(DEADLINE)
        self.inner: End = Plain(inner) if peer is None else KernelLink(inner, PEERS_SUITE, [peer])
        self.link = KernelLink(sock, "ECDHE-ECDSA-AES128-GCM-SHA256", [certificate])

    def close(self) -> None:
        for end in (self.near, self.far, self.inner.sock, self.link.sock):
            end.close()


def certificate_of(authority: Authority, robot: str = "011") -> x509.Certificate:
    """A robot's."""
    crt, _key = authority.robot(robot)
    return x509.load_pem_x509_certificate(crt.read_bytes())


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.close()


@pytest.fixture
def ends(authority: Authority) -> Iterator[Ends]:
    made = Ends(certificate_of(authority))
    yield made
    made.close()


@pytest.fixture(params=["plain", "two links"])
def any_ends(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Ends]:
    peer = certificate_of(authority, "peer") if request.param == "two links" else None
    made = Ends(certificate_of(authority), peer)
    yield made
    made.close()


def both_ways(ends: Ends) -> None:
    ends.near.sendall(b"up")
    assert ends.far.recv(100) == b"up"
    ends.far.sendall(b"down")
    assert ends.near.recv(100) == b"down"


def test_a_stream_goes_on_in_the_next_daemon(store: Store, any_ends: Ends, said: Said) -> None:
    ends, first = any_ends, Daemon(store)
    first.start(ends, uid=1000)
    both_ways(ends)
    first.stop()
    ends.near.sendall(b"sent in the gap")
    store.start_again()
    second = Daemon(store)
    assert second.count == 1
    assert ends.far.recv(100) == b"sent in the gap"
    both_ways(ends)
    ((pump, facts),) = second.resumed
    assert (facts["robot"], facts["uid"]) == ("011", 1000)
    assert second.tries == [1], "if that brings the daemon down, the next one knows"
    assert (pump.up.moved, pump.down.moved) == (19, 8)  # those of the first daemon, too
    assert pump.link.suite == ends.link.suite
    assert pump.link.certificate == ends.link.certificate
    assert type(pump.near) is type(ends.inner)
    if isinstance(ends.inner, KernelLink):
        near, _link = pump.links
        assert (near.suite, near.certificate) == (PEERS_SUITE, ends.inner.certificate)
    assert (events.StreamsResumed, "resumed 1 stream of the daemon before this one") in said
    second.relay.cut(pump, "enough")
    second.reap()
    assert list(store.kept) == ["ledger"]
    second.stop()


def test_what_lies_in_the_pipes_is_not_lost(store: Store, any_ends: Ends) -> None:
    ends, first = any_ends, Daemon(store)
    first.start(ends)
    both_ways(ends)
    first.stop()
    with socket.socket(fileno=os.dup(store.kept["s0"])) as box:
        _facts, descriptors = bundle.unpack(box)
    os.write(descriptors[3], b"in the up pipe, ")
    os.write(descriptors[5], b"in the down pipe, ")
    bundle.close_all(descriptors)
    ends.near.sendall(b"behind it")
    ends.far.sendall(b"behind it")
    store.start_again()
    second = Daemon(store)
    for end, where in ((ends.far, "up"), (ends.near, "down")):
        expected = f"in the {where} pipe, behind it".encode()
        received = b""
        while len(received) < len(expected):
            received += end.recv(100)
        assert received == expected
    second.stop()


def test_nothing_is_kept_of_what_has_ended(store: Store, ends: Ends) -> None:
    daemon = Daemon(store)
    daemon.start(ends)
    assert set(store.kept) == {"ledger", "s0"}
    assert daemon.durable.protected == 1
    ends.far.close()
    daemon.reap()
    assert set(store.kept) == {"ledger"}
    assert daemon.durable.protected == 0
    daemon.stop()


def test_who_knows_streams_with_one_link_does_not_take_the_other_for_a_plain_socket(
    authority: Authority, store: Store
) -> None:
    """At a downgrade: close_notify would cut such a stream, and a pipe short of room would lose bytes."""
    ends = Ends(certificate_of(authority), certificate_of(authority, "peer"))
    daemon = Daemon(store)
    daemon.start(ends)
    with socket.socket(fileno=os.dup(store.kept["s0"])) as box:
        facts, descriptors = bundle.unpack(box)
    bundle.close_all(descriptors)
    assert set(facts) >= {"near", "link"}
    assert not set(facts) & {"suite", "chain"}, "where the first release looks, and ends what has none"
    daemon.stop()
    ends.close()


@pytest.mark.parametrize("side", Side)
def test_a_stream_that_openssl_has_a_part_in_is_not_kept(
    authority: Authority, store: Store, ends: Ends, side: Side
) -> None:
    """Whichever of its two links that is: the keys are in this process."""
    daemon = Daemon(store)
    ours, theirs = userspace_linked(authority)
    two: tuple[Link, Link] = (ours, ends.link) if side is Side.NEAR else (ends.link, ours)
    pump = daemon.relay.make(*two)
    daemon.durable.keep(pump, {"robot": "011"})
    assert not pump.kept
    assert set(store.kept) == {"ledger"}
    daemon.relay.adopt(pump, daemon.ended.append)
    write_all(theirs, b"across")
    assert ends.far.recv(100) == b"across"
    theirs.abort()
    daemon.reap()
    assert (daemon.durable.protected, daemon.durable.unprotected) == (0, 0)
    daemon.stop()


def test_past_the_limit_streams_run_unprotected(
    authority: Authority, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise LocalError("no descriptors left")

    store = Store(limit=2)
    crt, _key = authority.robot()
    *three, four = [Ends(x509.load_pem_x509_certificate(crt.read_bytes())) for _ in range(4)]
    daemon = Daemon(store)
    for ends in three:
        daemon.start(ends)
        both_ways(ends)
    assert (daemon.durable.protected, daemon.durable.unprotected) == (1, 2)
    assert [event for event, _text in said] == [events.StoreFull]
    three[2].far.close()
    daemon.reap()
    assert daemon.durable.unprotected == 1
    # One that does not come about is none of them.
    monkeypatch.setattr(daemon.relay, "make", refuse)
    with pytest.raises(LocalError):
        daemon.start(four)
    assert daemon.durable.unprotected == 1
    daemon.stop()
    with pytest.raises(ConnectionResetError):  # nobody goes on with it
        three[1].far.recv(1)
    for ends in [*three, four]:
        ends.close()
    store.close()


@pytest.mark.parametrize(
    ("error", "said_of_it"),
    [
        (
            OSError(errno.ETOOMANYREFS, "x"),
            "counts them, too (ETOOMANYREFS, unix(7))",
        ),
        (OSError(errno.EMFILE, "x"), "Too many open files"),
    ],
)
def test_a_stream_that_cannot_be_kept_runs_all_the_same(
    store: Store,
    ends: Ends,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    said_of_it: str,
) -> None:
    def refuse(*_: object) -> None:
        raise error

    daemon = Daemon(store)
    monkeypatch.setattr(socket, "send_fds", refuse)
    daemon.start(ends)
    both_ways(ends)
    assert (daemon.durable.protected, daemon.durable.unprotected) == (0, 1)
    ((event, text),) = said
    assert event == events.StoreFull
    assert text.startswith("streams will not outlive this daemon: ")
    assert text.endswith(said_of_it)
    assert set(store.kept) == {"ledger"}
    ends.far.close()
    daemon.reap()
    assert daemon.durable.unprotected == 0
    daemon.stop()


def test_a_bug_in_keeping_one_leaves_nothing_open_but_its_sockets(
    store: Store, ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    daemon = Daemon(store)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with monkeypatch.context() as patched:
        patched.setattr(store, "add", fail)
        with pytest.raises(RuntimeError):
            daemon.start(ends)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert (daemon.durable.protected, daemon.durable.unprotected, daemon.relay.streams) == (0, 0, 0)
    daemon.start(ends)  # the caller's sockets are as they were, and so is the place in the table
    both_ways(ends)
    assert set(store.kept) == {"ledger", "s0"}
    daemon.stop()


def test_no_place_in_the_ledger_is_no_reason_to_refuse(
    store: Store, ends: Ends, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shadow.relay.progress.SLOTS", 0)
    daemon = Daemon(store)
    daemon.start(ends)
    both_ways(ends)
    assert daemon.durable.unprotected == 1
    assert said == [(events.StoreFull, "streams will not outlive this daemon: more than 0 streams")]
    daemon.stop()


def test_without_a_store_nothing_is_kept(ends: Ends, said: Said) -> None:
    store = Store(limit=0)
    daemon = Daemon(store)
    daemon.start(ends)
    both_ways(ends)
    assert store.kept == {}
    assert daemon.durable.unprotected == 1
    daemon.stop()
    assert said == []


def test_a_stream_that_was_being_cut_off_is_not_taken_for_whole(store: Store, any_ends: Ends) -> None:
    ends, first = any_ends, Daemon(store)
    pump = first.start(ends)
    both_ways(ends)
    first.stop()
    pump.entry.cut = True
    store.start_again()
    second = Daemon(store)
    second.reap()
    with pytest.raises(ConnectionResetError):
        ends.far.recv(100)
    assert set(store.kept) == {"ledger"}
    second.stop()


def test_a_stream_that_brings_the_daemon_down_is_given_up(store: Store, ends: Ends, said: Said) -> None:
    first = Daemon(store)
    pump = first.start(ends)
    first.stop()
    pump.entry.tries = 2
    store.start_again()
    second = Daemon(store)
    assert second.count == 0
    ((event, text),) = said
    assert event == events.StreamGivenUp
    assert "ended 2 times when it went on" in text
    assert set(store.kept) == {"ledger"}
    with pytest.raises(ConnectionResetError):
        ends.far.recv(100)
    second.stop()


@pytest.mark.parametrize("kind", ["unwanted", "version", "short", "slot", "junk", "facts", "files", "file"])
def test_what_makes_no_sense_is_dropped_and_the_others_go_on(
    authority: Authority, store: Store, ends: Ends, said: Said, kind: str
) -> None:
    crt, _key = authority.robot()
    other = Ends(x509.load_pem_x509_certificate(crt.read_bytes()))
    first = Daemon(store)
    first.start(other, **({"robot": "unwanted"} if kind == "unwanted" else {}))
    first.start(ends)
    first.stop()
    damage(store, "s0", kind)
    store.start_again()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    second = Daemon(store)
    assert second.count == 1
    both_ways(ends)
    assert [event for event, _text in said] == [events.StreamGivenUp, events.StreamsResumed]
    assert set(store.kept) == {"ledger", "s1"}
    assert len(os.listdir("/proc/self/fd")) <= before + 12  # noqa: PTH208
    second.stop()
    other.close()


def damage(store: Store, name: str, kind: str) -> None:
    """Put something else in the place of a bundle."""
    if kind == "unwanted":
        return
    with socket.socket(fileno=os.dup(store.kept[name])) as box:
        facts, descriptors = bundle.unpack(box)
    try:
        if kind == "short":
            made = bundle.pack(facts, descriptors[:3])
        elif kind == "slot":
            made = bundle.pack({**facts, "slot": 10**9}, descriptors)
        elif kind == "files":
            made = bundle.pack(facts, [store.kept["ledger"]] * 6)
        elif kind == "file":
            os.dup2(store.kept["ledger"], store.kept[name])
            return
        elif kind == "facts":
            made = bundle.pack({"slot": 0}, descriptors)
        else:
            text = b"junk" if kind == "junk" else b'{"version": 99}'
            made, outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            socket.send_fds(outside, [text], descriptors)
            outside.close()
    finally:
        bundle.close_all(descriptors)
    store.remove(name)
    with made:
        store.add(name, made.fileno())
