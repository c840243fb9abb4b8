"""Pipes: how large they get, and what all of them may take together."""

import errno
import fcntl
import os

import pytest

from shadow.errors import LocalError
from shadow.relay import pipes
from shadow.relay.pipes import PAGE, RECORDS_SIZE, make_pipe, retake


def test_a_pipe_that_may_not_grow_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fcntl.fcntl

    def refuse(descriptor: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return int(original(descriptor, command, argument))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    pipe = make_pipe(2**20)
    assert pipe.slots * PAGE == original(pipe.writer, fcntl.F_GETPIPE_SZ)
    allowed = pipes._allowance._pages
    pipe.grow()
    assert pipe.slots * PAGE == original(pipe.writer, fcntl.F_GETPIPE_SZ)
    assert pipes._allowance._pages == allowed
    monkeypatch.setattr(fcntl, "fcntl", original)
    pipe.grow()
    assert pipe.slots * PAGE == original(pipe.writer, fcntl.F_GETPIPE_SZ), "asked once, not for each chunk"
    pipe.close()


def test_pipes_grow_as_far_as_all_of_them_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is for new streams, whose pipes would have two slots only."""
    made = [make_pipe() for _ in range(3)]
    more = pipes._BUSY_SIZE // PAGE - made[0].slots
    monkeypatch.setattr(pipes, "_allowance", pipes._Allowance(2 * more))
    for pipe in made:
        pipe.grow()
    assert [pipe.slots > 16 for pipe in made] == [True, True, False]
    made[0].close()
    made[2].grow()
    assert made[2].slots > 16
    for pipe in made[1:]:
        pipe.close()
    assert pipes._allowance._pages == 2 * more


def test_a_pipe_that_another_process_made_larger_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "_allowance", pipes._Allowance(1000))
    pipe = make_pipe(pipes._BUSY_SIZE)
    first, busy = RECORDS_SIZE // PAGE, pipes._BUSY_SIZE // PAGE
    assert pipes._allowance._pages == 1000 - (busy - first)
    pipe.close()
    assert pipes._allowance._pages == 1000


def test_what_another_process_has_left_is_full_until_it_is_empty() -> None:
    """Nobody has counted the records in it, and one that does not fit would be cut short."""
    one, other = make_pipe(RECORDS_SIZE), make_pipe(RECORDS_SIZE)
    os.write(one.writer, b"left")
    first, second = retake([one.reader, one.writer, other.reader, other.writer])
    assert (first.held, second.held) == (4, 0)
    assert first.room <= 0
    second.records = 0
    assert second.room > 0
    for wrong in ([one.writer, one.reader], [one.reader, other.writer]):
        with pytest.raises(LocalError, match="what should be a pipe is none"):
            retake([other.reader, other.writer, *wrong])
    first.close()
    second.close()
