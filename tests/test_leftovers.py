"""Whatever lies in the store, the daemon starts, drops what it does not understand, and keeps the rest.

What lies there was written by another version whenever one is installed, an older one at a downgrade. So no
value may be believed, and what the first release wrote must be understood for ever.
"""

import asyncio
import base64
import gc
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadow import events
from shadow.daemon import life
from shadow.relay import progress
from shadow.systemd import bundle
from shadow.systemd.bundle import Letter
from tests.relay.test_durable import Daemon, Ends, both_ways
from tests.server import test_handover as test_parking
from tests.support import Authority, mutations, robot_session, tcp_pair
from tests.support.log import Said
from tests.support.store import Store

SUITE = "ECDHE-ECDSA-AES128-GCM-SHA256"

thorough = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def no_ledger_is_left() -> Iterator[None]:
    """Its memory is given back with the last entry: others count descriptors."""
    yield
    gc.collect()


def certificate_of(authority: Authority, *, server: bool = False) -> x509.Certificate:
    crt, _key = authority.server() if server else authority.robot()
    return x509.load_pem_x509_certificate(crt.read_bytes())


def chain_of(certificate: x509.Certificate) -> list[str]:
    return [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()]


STREAM = {"robot": "011", "service": "web", "stream": "1f", "uid": 1000, "pid": 7, "since": 1.5, "tries": 0}
"""Facts of a stream as the first release wrote them; ``suite``, ``chain`` and ``slot`` come with them."""

IDENTITY: dict[str, Any] = {"kind": "session", "robot": "011", "role": "control", "state": "open"}
SESSION = {
    **IDENTITY,
    "session": "an id",
    "services": ["", "web"],
    "interval": 30.0,
    "peer": "198.51.100.7:1234",
    "since": 1.5,
    "terms": {"certificate": "c0ffee", "keepalive": 30.0},
}
STANDBY = {"kind": "standby", "robot": "011", "role": "data", "state": "standby"}
VISITOR = {
    "kind": "visitor",
    "robot": "011",
    "service": "",
    "stream": "2",
    "uid": 0,
    "pid": 1,
    "since": 1.5,
    "tries": 0,
}
CLIENT_SESSION = {
    **IDENTITY,
    "server": robot_session.CONFIG.whither,
    "services": [""],
    "certificate": "c0ffee",
    "session": "an id",
    "interval": 20.0,
    "since": "2026-01-01 00:00:00",
    "renews": False,
    "target": [socket.AF_INET, ["198.51.100.1", 4242]],
}


# Streams


def stored(store: Store, name: str, box: socket.socket) -> None:
    """Put a bundle in the place of another."""
    store.remove(name)
    with box:
        store.add(name, box.fileno())


def contents(store: Store, name: str) -> Letter:
    with socket.socket(fileno=os.dup(store.kept[name])) as box:
        return bundle.unpack(box)


@thorough
@given(data=st.data())
def test_streams_beside_whatever_lies_there(authority: Authority, data: st.DataObject) -> None:
    certificate = certificate_of(authority)
    peer = data.draw(st.sampled_from([None, certificate]))
    facts = {**STREAM, "slot": 0, **links_of(certificate, peer)}
    if peer is not None and data.draw(st.booleans()):
        facts["near"] = data.draw(
            st.sampled_from([None, "", [], {}, {"suite": 1, "chain": ["?"]}, [facts["near"]]])
        )
    text, places = data.draw(mutations.letters(facts)), data.draw(mutations.swaps(6))
    store, odd, good = Store(), Ends(certificate, peer), Ends(certificate)
    first = Daemon(store)
    first.start(odd, **STREAM)
    first.start(good, **STREAM)
    first.stop()
    letter = contents(store, "s0")
    stored(store, "s0", mutations.parcel_of(text, letter.descriptors, places))
    bundle.close_all(letter.descriptors)
    store.start_again()
    second = Daemon(store)
    assert second.count in {1, 2}
    assert set(store.kept) >= {"ledger", "s1"}
    both_ways(good)
    second.stop()
    store.close()
    odd.close()
    good.close()


