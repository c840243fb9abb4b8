"""Claims: the algorithm alone, and in a model in which everything goes wrong."""

import functools
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadow.fleet import claims as claiming
from shadow.fleet.claims import Ask, Claim, Claims, Delete, End, Order, Put, Settle
from shadow.fleet.keys import Entry

from . import model
from .model import KINDS, Trouble, World, random_troubles

US, THEM = "s0", "s1"


def make_claims(*, counts: bool = True, up: bool = True) -> Claims:
    claims = Claims(US, "inc", lambda _entry: counts)
    if up:
        assert claims.found_engine(0.0) == []
    return claims


def of_ours(attempt: int = 1, boot: str = "boot", sid: str = "sid") -> Claim:
    return Claim("011", sid, boot, attempt)


def written(
    revision: int, attempt: int = 1, boot: str = "boot", sid: str = "theirs", server: str = THEM
) -> Entry:
    return Entry(server, "inc", sid, boot, attempt, revision=revision)


def claimed(claims: Claims, claim: Claim, revision: int = 5, now: float = 1.0) -> None:
    (order,) = claims.came(claim, None, now)
    assert order == Put(claim, 0)
    entry = written(revision, claim.attempt, claim.boot, claim.sid, US)
    assert claims.answered(order, entry, revision, now, done=True) == [Settle(claim, claimed=True)]
    assert claims.revision_of("011") == revision


# One rule at a time


def test_a_robot_is_welcomed_when_its_claim_is_written() -> None:
    claims, claim = make_claims(), of_ours()
    assert claims.unclaimed == 0
    (order,) = claims.came(claim, None, 1.0)
    assert claims.unclaimed == 1
    claims.answered(order, written(5, sid="sid", server=US), 5, 1.0, done=True)  # type: ignore[arg-type]
    assert claims.unclaimed == 0


def test_a_robot_does_not_wait_long() -> None:
    claims, claim = make_claims(), of_ours()
    claims.came(claim, None, 1.0)
    assert claims.tick(1.9) == []
    assert claims.tick(2.0) == [Settle(claim, claimed=False)]
    assert claims.tick(3.0) == []


def test_one_robot_may_be_looked_at_alone() -> None:
    claims, claim, other = make_claims(), of_ours(), Claim("012", "sid", "boot", 1)
    claims.came(claim, None, 1.0)
    claims.came(other, None, 1.0)
    assert claims.look("011", 1.9) == []
    assert claims.look("011", 2.0) == [Settle(claim, claimed=False)]
    assert claims.look("011", 3.0) == []
    assert claims.look("013", 3.0) == []
    assert claims.tick(3.0) == [Settle(other, claimed=False)]


def test_a_robot_does_not_wait_at_all_without_an_engine() -> None:
    claims, claim = make_claims(up=False), of_ours()
    assert claims.came(claim, None, 1.0) == [Settle(claim, claimed=False)]
    assert claims.unclaimed == 1
    assert claims.found_engine(9.0) == [Put(claim, 0)]


def test_who_waits_when_the_engine_leaves_is_welcomed() -> None:
    claims, claim = make_claims(), of_ours()
    claims.came(claim, None, 1.0)
    assert claims.lost_engine() == [Settle(claim, claimed=False)]


def test_the_entry_of_an_older_session_is_replaced() -> None:
    claims, claim = make_claims(), of_ours(attempt=2)
    assert claims.came(claim, written(3), 1.0) == [Put(claim, 3)]


@pytest.mark.parametrize("late", [False, True])
def test_a_newer_attempt_elsewhere_wins(*, late: bool) -> None:
    claims, claim = make_claims(), of_ours(attempt=2)
    newer = written(3, attempt=3)
    assert claims.came(claim, newer, 9.0, 1.0 if late else None) == [End(claim, newer)]
    assert claims.ended(claim, 9.0) == []


def test_a_claim_that_meets_another_looks_again() -> None:
    claims, claim = make_claims(), of_ours(attempt=2)
    (order,) = claims.came(claim, None, 1.0)
    assert isinstance(order, Put)
    assert claims.answered(order, written(4), 4, 1.1, done=False) == [Put(claim, 4)]


