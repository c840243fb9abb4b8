"""The mailbox: what one daemon leaves, the next one finds."""

import os
from collections.abc import Iterator

import pytest

from shadow import events
from shadow.errors import LocalError
from shadow.systemd.bundle import Letter, close_all
from shadow.systemd.mailbox import Mailbox, collect
from tests.support.log import Said
from tests.support.store import Store


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store(limit=4)
    yield made
    made.close()


def put(store: Store, count: int, size: int = 10) -> None:
    mailbox = Mailbox(store)  # type: ignore[arg-type]
    try:
        for number in range(count):
            mailbox.put(Letter({"number": number, "text": "x" * size}, [0]))
    finally:
        mailbox.close()


def numbers(store: Store) -> list[int]:
    found = []
    store.start_again()
    for letter in collect(store):  # type: ignore[arg-type]
        found.append(letter.facts["number"])
        close_all(letter.descriptors)
    return found


def test_everything_comes_back_in_order_from_several_parcels(store: Store) -> None:
    put(store, 40, 30000)
    assert 1 < len(store.kept) <= 4
    assert numbers(store) == list(range(40))
    assert not store.kept  # what was taken out is kept no longer
    assert numbers(store) == []


def test_parcels_come_back_in_order_whatever_the_service_manager_does() -> None:
    store = Store(limit=20)
    put(store, 150, 30000)
    assert len(store.kept) > 10  # "p10" sorts before "p2"
    store.kept = dict(reversed(store.kept.items()))
    assert numbers(store) == list(range(150))
    store.close()


def test_nothing_put_nothing_kept(store: Store) -> None:
    put(store, 0)
    assert not store.kept


def test_a_full_store_is_an_error_for_the_letter_that_does_not_fit(store: Store) -> None:
    with pytest.raises(LocalError, match="keeps no more than 4 descriptors"):
        put(store, 1000, 30000)
    found = numbers(store)
    assert found == list(range(len(found)))
    assert len(found) > 4


def test_what_a_daemon_that_dies_has_not_taken_is_there_for_the_next(store: Store) -> None:
    put(store, 5)
    store.start_again()
    taking = collect(store)  # type: ignore[arg-type]
    for _ in range(2):
        close_all(next(taking).descriptors)
    del taking
    assert numbers(store) == [2, 3, 4]


def test_a_foreign_parcel_is_told_and_dropped(store: Store, said: Said) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    store.add("p7", nothing)
    os.close(nothing)
    put(store, 1)
    assert numbers(store) == [0]
    assert not store.kept
    assert [event for event, _text in said] == [events.SessionGivenUp]
    assert said[0][1].startswith("1 letter of the daemon before this one cannot be read: ")
    assert "what is no socket" in said[0][1]
