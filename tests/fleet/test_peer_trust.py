"""Who is let in as a server of the fleet, and what we show the others."""

import asyncio
import dataclasses
from pathlib import Path

import pytest

from shadow.errors import ConfigError, IdentityError, PeerError, Refused
from shadow.fleet.peer_trust import PeerTrust
from shadow.pki.certificates import Files, Purpose, load_certificates
from shadow.pki.expiry import Calendar
from shadow.transport.context import Ktls, Settings
from shadow.transport.link import Link
from tests.support import Authority, now, settings, shake_hands
from tests.support.answering import peer_trust
from tests.support.log import Said


def meet(accepts: Settings, dials: Settings) -> tuple[Link, Link]:
    return asyncio.run(shake_hands(accepts, dials))


def close(*links: Link) -> None:
    for link in links:
        link.sock.close()


def test_two_servers_know_each_other(own: Authority) -> None:
    a, b = peer_trust(own, "a"), peer_trust(own, "b")
    ends = meet(b.settings, a.dialling("b"))
    assert b.server_of(ends[0]) == "a"
    assert a.server_of(ends[1]) == "b"
    close(*ends)


def test_whoever_accepts_takes_every_server_and_whoever_dials_only_the_one(own: Authority) -> None:
    a, b, c = (peer_trust(own, server) for server in "abc")
    assert (a.settings.dials, a.dialling("b").dials) == (False, True)
    for dials in (a, c):
        close(*meet(b.settings, dials.dialling("b")))
    with pytest.raises(IdentityError, match="the peer is server b, not c"):
        meet(b.settings, a.dialling("c"))


@pytest.mark.parametrize("purpose", [Purpose.ROBOT, Purpose.SERVER])
def test_neither_a_robot_nor_a_server_as_robots_know_it_is_let_in(own: Authority, purpose: Purpose) -> None:
    stranger = Settings(own.context(purpose), Purpose.PEER, Ktls.AUTO, ("a",))
    with pytest.raises(PeerError, match=r"is not a peer's|unsupported_certificate|certificate purpose"):
        meet(peer_trust(own, "a").settings, stranger)


def test_nobody_of_another_ca_is_let_in(own: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    with pytest.raises(PeerError, match="certificate"):
        meet(peer_trust(own, "a").settings, peer_trust(other, "b").dialling("a"))


def test_we_are_not_what_a_robot_dials(own: Authority) -> None:
    robot = dataclasses.replace(settings(own, Purpose.ROBOT), server_names=("a",))
    with pytest.raises(PeerError):
        meet(peer_trust(own, "a").settings, robot)


def test_what_is_wrong_with_our_files_is_said_at_once(own: Authority) -> None:
    with pytest.raises(ConfigError, match="is the certificate of server b for its peers, and this is a"):
        PeerTrust(Files(own.ca, *own.peer("b")), "a", Ktls.AUTO)


def test_a_new_certificate_is_for_new_connections(own: Authority) -> None:
    a = peer_trust(own, "a")
    before = a.settings
    crt, _key = own.issue("peer-a", "peer:a", Purpose.PEER)
    a.load()
    assert a.settings.fingerprint != before.fingerprint
    assert a.dialling("b").fingerprint == a.settings.fingerprint
    assert a.dialling("b").context is a.settings.context
    end = meet(peer_trust(own, "b").settings, a.dialling("b"))
    assert end[0].certificate == load_certificates(crt, "it")[0]
    close(*end)


def test_a_broken_file_changes_nothing(own: Authority) -> None:
    a = peer_trust(own, "a")
    before, terms = a.settings, a.terms
    (own.folder / "peer-a.crt").write_text("broken")
    with pytest.raises(ConfigError, match=r"peer-a\.crt"):
        a.load()
    assert a.settings is before
    assert a.terms is terms


def test_what_expires_and_the_command_against_it(own: Authority, said: Said) -> None:
    crt, key = own.issue("peer-a", "peer:a", Purpose.PEER, days=(-99, 1))
    a = PeerTrust(Files(own.ca, crt, key), "a", Ktls.AUTO)
    Calendar().look(a.terms, now())
    (line,) = (text for _kind, text in said)
    assert line.startswith(f"certificate {crt} expires")
    assert line.endswith("make a new one with `shadow-ca peer a --renew`")
    assert len(a.terms) == 1, "the CA is the robots', and the server warns of its end"


def test_connections_of_the_previous_daemon_are_judged_anew(own: Authority, tmp_path: Path) -> None:
    a, b = peer_trust(own, "a"), peer_trust(own, "b")
    ends = meet(a.settings, b.dialling("a"))
    a.check_again(ends[0])
    revoked = PeerTrust(Files(own.ca, *own.peer("a")), "a", Ktls.AUTO, lambda link: f"not {link.suite}")
    with pytest.raises(Refused, match=r"refused \(revoked\): not ECDHE"):
        revoked.check_again(ends[0])
    other = peer_trust(Authority(tmp_path / "other"), "a")
    with pytest.raises(IdentityError, match="is not good any more"):
        other.check_again(ends[0])
    close(*ends)


@pytest.mark.parametrize("purpose", [Purpose.ROBOT, Purpose.SERVER])
def test_none_of_the_previous_daemon_goes_on_that_is_no_servers(own: Authority, purpose: Purpose) -> None:
    accepts, dials = settings(own, Purpose.SERVER), settings(own, Purpose.ROBOT)
    ends = meet(accepts, dials)
    link = ends[0] if purpose is Purpose.ROBOT else ends[1]
    with pytest.raises(IdentityError, match="is not a peer's"):
        peer_trust(own, "a").check_again(link)
    close(*ends)
