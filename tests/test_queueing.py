"""Taking turns: shares, order, and who has to leave."""

from hypothesis import given
from hypothesis import strategies as st

from shadow.queueing import Guest, Pace, Seats, Turns, Window


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


def test_a_pace() -> None:
    pace = Pace(10)
    assert [pace.delay(0.0) for _ in range(10)] == [0.0] * 10
    assert abs(pace.delay(0.0) - 0.1) < 1e-9
    assert abs(pace.delay(0.05) - 0.05) < 1e-9
    assert pace.delay(0.1001) == 0.0
    assert pace.delay(0.1002) > 0
    assert [pace.delay(99.0) for _ in range(10)] == [0.0] * 10  # and not what ten seconds would give
    assert pace.delay(99.0) > 0


def seat(seats: Seats, *sources: str, busy: bool = False) -> list[Guest]:
    """Somebody of each source, for whom nobody has to leave."""
    guests = [Guest(source, first=source == "root") for source in sources]
    for guest in guests:
        assert seats.came(guest) is None
        if busy:
            seats.stirred(guest, busy=True)
    return guests


def test_who_has_been_silent_the_longest_loses_its_seat() -> None:
    seats = Seats(3)
    first, second, third = seat(seats, "a", "a", "a")
    seats.stirred(first, busy=False)
    assert seats.came(Guest("a")) is second
    assert seats.came(Guest("a")) is third
    assert seats.came(Guest("a")) is first


def test_who_is_being_answered_keeps_it_before_its_like() -> None:
    seats = Seats(2)
    _busy, (idle,) = seat(seats, "a", busy=True), seat(seats, "a")
    assert seats.came(Guest("a")) is idle
    seats = Seats(2)
    seat(seats, "a", "a", busy=True)
    late = Guest("a")
    assert seats.came(late) is late


def test_a_crowd_gives_way_to_others_until_they_have_as_much() -> None:
    seats = Seats(4)
    crowd = seat(seats, "a", "a", "a", "a", busy=True)
    assert [seats.came(Guest("b")) for _ in range(2)] == crowd[:2]
    last = Guest("b")
    assert seats.came(last) is not last  # one of its own, that is silent
    assert seats.came(Guest("c")) in crowd[2:]


def test_a_seat_that_is_free_again() -> None:
    seats = Seats(1)
    (guest,) = seat(seats, "a")
    seats.left(guest)
    seats.left(guest)
    seats.stirred(guest, busy=True)  # too late
    seat(seats, "b")


def test_who_comes_first_always_gets_one_and_keeps_it() -> None:
    everybody = [*"abcd"]
    seats = Seats(4)
    guests = seat(seats, *everybody, busy=True)  # no crowd, and all are being answered
    assert seats.came(Guest("root", first=True)) is guests[0]
    for _ in range(3):
        assert seats.came(Guest("root", first=True)) in guests
    stranger = Guest("e")
    assert seats.came(stranger) is stranger
    own = Guest("root", first=True)
    assert seats.came(own) not in (None, own)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_never_more_than_there_are_and_none_without_need(visits: list[tuple[str, bool]]) -> None:
    seats, there = Seats(6), set[Guest]()
    for source, busy in visits:
        guest = Guest(source)
        there.add(guest)
        leaver = seats.came(guest)
        if leaver is not None:
            assert len(there) == 7
            there.remove(leaver)
            most = max(sum(one.source == other.source for one in there) for other in there)
            assert sum(one.source == leaver.source for one in there) + 1 >= most
        if guest in there:
            seats.stirred(guest, busy=busy)
    assert len(there) <= 6


def test_a_pace_with_more_at_once_and_with_something_given_back() -> None:
    pace = Pace(2.0, 5)
    assert [pace.delay(100.0) for _ in range(5)] == [0.0] * 5
    assert pace.delay(100.0) == 0.5
    pace.give_back()
    assert pace.delay(100.0) == 0.0
    assert pace.delay(200.0) == 0.0
    for _ in range(9):
        pace.give_back()
    assert [pace.delay(200.0) for _ in range(6)] == [0.0] * 5 + [0.5]


def test_a_window_opens_while_it_costs_no_time_and_closes_when_it_does() -> None:
    window = Window()
    first = window.size
    for _ in range(100):
        window.took(1.9, 0.0)
    assert window.size == 64
    window.took(1.0, 0.0)
    before = window.size
    window.took(3.0, 0.0)
    assert window.size == before, "neither good nor bad"
    for _ in range(100):
        window.took(4.1, 0.0)
    assert window.size == 2 < first
    window.failed()
    assert window.size == 2


def test_half_of_a_window_is_lost_with_each_failure() -> None:
    window = Window()
    for _ in range(100):
        window.took(1.0, 0.0)
    window.failed()
    assert window.size == 32
    window.failed()
    assert window.size == 16


def test_a_line_that_has_become_longer_is_taken_for_that_some_day() -> None:
    window = Window()
    window.took(0.02, 0.0)
    now = 0.0
    for _ in range(100):
        now += 0.1
        window.took(2.0, now)
    assert window.size == 2
    window.took(2.0, now + 600)
    assert window.size == 3
    window.took(2.0, now + 1e9)
    assert window.size == 4