def test_a_late_one_of_another_boot_has_to_prove_itself() -> None:
    claims, claim = make_claims(), of_ours()
    assert claims.came(claim, written(3, boot="other"), 9.0, 1.0) == [Ask(claim)]
    assert claims.tick(13.9) == []
    assert claims.tick(14.0) == [Ask(claim)]
    assert claims.heard(claim, 14.1) == [Put(claim, 3)]


def test_what_was_heard_before_the_entry_was_seen_proves_nothing() -> None:
    claims, claim = make_claims(), of_ours()
    claims.came(claim, written(3, boot="other"), 9.0, 1.0)
    claims.tick(13.0)
    assert claims.changed("011", written(4, boot="third"), 4, 14.0) == []
    assert claims.heard(claim, 14.0) == []
    assert claims.heard(claim, 14.1) == [Put(claim, 4)]


def test_nothing_has_to_be_proved_against_the_dead() -> None:
    claims, claim = make_claims(counts=False), of_ours()
    assert claims.came(claim, written(3, boot="other"), 9.0, 1.0) == [Put(claim, 3)]


def test_a_session_that_was_claimed_elsewhere_since_ends() -> None:
    claims, claim = make_claims(), of_ours()
    claimed(claims, claim, 5)
    newer = written(6, boot="other")
    assert claims.changed("011", newer, 6, 2.0) == [End(claim, newer)]


def test_a_claim_that_was_late_elsewhere_is_set_right() -> None:
    claims, claim = make_claims(), of_ours(attempt=5)
    claimed(claims, claim, 5)
    assert claims.changed("011", written(6, attempt=4), 6, 2.0) == [Put(claim, 6)]


def test_an_entry_that_somebody_has_removed_is_written_again() -> None:
    claims, claim = make_claims(), of_ours()
    claimed(claims, claim, 5)
    assert claims.changed("011", None, 6, 2.0) == [Put(claim, 0)]


def test_events_of_before_the_answer_change_nothing() -> None:
    claims, claim = make_claims(), of_ours(attempt=2)
    claimed(claims, claim, 5)
    assert claims.changed("011", written(4), 4, 2.0) == []
    assert claims.changed("011", None, 3, 2.0) == []


def test_events_of_after_the_claim_may_be_there_before_its_answer() -> None:
    claims, claim = make_claims(), of_ours()
    (order,) = claims.came(claim, None, 1.0)
    newer = written(9, boot="other")
    assert claims.changed("011", newer, 9, 1.1) == []
    assert isinstance(order, Put)
    ours = written(5, sid="sid", server=US)
    assert claims.answered(order, ours, 5, 1.2, done=True) == [End(claim, newer)]


def test_the_end_of_a_session_removes_its_entry() -> None:
    claims, claim = make_claims(), of_ours()
    claimed(claims, claim, 5)
    (order,) = claims.ended(claim, 2.0)
    assert order == Delete("011", 5)
    assert isinstance(order, Delete)
    assert claims.answered(order, None, 6, 2.1, done=True) == []
    assert claims.revision_of("011") == 0


def test_a_session_that_ends_while_its_claim_is_under_way() -> None:
    claims, claim = make_claims(), of_ours()
    (order,) = claims.came(claim, None, 1.0)
    assert claims.ended(claim, 1.1) == []
    assert isinstance(order, Put)
    assert claims.answered(order, written(5, sid="sid", server=US), 5, 1.2, done=True) == [Delete("011", 5)]


def test_a_session_that_replaces_another_while_its_claim_is_under_way() -> None:
    claims, old, new = make_claims(), of_ours(), of_ours(2, sid="new")
    (order,) = claims.came(old, None, 1.0)
    assert claims.ended(old, 1.1) == []
    assert claims.came(new, None, 1.1) == []
    assert isinstance(order, Put)
    assert claims.answered(order, written(5, sid="sid", server=US), 5, 1.2, done=True) == [Put(new, 5)]


def test_an_order_that_nobody_has_answered_is_given_again() -> None:
    claims, claim = make_claims(), of_ours()
    (order,) = claims.came(claim, None, 1.0)
    assert isinstance(order, Put)
    assert claims.unanswered(order, 4.0) == [Settle(claim, claimed=False)]
    assert claims.tick(4.4) == []
    (again,) = claims.tick(4.5)
    assert again == order
    assert claims.answered(order, None, 4, 5.0, done=False) == []  # the first one's, after all: ignored


