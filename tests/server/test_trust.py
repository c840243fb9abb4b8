"""What the server trusts and shows, read again and again; robots that are cut off are in test_revoked.py."""

import socket
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from shadow import events
from shadow.daemon.config import parse_server
from shadow.errors import ConfigError, Refused
from shadow.pki.certificates import Purpose, load_certificates
from shadow.pki.crl import RevocationList, load_revocations
from shadow.server.trust import Trust
from shadow.transport.link import KernelLink, Link
from tests.support import Authority, make_list
from tests.support.log import Said


def trust(own: Authority, *words: str) -> Trust:
    crt, key = own.server()
    files = f"--ca={own.ca}", f"--crt={crt}", f"--key={key}"
    return Trust(parse_server([*files, f"--ldir={own.folder}", "--lport=1", *words], {}))


def link_of(own: Authority) -> Link:
    crt, _key = own.robot()
    return KernelLink(socket.socket(), "suite", load_certificates(crt, "robot"))


def test_a_broken_file_changes_nothing(own: Authority) -> None:
    """Neither what is shown, nor who is revoked, nor what is told of either."""
    made = trust(own, f"--crl={make_list(own)}")
    before = made.settings, made.terms, made.revoked, made.who_is_revoked
    make_list(own, 1, 2, number=2).write_text("broken")
    own.issue("server", "server", Purpose.SERVER)
    with pytest.raises(ConfigError):
        made.load()
    assert (made.settings, made.terms, made.revoked, made.who_is_revoked) == before


def test_whole_files_change_all_of_it(own: Authority) -> None:
    made = trust(own, f"--crl={make_list(own)}")
    before, terms = made.settings, made.terms
    own.issue("server", "server", Purpose.SERVER, days=(-1, 10))
    make_list(own, 1, 2, number=2)
    made.load()
    assert made.settings.fingerprint != before.fingerprint
    assert made.terms != terms
    assert (made.revoked, made.who_is_revoked.partition(" by")[0]) == (2, "2 certificates revoked")


def test_a_list_that_has_vanished_stays_in_use(own: Authority, said: Said) -> None:
    path = make_list(own, 1)
    made = trust(own, f"--crl={path}")
    path.unlink()
    made.load()
    assert made.revoked == 1
    assert said == [(events.ListTooOld, f"revocation list {path} has vanished; the one in use stays in use")]


def learnt(own: Authority, number: int, *serials: int) -> RevocationList:
    """A list that comes from elsewhere."""
    made = make_list(own, *serials, number=number)
    (listed,) = load_revocations(made, [own.certificate]).lists
    made.unlink()
    return listed


def test_of_each_ca_the_newest_list_counts_wherever_it_comes_from(own: Authority) -> None:
    """A reload forgets none of them, and each of them is judged by what was there before."""
    path = make_list(own, 1, number=2)
    made = trust(own, f"--crl={path}")
    own_file = path.read_bytes()
    assert not made.learn(learnt(own, 1, 1, 2, 3))
    assert not made.learn(made.lists[0])
    assert made.who_is_revoked == f"1 certificate revoked by list 2 in {path}"
    assert made.learn(learnt(own, 4, 1, 2))
    assert not made.learn(learnt(own, 3))
    path.write_bytes(own_file)
    made.load()
    assert made.who_is_revoked == "2 certificates revoked by list 4 of the fleet"
    assert made.terms[-1].what == "revocation list 4 of the fleet"
    make_list(own, 1, 2, 3, number=5)
    made.load()
    assert made.who_is_revoked == f"3 certificates revoked by list 5 in {path}"
    assert made.terms[-1].what == f"revocation list {path}"


def test_an_older_file_is_no_mistake_where_the_others_have_a_newer_one(own: Authority, said: Said) -> None:
    path = make_list(own, 1, number=2)
    content = path.read_bytes()
    made = trust(own, f"--crl={path}")
    made.learn(learnt(own, 4))
    path.write_bytes(content)
    made.load()
    assert said == []
    path.write_bytes(make_list(own, number=1).read_bytes())
    made.load()
    assert [kind for kind, _ in said] == [events.ListTooOld], "but one that is older than before is"


def test_without_the_option_a_list_from_elsewhere_counts_all_the_same(own: Authority) -> None:
    made, link = trust(own), link_of(own)
    assert made.learn(learnt(own, 1, link.certificate.serial_number))
    made.load()
    assert made.revocation(link) is not None
    link.sock.close()
    assert made.who_is_revoked == "1 certificate revoked by list 1 of the fleet"


def test_two_cas_each_with_a_list_from_somewhere(own: Authority, tmp_path: Path) -> None:
    """Of a CA that is not trusted any more, nothing counts."""
    old = Authority(tmp_path / "old", "Old CA")
    both = tmp_path / "both.crt"
    both.write_bytes(own.ca.read_bytes() + old.ca.read_bytes())
    path = make_list(own, 1, number=2)
    made = trust(own, f"--crl={path}", f"--ca={both}")
    assert made.learn(learnt(old, 7, 5, 6))
    numbers = "list 2 of 'CN=Test CA' and 7 of 'CN=Old CA'"
    assert made.who_is_revoked == f"3 certificates revoked by {numbers} in {path} and of the fleet"
    both.write_bytes(own.ca.read_bytes())
    made.load()
    assert made.who_is_revoked == f"1 certificate revoked by list 2 in {path}"


def test_whole_lists_are_kept_only_where_they_are_passed_on(own: Authority) -> None:
    path = make_list(own, 1)
    assert trust(own, f"--crl={path}").lists[0].der == b""
    der = x509.load_pem_x509_crl(path.read_bytes()).public_bytes(Encoding.DER)
    assert trust(own, f"--crl={path}", "--fleet=f").lists[0].der == der


def test_what_is_left_of_the_daemon_before_is_judged_by_todays_list(own: Authority) -> None:
    made, link = trust(own, f"--crl={make_list(own)}"), link_of(own)
    assert made.revocation(link) is None
    made.check_again(link, renews=False)
    make_list(own, link.certificate.serial_number, number=2)
    made.load()
    why = made.revocation(link)
    assert why is not None
    with pytest.raises(Refused, match="revoked") as refused:
        made.check_again(link, renews=False)
    assert (refused.value.code, refused.value.text) == ("revoked", why)
    link.sock.close()


@pytest.mark.parametrize(
    ("words", "who"),
    [((), "nobody is revoked: no --crl"), (("--crl=none.crl",), "nobody is revoked: there is no none.crl")],
)
def test_without_a_list_nobody_is_revoked_and_the_log_says_so(
    own: Authority, words: tuple[str, ...], who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = trust(own, *words)
    assert (made.revoked, made.who_is_revoked) == (0, who)
