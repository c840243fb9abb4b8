"""Words that outlive the process which wrote them."""

import gc
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from shadow.errors import LocalError
from shadow.relay.progress import MARK, MOVED, STAGE, Entry, ProgressTable, Stage, create, private_entry


@pytest.fixture(autouse=True)
def no_ledger_is_left() -> Iterator[None]:
    """Its memory is given back with the last entry: others count descriptors."""
    yield
    gc.collect()


def test_what_one_process_writes_the_next_one_reads() -> None:
    descriptor = create()
    table = ProgressTable(os.dup(descriptor))
    slot, entry = table.take()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - it is killed
        entry.up[MOVED], entry.down[STAGE], entry.up[MARK] = 2**40, Stage.ENDED, 7
        entry.cut, entry.tries = True, 2
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    entry = ProgressTable(descriptor).retake(slot)
    assert (entry.up[MOVED], entry.down[STAGE], entry.up[MARK]) == (2**40, Stage.ENDED, 7)
    assert (entry.cut, entry.tries) == (True, 2)


def test_slots_do_not_share_words() -> None:
    table = ProgressTable(create())
    entries = [table.take()[1] for _ in range(3)]
    for number, entry in enumerate(entries):
        for record in (entry.up, entry.down):
            for word in (MOVED, STAGE, MARK):
                record[word] = number
        entry.tries = number
    assert [entry.tries for entry in entries] == [0, 1, 2]
    assert [list(entry.up) + list(entry.down) for entry in entries] == [[n] * 6 for n in range(3)]


def test_a_slot_is_cleared_when_it_is_taken_again() -> None:
    table = ProgressTable(create())
    slot, entry = table.take()
    entry.cut = True
    table.give_back(slot)
    again, entry = table.take()
    assert again == slot
    assert not entry.cut


def test_slots_of_streams_that_go_on_are_not_given_to_others() -> None:
    descriptor = create()
    first = ProgressTable(os.dup(descriptor))
    kept = [first.take()[0] for _ in range(5)][3]
    second = ProgressTable(descriptor)
    second.retake(kept)
    assert kept not in {second.take()[0] for _ in range(10)}
    with pytest.raises(LocalError, match=f"slot {kept} of the table is not to be had"):
        second.retake(kept)
    with pytest.raises(LocalError, match="slot -1"):
        second.retake(-1)


def test_something_else_is_no_ledger() -> None:
    descriptor = os.memfd_create("other")
    with pytest.raises(LocalError, match="is not our progress table"):
        ProgressTable(descriptor)


def test_all_slots_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["shadow.relay.progress"], "SLOTS", 2)
    table = ProgressTable(create())
    table.take()
    table.take()
    with pytest.raises(LocalError, match="more than 2 streams"):
        table.take()


def test_a_private_entry_is_one_too() -> None:
    entry = private_entry()
    entry.down[MOVED] = 5
    assert isinstance(entry, Entry)
    assert (entry.down[MOVED], entry.up[MOVED]) == (5, 0)
