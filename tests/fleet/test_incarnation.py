"""What a server keeps of its life over a restart."""

import os

import pytest

from shadow.fleet import incarnation
from tests.support.store import Store


@pytest.fixture
def store() -> Store:
    return Store()


def test_a_planned_restart_is_the_same_server(store: Store) -> None:
    incarnation.leave(store, "c0ffee")  # type: ignore[arg-type]
    store.start_again()
    assert incarnation.take(store) == "c0ffee"  # type: ignore[arg-type]
    # And a crash after it is not.
    store.start_again()
    assert incarnation.take(store) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [b"", b"no word", bytes(range(128, 160)), b"\xff"])
def test_nonsense_is_no_life(store: Store, text: bytes) -> None:
    descriptor = os.memfd_create("inc")
    os.write(descriptor, text)
    store.add("inc", descriptor)
    os.close(descriptor)
    store.start_again()
    assert incarnation.take(store) == ""  # type: ignore[arg-type]
