"""The frames themselves: each has a number of its own, and what two sides must have in common has a bound."""

from shadow.wire.frames import FRAME_MAX, KINDS, TEXT_MAX, Frame, Start


def test_every_frame_is_listed_once_under_a_number_of_its_own() -> None:
    made = {kind.__name__ for kind in Frame.__subclasses__()}
    assert {kind.__name__ for kind in KINDS} == made
    assert sorted(kind.TYPE for kind in KINDS) == list(range(1, len(KINDS) + 1))


def test_a_frame_cannot_be_changed_and_is_what_it_says() -> None:
    start = Start("web", "1f")
    assert start == Start("web", "1f")
    assert start != Start("web", "20")
    assert not hasattr(start, "__dict__"), "thousands are made"
    assert TEXT_MAX * 4 * 4 < FRAME_MAX, "four texts of the largest characters fit one"
