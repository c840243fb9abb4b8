"""Who has to leave when all seats are taken."""

from hypothesis import given
from hypothesis import strategies as st

from shadow.admin.seats import Guest, Seats


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