def test_an_order_that_was_carried_out_unseen() -> None:
    claims, claim = make_claims(), of_ours()
    (order,) = claims.came(claim, None, 1.0)
    assert isinstance(order, Put)
    claims.unanswered(order, 4.0)
    assert claims.changed("011", written(5, sid="sid", server=US), 5, 4.1) == []
    assert claims.revision_of("011") == 5
    assert claims.tick(9.0) == []


def test_an_entry_that_names_us_without_reason_is_removed() -> None:
    claims, claim = make_claims(), of_ours()
    (order,) = claims.came(claim, None, 1.0)
    claims.ended(claim, 1.1)
    assert isinstance(order, Put)
    assert claims.unanswered(order, 4.0) == []
    claims.tick(5.0)
    assert claims.changed("011", written(5, sid="sid", server=US), 5, 6.0) == [Delete("011", 5)]
    assert claims.changed("012", written(6, sid="sid", server=THEM), 6, 6.0) == []


def test_what_a_crash_has_left_stays_for_a_while() -> None:
    claims = make_claims(counts=False, up=False)
    claims.found_engine(10.0)
    assert claims.read("011", written(3, server=US), 4, 10.0) == []
    assert claims.tick(69.9) == []
    assert claims.tick(70.0) == [Delete("011", 3)]


def test_what_a_crash_has_left_is_the_returning_robots() -> None:
    claims, claim = make_claims(counts=False, up=False), of_ours(2)
    left = written(3, server=US)
    claims.found_engine(10.0)
    claims.read("011", left, 4, 10.0)
    assert claims.came(claim, left, 11.0) == [Put(claim, 3)]


def test_after_a_gap_all_that_is_not_ours_is_claimed() -> None:
    claims, claim = make_claims(), of_ours(2)
    claimed(claims, claim, 5)
    claims.lost_engine()
    assert claims.found_engine(9.0) == []
    assert claims.read("011", written(5, 2, sid="sid", server=US), 9, 9.0) == []
    assert claims.revision_of("011") == 5
    claims.lost_engine()
    assert claims.found_engine(9.0) == []
    assert claims.read("011", written(7), 9, 9.0) == [Put(claim, 7)]


def test_an_engine_that_has_gone_back_is_believed() -> None:
    claims, claim = make_claims(), of_ours()
    claimed(claims, claim, 50)
    claims.lost_engine()
    assert claims.found_engine(9.0) == []
    assert claims.read("011", None, 3, 9.0) == [Put(claim, 0)]
    ours = written(4, sid="sid", server=US)
    claims.answered(Put(claim, 0), ours, 4, 9.1, done=True)
    assert claims.changed("011", ours, 4, 9.2) == []
    assert claims.revision_of("011") == 4


@pytest.mark.parametrize("other", [{"server": THEM}, {"server": US, "inc": "another"}])
def test_what_we_have_written_as_somebody_else_is_written_again(other: dict[str, str]) -> None:
    """Sessions outlive a restart with another --server-id; others would not believe in their entries."""
    claims, claim = make_claims(), of_ours()
    entry = written(5, sid="sid")
    other = {"server": US, **other}
    entry = entry._replace(server=other["server"], inc=other.get("inc", entry.inc))
    assert claims.came(claim, entry, 9.0, 1.0) == [Put(claim, 5)]


def test_what_cannot_be_read_as_it_was_written_is_not_written_without_a_pause() -> None:
    claims, claim = make_claims(), of_ours()
    (order,) = claims.came(claim, None, 1.0)
    assert isinstance(order, Put)
    nobodys = Entry("", "", "", "", 0, revision=5)
    assert claims.answered(order, nobodys, 5, 1.1, done=True) == [Settle(claim, claimed=False)]
    assert claims.changed("011", nobodys, 5, 1.2) == []
    (again,) = claims.tick(1.61)
    assert again == Put(claim, 5)
    assert isinstance(again, Put)
    assert claims.answered(again, nobodys, 6, 1.7, done=True) == []
    assert claims.tick(2.6) == []
    assert claims.tick(2.71) == [Put(claim, 5)]


