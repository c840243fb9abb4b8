"""Lists of revoked certificates from server to server, without an engine."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from shadow.errors import Refused, Unreachable
from shadow.fleet import exchange as module
from shadow.fleet.exchange import Shown, ask_all
from shadow.fleet.keys import Keys
from shadow.fleet.lists import place_of
from shadow.pki.certificates import load_certificates
from shadow.pki.crl import RevocationList
from shadow.pki.keys import key_bytes
from shadow.server import questions
from shadow.server.questions import Others, Question
from tests.support import Authority, make_list, wait_for
from tests.support.engine import Members
from tests.support.lists import Neighbours, Trusting, id_of_ca, listed, told
from tests.support.peer import REFUSED
from tests.support.sites import NAME, Fleet


def ask(own: Authority, others: Others, ours: RevocationList | None) -> tuple[str, int] | None:
    key = key_bytes(own.certificate.public_key())
    found = asyncio.run(ask_all(others, own.certificate, key, ours))
    return None if found is None else (found[0], found[1].number)


def test_the_newest_is_taken_from_who_has_it(own: Authority) -> None:
    """It takes several pieces; servers that have none, cannot be reached, or have the same, do no harm."""
    newest = listed(own, 5, *range(10**30, 10**30 + 50))
    others = Neighbours(
        a=Trusting(listed(own, 4)), b=Trusting(newest), c=Trusting(), d=Unreachable("gone"),
        e=Refused("unknown", "what?"),
    )  # fmt: skip
    assert ask(own, others, listed(own, 3)) == ("b", 5)
    assert ask(own, others, None) == ("b", 5)
    others.asked.clear()
    assert ask(own, others, newest) is None
    assert [one for one in others.asked if one.endswith(" list")] == []
    assert ask(own, Neighbours(), None) is None


def test_who_has_an_older_one_is_told(own: Authority) -> None:
    """And only then: or two servers would tell each other for ever."""
    lists = [listed(own, number) for number in (3, 4, 5)]
    for theirs, expected in (lists[:1], True), (lists[1:2], False), (lists[2:], False), ([], True):
        others = Neighbours(a=Trusting(*theirs))
        ask(own, others, lists[1])
        assert others.told is expected
    others = Neighbours(a=Trusting())
    ask(own, others, None)
    assert not others.told


def says(number: int, der: bytes) -> Callable[[Question], list[dict[str, Any]]]:
    """A server that has this list under that number."""

    def answer(question: Question) -> list[dict[str, Any]]:
        if question.what == questions.NEWEST_LIST:
            return [{"number": str(number), "since": 1}]
        return list(module._pieces(der))

    return answer


def test_what_is_not_the_cas_is_not_taken_and_the_next_best_is(own: Authority, tmp_path: Path) -> None:
    forged = listed(Authority(tmp_path / "forger"), 9)
    genuine = listed(own, 4)
    nonsense = {"x": says(7, b""), "y": says(7, genuine.der), "z": says(9, forged.der)}
    nonsense["w"] = lambda question: (
        [{"number": "8" * 50, "since": 1}] if question.what == questions.NEWEST_LIST else []
    )
    nonsense["v"] = lambda question: (
        [{"number": "8", "since": 1}] if question.what == questions.NEWEST_LIST else [{"piece": "no base64!"}]
    )
    assert ask(own, Neighbours(**nonsense), None) is None
    assert ask(own, Neighbours(**nonsense, a=Trusting(genuine)), listed(own, 3)) == ("a", 4)


def test_one_that_is_too_large(own: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    made = listed(own, 4)
    monkeypatch.setattr(module, "LIST_MAX", len(made.der) - 1)
    assert ask(own, Neighbours(a=Trusting(made)), None) is None


@pytest.mark.parametrize("name", ["", "nothing", "{ca} x 1", "{ca} 1", "{ca} -1 5", "{ca} 1 2 3"])
def test_questions_that_make_no_sense(own: Authority, name: str) -> None:
    """They are answered as far as they do, and have no effect."""
    view = told()
    made = listed(own, 4)
    trust: Any = Trusting(made)
    shown = Shown(trust, view)
    question = Question(questions.NEWEST_LIST, name.format(ca=id_of_ca(own)))
    if "ca" in name:
        number, since = place_of(made)
        assert list(shown.answer(question)) == [{"number": str(number), "since": since}]
    else:
        with pytest.raises(Refused):
            shown.answer(question)
    assert not view.lists_elsewhere
    assert not view.lists.is_set()


@pytest.fixture
def fleet(own: Authority, tmp_path: Path, keys: Keys, members: Members) -> Iterator[Fleet]:
    """One with a CA of its own, which may revoke; its servers do not run yet."""
    made = Fleet(own, members, tmp_path, keys.prefix.decode().split("/")[2])
    with ExitStack() as stack:
        for site in made.sites:
            stack.enter_context(site.tunnel)
        yield made


def test_a_reload_while_the_engine_is_away(fleet: Fleet, own: Authority) -> None:
    one, two = fleet.sites
    one.start(f"--crl={make_list(own)}")
    two.start()
    two.daemon.wait_for_log("revocation list 1 of .* came from server s1, by way of")
    with two.robot() as robot, ExitStack() as stack:
        fleet.wait_for_home(("s2", 1))
        wait_for(one.tunnel.socket_path(NAME).exists, "the robot's socket at the first server")
        for member in fleet.members.members:
            stack.enter_context(member.stopped())
        number = load_certificates(own.robot(NAME)[0], "robot")[0].serial_number
        make_list(own, number, number=2)
        one.daemon.process.send_signal(signal.SIGHUP)
        assert robot.receive()[0] == REFUSED
        two.daemon.wait_for_log(
            "(?s)revocation list 2 of 'CN=Test CA' came from server s1, asked for it: "
            f"1 certificate revoked\n.*robot {NAME} disconnected: certificate {number:040x} was revoked"
        )
