"""What the server trusts and shows, read again and again; robots that are cut off are in test_revoked.py."""

import socket
from pathlib import Path

import pytest

from shadow import events
from shadow.daemon.config import parse_server
from shadow.errors import ConfigError, Refused
from shadow.pki.certificates import Purpose, load_certificates
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