def test_nothing_remains_of_who_has_gone() -> None:
    claims, claim = make_claims(), of_ours()
    claimed(claims, claim)
    (order,) = claims.ended(claim, 2.0)
    assert isinstance(order, Delete)
    claims.answered(order, None, 6, 2.0, done=True)
    assert claims._robots == {}
    assert claims._due == {}


# All rules at once, in the model


def run(seeds: range, kind: type[Claims] = Claims) -> tuple[list[str], int]:
    """What is wrong after so many runs, and how many sessions were ended that were the robots' newest."""
    faults, wrongly_ended = [], 0
    for seed in seeds:
        world = World(seed, random_troubles(seed), kind)
        faults += [f"seed {seed}: {fault}" for fault in world.run()]
        wrongly_ended += world.wrongly_ended
    return faults, wrongly_ended


def check(seeds: range) -> None:
    faults, wrongly_ended = run(seeds)
    assert not faults
    assert wrongly_ended < len(seeds)  # in 100 moves each


def test_some_schedules() -> None:
    check(FEW)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 11000, 500))
def test_ten_thousand_schedules(first: int) -> None:
    check(range(first, first + 500))


TROUBLES = st.builds(
    Trouble, st.floats(0, 60), st.sampled_from(KINDS), st.integers(0, 5), st.sampled_from([1.0, 8.0, 40.0])
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.lists(TROUBLES, max_size=25))
def test_any_schedule(seed: int, troubles: list[Trouble]) -> None:
    assert World(seed, troubles, robots=3).run() == []


class Broken(Claims):
    """Claims with a rule less."""

    def _forget_due(self) -> None:
        for name in list(self._due):
            self._look_again(self._robots[name], None)


class NothingIsProved(Broken):
    def _is_doubtful(self, *_: object) -> bool:
        return False


class NobodyCleansUp(Broken):
    def _clear_away(self, robot: claiming._Robot) -> None:
        if robot.under_way is None:
            self._look_again(robot, None)
            del self._robots[robot.name]


class NothingIsTriedAgain(Broken):
    def unanswered(self, order: Put | Delete, now: float) -> list[Order]:
        orders = super().unanswered(order, now)
        self._forget_due()
        return orders


class NothingWasMissed(Broken):
    def read(self, *_: object) -> list[Order]:
        return []


class EverybodyWaits(Broken):
    def tick(self, now: float) -> list[Order]:
        self._forget_due()
        return super().tick(now)


class NobodyEnds(Broken):
    def _taken(self) -> list[Order]:
        return [order for order in super()._taken() if not isinstance(order, End)]


class NothingElseIsClaimed(Broken):
    def changed(self, *_: object) -> list[Order]:
        return []


@pytest.mark.parametrize(
    "kind",
    [NobodyCleansUp, NothingIsTriedAgain, NothingWasMissed, EverybodyWaits, NobodyEnds, NothingElseIsClaimed],
)
def test_without_this_rule_something_is_wrong(kind: type[Claims]) -> None:
    assert run(range(10), kind)[0]


FEW = range(25)


@functools.cache
def usual() -> int:
    """How many end wrongly with all rules, in the same schedules."""
    return run(FEW)[1]


def test_without_proof_the_wrong_ones_end() -> None:
    assert run(FEW, NothingIsProved)[1] > 3 * usual() + 5


def test_without_attempts_the_wrong_ones_end(monkeypatch: pytest.MonkeyPatch) -> None:
    usual()
    monkeypatch.setattr(claiming, "_supersedes", lambda entry, _claim, own: 0 < own < entry.revision)
    assert run(FEW)[1] > 5 * usual() + 20


def test_without_comparing_the_wrong_ones_end(monkeypatch: pytest.MonkeyPatch) -> None:
    swap: Callable[..., tuple[bool, Entry | None]] = model.Store.swap

    def carelessly(store: model.Store, order: Put | Delete, server: str, inc: int) -> object:
        present = store.entries.get(order.robot)
        if present is None and isinstance(order, Delete):
            return False, None
        return swap(store, order._replace(expected=present.revision if present else 0), server, inc)

    usual()
    monkeypatch.setattr(model.Store, "swap", carelessly)
    assert run(FEW)[1] > 2 * usual() + 5
