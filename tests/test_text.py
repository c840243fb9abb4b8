"""Words for people."""

import pytest

from shadow import errors
from shadow import text as texts
from shadow.text import did_you_mean, shorten


@pytest.mark.parametrize(("number", "said"), [(0, "0 robots"), (1, "1 robot"), (2, "2 robots")])
def test_many(number: int, said: str) -> None:
    assert texts.many(number, "robot") == said


def test_a_peers_words_cannot_steer_a_terminal_or_a_log() -> None:
    assert (
        str(errors.Refused("x\n", "a\x1b[31mb\nWATCHDOG=trigger")) == "refused (x?): a?[31mb?WATCHDOG=trigger"
    )


def test_shorten_escapes_and_bounds() -> None:
    assert shorten("a\x1b[31m\n") == r"'a\x1b[31m\n'"
    assert len(shorten("x" * 10000)) < 90


def test_letters_in_the_wrong_order_come_first() -> None:
    assert did_you_mean("CLR", ["CRT", "CRL", "CA"]) == "; did you mean CRL?"
