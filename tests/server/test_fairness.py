"""Taking turns and places: shares, order, and who has to leave."""

from hypothesis import given
from hypothesis import strategies as st

from shadow.server.fairness import Places, Turns


def everybody(turns: Turns[int]) -> list[tuple[str, int]]:
    """All who may run now."""
    taken = []
    while turns.may_take:
        taken.append(turns.take())
    return taken


def test_sources_take_turns() -> None:
    turns: Turns[int] = Turns(at_once=100, share=100, waiting_max=100)
    for source, item in (("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6)):
        assert turns.came(source, item) is None
    assert everybody(turns) == [("a", 1), ("b", 4), ("c", 5), ("a", 2), ("b", 6), ("a", 3)]
    assert (turns.running, turns.waiting) == (6, 0)


def test_nobody_has_more_than_a_share() -> None:
    turns: Turns[int] = Turns(at_once=4, share=2, waiting_max=100)
    for item in range(10):
        turns.came("a", item)
    assert everybody(turns) == [("a", 0), ("a", 1)]
    turns.came("b", 10)
    assert everybody(turns) == [("b", 10)]
    turns.done("a")
    assert everybody(turns) == [("a", 2)]
    assert (turns.running, turns.waiting) == (3, 7)


def test_not_more_at_once() -> None:
    turns: Turns[int] = Turns(at_once=3, share=3, waiting_max=100)
    for item in range(5):
        turns.came(f"source {item}", item)
    assert [item for _source, item in everybody(turns)] == [0, 1, 2]
    turns.done("source 1")
    assert [item for _source, item in everybody(turns)] == [3]


def test_who_crowds_others_out_is_crowded_out() -> None:
    turns: Turns[int] = Turns(at_once=1, share=1, waiting_max=3)
    assert [turns.came("a", item) for item in range(3)] == [None, None, None]
    assert turns.came("a", 3) == 3
    assert turns.came("b", 4) == 2  # the last of those that most are of
    assert turns.came("b", 5) in {1, 5}
    assert turns.waiting == 3


def test_everybody_leaves() -> None:
    turns: Turns[int] = Turns(at_once=1, share=1, waiting_max=9)
    for item in range(3):
        turns.came("a", item)
    taken = turns.take()
    assert turns.leave() == [1, 2]
    assert (turns.waiting, turns.may_take) == (0, False)
    turns.done(taken[0])
    assert turns.running == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_nobody_is_lost_and_no_limit_is_passed(steps: list[tuple[str, bool]]) -> None:
    turns: Turns[int] = Turns(at_once=4, share=2, waiting_max=5)
    running: list[str] = []
    came = left = 0
    for source, arrives in steps:
        if arrives:
            came += 1
            left += turns.came(source, came) is not None
        elif running:
            turns.done(running.pop())
            left += 1
        running += [one for one, _item in everybody(turns)]
        assert turns.running == len(running) <= 4
        assert all(running.count(one) <= 2 for one in "abc")
        assert turns.waiting <= 5
        assert came == left + turns.running + turns.waiting
        # Whoever waits has a reason to.
        assert turns.waiting == 0 or not turns.may_take


def test_the_oldest_of_those_with_most_gives_way() -> None:
    places: Places[int] = Places(3)
    assert [places.came("a", 1), places.came("b", 2), places.came("a", 3)] == [None] * 3
    assert places.came("b", 4) == 1  # as many as those of "b", and longer there
    assert places.came("b", 5) == 2
    assert places.came("c", 6) == 4
    places.left("a", 3)
    places.left("a", 3)
    places.left("a", 1)  # it had to leave before
    assert len(places) == 2
    assert places.came("a", 7) is None


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_there_is_always_a_place_for_the_next(number: int, steps: list[tuple[str, bool]]) -> None:
    places: Places[int] = Places(number)
    there: dict[int, str] = {}  # sources by items, in the order in which they came
    for item, (source, comes) in enumerate(steps):
        if comes:
            there[item] = source
            loser = places.came(source, item)
            sources = list(there.values())
            assert (loser is None) is (len(sources) <= number)
            if loser is not None:
                crowd = there[loser]
                assert loser != item
                assert sources.count(crowd) == max(map(sources.count, sources))
                assert loser == next(one for one, its_source in there.items() if its_source == crowd)
                del there[loser]
        elif there:
            oldest = next(iter(there))
            places.left(there.pop(oldest), oldest)
        assert len(places) == len(there)
