"""Certificates of servers among their peers: whose are taken for that, and what is loaded as our own."""

from pathlib import Path

import pytest
from cryptography import x509

from shadow.errors import ConfigError, IdentityError
from shadow.pki.certificates import Files, Purpose, load_certificates
from shadow.pki.peers import load_peer_credentials, peer_of
from tests.support import Authority, now


def shown(own: Authority, name: str, purpose: Purpose | None = Purpose.PEER, *hosts: str) -> x509.Certificate:
    crt, _key = own.issue("shown", name, purpose, hosts=hosts)
    return load_certificates(crt, "it")[0]


def test_a_peer(own: Authority) -> None:
    assert peer_of(shown(own, "peer:a")) == "a"
    assert peer_of(shown(own, "peer:" + "s" * 59)) == "s" * 59


@pytest.mark.parametrize(
    ("name", "purpose", "hosts", "why"),
    [
        ("a", Purpose.PEER, (), "^the certificate of 'a' is not a peer's"),
        ("user:a", Purpose.PEER, (), "of 'user:a' is not a peer's"),
        ("Peer:a", Purpose.PEER, (), "of 'Peer:a' is not a peer's"),
        ("peer:a", Purpose.ROBOT, (), r"not a peer's \(common name peer:SERVER, serverAuth and clientAuth\)"),
        ("peer:a", Purpose.SERVER, ("a",), "is not a peer's"),
        ("peer:a", None, (), "is not a peer's"),
        ("", Purpose.PEER, (), "has no common names"),
        ("peer:", Purpose.PEER, (), "^the certificate of 'peer:': server id '' is not allowed"),
        ("peer:../a", Purpose.PEER, (), "server id '../a' is not allowed"),
        ("peer:a\n", Purpose.PEER, (), r"server id 'a\\n' is not allowed"),
        ("peer:peer:a", Purpose.PEER, (), "server id 'peer:a' is not allowed"),
        ("peer:a", Purpose.PEER, ("a.example",), "is for hosts, too .'a.example'.: robots could"),
        ("peer:a", Purpose.PEER, ("::1",), "is for hosts, too .'::1'"),
    ],
)
def test_nobody_else_is_one(
    own: Authority, name: str, purpose: Purpose | None, hosts: tuple[str, ...], why: str
) -> None:
    with pytest.raises(IdentityError, match=why) as caught:
        peer_of(shown(own, name, purpose, *hosts))
    assert "\n" not in str(caught.value)


def files(own: Authority, name: str = "peer:a", purpose: Purpose = Purpose.PEER, *hosts: str) -> Files:
    return Files(own.ca, *own.issue("own", name, purpose, hosts=hosts))


def test_our_own(own: Authority) -> None:
    assert peer_of(load_peer_credentials(files(own), "a", now()).chain[0]) == "a"


@pytest.mark.parametrize(
    ("name", "purpose", "hosts", "why"),
    [
        (
            "peer:b", Purpose.PEER, (),
            "own.crt is the certificate of server b for its peers, and this is a: `shadow-ca peer a`",
        ),
        ("a", Purpose.SERVER, ("a",), "own.crt is a server's certificate; a peer needs one made by"),
        ("a", Purpose.ROBOT, (), "own.crt is a robot's certificate; a peer needs"),
        ("peer:a/b", Purpose.PEER, (), "server id 'a/b' is not allowed: .*; make a new one with"),
        (
            "peer:a", Purpose.PEER, ("a.example",),
            "own.crt: the certificate of 'peer:a' is for hosts, too .'a.example'.: robots could",
        ),
    ],
)  # fmt: skip
def test_what_is_not_our_own(
    own: Authority, name: str, purpose: Purpose, hosts: tuple[str, ...], why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        load_peer_credentials(files(own, name, purpose, *hosts), "a", now())


def test_missing_files_are_named_at_once(tmp_path: Path) -> None:
    there = Files(tmp_path / "ca.crt", tmp_path / "peer.crt", tmp_path / "peer.key")
    with pytest.raises(ConfigError, match=r"ca\.crt, certificate .*peer\.crt and private key .*`shadow-ca"):
        load_peer_credentials(there, "a", now())