@pytest.mark.parametrize("kind", ["size", "no memory", "two", "none", "state", "moved"])
def test_a_ledger_of_another_version(authority: Authority, said: Said, kind: str) -> None:
    store, ends = Store(), Ends(certificate_of(authority))
    first = Daemon(store)
    pump = first.start(ends, **STREAM)
    both_ways(ends)
    first.stop()
    damage_ledger(store, kind)
    if kind in {"state", "moved"}:
        pump.entry.up[progress.STAGE if kind == "state" else progress.MOVED] = 2**64 - 1
    store.start_again()
    if kind == "two":
        store._passed.append(("ledger", os.dup(store.kept["ledger"])))
    said.clear()
    second = Daemon(store)
    assert second.count == 0
    assert set(store.kept) == {"ledger"}
    assert {event for event, _text in said} == {events.StreamGivenUp}
    with pytest.raises(ConnectionResetError):  # and nobody takes it for whole
        ends.far.recv(1)
    other = Ends(certificate_of(authority))
    second.start(other)  # the next ones are kept again
    both_ways(other)
    assert set(store.kept) == {"ledger", "s0"}
    second.stop()
    for made in (ends, other):
        made.close()
    store.close()


def damage_ledger(store: Store, kind: str) -> None:
    if kind == "none":
        store.remove("ledger")
    elif kind in {"size", "no memory"}:
        other = os.memfd_create("ledger") if kind == "size" else mutations.descriptor("null")
        if kind == "size":
            os.ftruncate(other, 2 * progress._SIZE)
        store.remove("ledger")
        store.add("ledger", other)
        os.close(other)


def test_many_streams_of_another_version_are_said_in_one_line(authority: Authority, said: Said) -> None:
    store, first = Store(), None
    ends = [Ends(certificate_of(authority)) for _ in range(4)]
    first = Daemon(store)
    for one in ends:
        first.start(one, **STREAM)
    first.stop()
    for number in range(3):
        stored(store, f"s{number}", mutations.parcel_of(b'{"version": 2}', [], []))
    store.start_again()
    said.clear()
    second = Daemon(store)
    assert second.count == 1
    text = "3 streams of the daemon before this one cannot go on and end: a letter is not of version 1"
    expected: Said = [
        (events.StreamGivenUp, text),
        (events.StreamsResumed, "resumed 1 stream of the daemon before this one"),
    ]
    assert said == expected
    both_ways(ends[3])
    second.stop()
    for one in ends:
        one.close()
    store.close()


def links_of(certificate: x509.Certificate, peer: x509.Certificate | None) -> dict[str, Any]:
    """What is kept of a stream's links: of one, as ever; of two, where the first release finds none."""
    link = {"suite": SUITE, "chain": chain_of(certificate)}
    return link if peer is None else {"near": {"suite": SUITE, "chain": chain_of(peer)}, "link": link}


@pytest.mark.parametrize("two_links", [False, True])
@pytest.mark.parametrize("more", [{}, {"colour": "blue", "limits": {"rate": [1, 2]}}])
def test_a_stream_as_an_earlier_release_kept_it_goes_on(
    authority: Authority,
    more: dict[str, Any],
    two_links: bool,  # noqa: FBT001
) -> None:
    """``more``: what a newer one may have added, and this one need not know."""
    certificate = certificate_of(authority)
    peer = certificate if two_links else None
    store, ends = Store(), Ends(certificate, peer)
    Daemon(store).stop()  # its progress table
    pipes = [*os.pipe2(os.O_NONBLOCK), *os.pipe2(os.O_NONBLOCK)]
    facts = {"version": 1, **STREAM, "slot": 0, **links_of(certificate, peer), **more}
    descriptors = [ends.inner.sock.fileno(), ends.link.sock.fileno(), *pipes]
    with mutations.parcel_of(json.dumps(facts).encode(), descriptors, range(6)) as box:
        store.add("s0", box.fileno())
    bundle.close_all(pipes)
    words = struct.pack("=8Q", 19, 0, 0, 8, 0, 0, 0, 0)  # moved, state, mark; the same; cut, tries
    os.pwrite(store.kept["ledger"], words, 0)
    store.start_again()
    second = Daemon(store)
    assert second.count == 1
    ((pump, told),) = second.resumed
    assert (pump.up.moved, pump.down.moved) == (19, 8)
    assert {name: told[name] for name in STREAM} == STREAM
    both_ways(ends)
    second.stop()
    ends.close()
    store.close()


# Sessions of the server


def left_by_a_server(certificate: x509.Certificate, store: Store, *odd: socket.socket) -> list[socket.socket]:
    """A session, a standby and a visitor; the far ends. ``odd`` are bundles that come before them."""
    ends = [tcp_pair(), tcp_pair(), socket.socketpair()]
    letters: list[dict[str, Any]] = [SESSION, STANDBY, VISITOR]
    numbered = list(odd)
    for facts, (near, _far) in zip(letters, ends, strict=True):
        more = {} if facts is VISITOR else {"suite": SUITE, "chain": chain_of(certificate)}
        text = json.dumps({"version": 1, **facts, **more}).encode()
        numbered.append(mutations.parcel_of(text, [near.fileno()], [0]))
        near.close()
    for number, box in enumerate(numbered):
        with box:
            store.add(f"p{number}", box.fileno())
    return [far for _near, far in ends]


