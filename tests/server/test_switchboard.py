"""Visitors and standby channels: nobody is forgotten, nobody served twice, first come first served."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shadow.server.switchboard import DIAL_MAX, Switchboard


def test_a_standby_serves_at_once() -> None:
    board: Switchboard[str, int] = Switchboard()
    assert board.channel_came(1) == (None, 0)
    assert board.channel_came(2) == (None, 0)
    assert board.visitor_came("a") == (1, 0)
    assert board.visitor_came("b") == (2, 0)


def test_without_a_standby_one_is_dialled_for_each_visitor() -> None:
    board: Switchboard[str, int] = Switchboard()
    assert board.visitor_came("a") == (None, 1)
    assert board.visitor_came("b") == (None, 1)
    assert board.channel_came(1) == ("a", 0)
    assert board.channel_came(2) == ("b", 0)
    assert board.channel_came(3) == (None, 0)


def test_a_visitor_whose_channel_broke_goes_to_the_head() -> None:
    board: Switchboard[str, int] = Switchboard()
    board.channel_came(1)
    board.visitor_came("first")
    board.visitor_came("second")
    assert board.visitor_back("first") == (None, 1)
    assert board.channel_came(2) == ("first", 0)
    assert board.channel_came(3) == ("second", 0)


def test_lost_dials_are_dialled_again() -> None:
    board: Switchboard[str, int] = Switchboard()
    board.visitor_came("a")
    board.visitor_came("b")
    board.visitor_left("a")
    assert board.dials_lost() == 1


def test_dials_are_bounded() -> None:
    board: Switchboard[int, int] = Switchboard()
    assert sum(board.visitor_came(number)[1] for number in range(10 * DIAL_MAX)) == DIAL_MAX


def test_dials_held_back_are_made_up_for_until_everybody_is_served() -> None:
    board: Switchboard[int, int] = Switchboard()
    on_the_way = sum(board.visitor_came(number)[1] for number in range(3 * DIAL_MAX))
    served: list[int | None] = []
    while on_the_way:
        visitor, dials = board.channel_came(len(served))
        on_the_way += dials - 1
        assert on_the_way <= DIAL_MAX
        served.append(visitor)
    assert served == list(range(3 * DIAL_MAX))


def test_channels_for_visitors_who_have_left_are_a_surplus() -> None:
    board: Switchboard[str, int] = Switchboard()
    board.channel_came(1)
    board.channel_came(2)
    assert board.wanted == 2
    for name in ("a", "b", "c", "d", "e"):
        board.visitor_came(name)
    for name in ("c", "d", "e"):
        board.visitor_left(name)
    for number in (3, 4, 5, 6, 7):  # three were dialled, two are the robot's own
        board.channel_came(number)
    assert board.surplus() == [], "somebody may come"
    assert board.visitor_came("f") == (3, 0)
    assert board.surplus() == [4, 5], "but not for the fourth and fifth"
    assert list(board.standbys) == [6, 7]
    assert board.surplus() == []
    assert board.wanted == 2


def test_a_robot_that_keeps_more_is_let_have_its_way() -> None:
    """Dialled channels may be counted as its own and the other way round; it is right in the end."""
    board: Switchboard[str, int] = Switchboard()
    board.visitor_came("a")
    board.visitor_left("a")
    board.channel_came(1)
    board.surplus()
    assert board.surplus() == [1]
    for number in (2, 3, 4):
        board.channel_came(number)
    assert board.wanted == 3
    board.surplus()
    assert board.surplus() == []


class Fair(RuleBasedStateMachine):
    """Against a model: two queues that are never both occupied."""

    def __init__(self) -> None:
        super().__init__()
        self.board: Switchboard[int, int] = Switchboard()
        self.order: list[int] = []
        self.number = 0

    @rule()
    def visitor(self) -> None:
        self.number += 1
        channel, _dials = self.board.visitor_came(self.number)
        if channel is None:
            self.order.append(self.number)
        else:
            assert not self.order

    @rule()
    def channel(self) -> None:
        self.number += 1
        visitor, _dials = self.board.channel_came(self.number)
        assert visitor == (self.order.pop(0) if self.order else None)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.order:
            gone = data.draw(st.sampled_from(self.order))
            self.order.remove(gone)
            self.board.visitor_left(gone)
        self.board.visitor_left(-1)
        self.board.channel_left(-1)

    @invariant()
    def one_side_only(self) -> None:
        assert not (self.board.visitors and self.board.standbys)
        assert list(self.board.visitors) == self.order


TestFair = Fair.TestCase
