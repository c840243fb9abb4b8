"""How a robot shows who it is: which settings it dials with, and when they change."""

from pathlib import Path

import pytest

from shadow.client.trust import Offer, Trust
from shadow.daemon.config import parse_client
from shadow.errors import ClockError, ConfigError
from shadow.net.address import Endpoint
from shadow.pki.certificates import Purpose
from tests.support import Authority


def make(own: Authority, pair: tuple[Path, Path], *more: str, late: bool = False) -> Trust:
    words = ["--rhost=localhost", "--rport=1", "--lport=9", "--robot=011", f"--ca={own.ca}"]
    return Trust(parse_client([*words, f"--crt={pair[0]}", f"--key={pair[1]}", *more], {}), late=late)


def test_a_reload_reads_all_or_leaves_all(own: Authority) -> None:
    pair = own.robot()
    trust = make(own, pair)
    before = trust.settings
    assert before is not None
    assert trust.refresh() is before, "nothing is read for each attempt"
    other = own.issue("other", "011", Purpose.ROBOT)
    for ours, theirs in zip(pair, other, strict=True):
        ours.write_bytes(theirs.read_bytes())
    assert trust.load().fingerprint != before.fingerprint
    after = trust.settings
    pair[0].write_text("nonsense")
    with pytest.raises(ConfigError):
        trust.load()
    assert trust.settings is after


def test_with_a_folder_for_renewed_ones_each_attempt_looks_again(own: Authority, tmp_path: Path) -> None:
    pair = own.robot()
    trust = make(own, pair, f"--state={tmp_path / 'state'}")
    before = trust.refresh()
    crt, key = own.issue("later", "011", Purpose.ROBOT, days=(-0.5, 1))
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "pair.pem").write_bytes(crt.read_bytes() + key.read_bytes())
    pair[0].write_text("nonsense")
    after = trust.refresh()
    assert after.fingerprint != before.fingerprint
    (tmp_path / "state" / "pair.pem").write_text("nonsense")
    assert trust.refresh() is after, "what was good before stays"


def test_a_clock_that_is_wrong_may_be_right_by_and_by(own: Authority) -> None:
    pair = own.issue("future", "011", Purpose.ROBOT, days=(10, 20))
    trust = make(own, pair)
    assert trust.settings is None
    assert trust.terms == []
    with pytest.raises(ClockError):
        trust.refresh()
    with pytest.raises(ClockError):
        make(own, pair, "--once")
    for ours, theirs in zip(pair, own.robot(), strict=True):
        ours.write_bytes(theirs.read_bytes())
    assert trust.refresh() is trust.settings is not None


def test_one_that_has_expired_will_do_for_a_session_that_is_there(own: Authority) -> None:
    pair = own.issue("late", "011", Purpose.ROBOT, days=(-4, -0.5))
    with pytest.raises(ConfigError, match="expired"):
        make(own, pair)
    assert make(own, pair, late=True).settings is not None


def test_an_offer_is_compared_with_another_process_s() -> None:
    offer = Offer("011", str(Endpoint("tunnel.example", 4242)), ("", "web"), "c0ffee")
    facts = offer.to_json()
    assert Offer.from_json({**facts, "services": ["", "web"], "new": 1}) == offer
    for name in facts:
        assert Offer.from_json({**facts, name: "other"}) != offer
        with pytest.raises(KeyError, match=name):
            Offer.from_json({other: fact for other, fact in facts.items() if other != name})