@thorough
@given(data=st.data())
def test_sessions_beside_whatever_lies_there(
    authority: Authority, tmp_path: Path, data: st.DataObject
) -> None:
    certificate = certificate_of(authority)
    facts = data.draw(st.sampled_from([SESSION, STANDBY, VISITOR, {**VISITOR, "kind": "socket"}]))
    more = {"suite": SUITE, "chain": chain_of(certificate), "identity": [1, 2]}
    text = data.draw(mutations.letters({**facts, **more}))
    places = data.draw(st.lists(st.sampled_from(mutations.KINDS), max_size=2))

    async def body(scene: test_parking.Scene) -> None:
        odd = mutations.parcel_of(text, [], places)
        far = left_by_a_server(certificate, scene.store, odd)
        assert scene.after.take_up(scene.store) == 1
        await asyncio.sleep(0)
        assert not scene.store.kept
        for end in far:
            end.close()

    for path in tmp_path.iterdir():
        path.unlink()
    test_parking.play(authority, tmp_path, body)


def test_sessions_as_the_first_release_left_them_go_on(authority: Authority, tmp_path: Path) -> None:
    async def body(scene: test_parking.Scene) -> None:
        control, standby, visitor = left_by_a_server(certificate, scene.store)
        assert scene.after.take_up(scene.store) == 1
        session = scene.after.robot.session
        assert session is not None
        assert (session.id, session.services, session.keepalive.interval) == ("an id", ("", "web"), 30.0)
        assert {path.name for path in tmp_path.iterdir()} == {"011.sock", "web@011.sock"}
        assert len(scene.after.robot.visitors.starting) == 1  # the visitor, on the standby
        for end in (control, standby, visitor):
            end.close()

    certificate = certificate_of(authority)
    test_parking.play(authority, tmp_path, body)


@pytest.mark.parametrize(
    "change",
    [{"services": ["../../etc/x"]}, {"interval": 0}, {"interval": -3.0}, {"interval": 1e300}],
)
def test_no_value_of_a_session_is_believed(
    authority: Authority, tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.test_leftovers.SESSION", {**SESSION, **change})

    async def body(scene: test_parking.Scene) -> None:
        ends = left_by_a_server(certificate, scene.store)
        assert scene.after.take_up(scene.store) == 0
        assert not list(tmp_path.iterdir())
        for end in ends:
            end.close()

    certificate = certificate_of(authority)
    test_parking.play(authority, tmp_path, body)


def test_what_nobody_knows_is_dropped_and_said(said: Said) -> None:
    names = ["q1", "q2\x1b[31m", *(f"q{number}" for number in range(3, 10))]
    store: Any = SimpleNamespace(close_rest=lambda: names)
    life._drop_unknown(store)
    text = "dropped 9 descriptors of no use to this version with these settings: q1, q2?[31m, q3, q4, q5"
    assert said == [(events.StreamGivenUp, text)]


# Sessions of the client


@thorough
@given(data=st.data())
def test_a_clients_session_beside_whatever_lies_there(authority: Authority, data: st.DataObject) -> None:
    certificate = certificate_of(authority, server=True)
    more = {"suite": SUITE, "chain": chain_of(certificate)}
    letters: list[dict[str, Any]] = [CLIENT_SESSION, STANDBY]
    text = data.draw(mutations.letters({**data.draw(st.sampled_from(letters)), **more}))
    kinds = data.draw(st.lists(st.sampled_from(mutations.KINDS), max_size=2))

    async def body(scene: robot_session.Scene) -> None:
        ends = [tcp_pair() for _ in letters]
        boxes = [mutations.parcel_of(text, [], kinds)]
        for facts, (near, _far) in zip(letters, ends, strict=True):
            good = json.dumps({"version": 1, **facts, **more}).encode()
            boxes.append(mutations.parcel_of(good, [near.fileno()], [0]))
            near.close()
        for number, box in enumerate(boxes):
            with box:
                scene.store.add(f"p{number}", box.fileno())
        scene.take_up_all()
        assert not scene.store.kept
        await asyncio.sleep(0)
        for _near, far in ends:
            far.close()

    robot_session.play(authority, body)
