"""Settings of a server that is one of a fleet."""

from pathlib import Path

import pytest

from shadow.daemon.config import parse_server
from shadow.daemon.membership import Membership, parse_engine
from shadow.errors import ConfigError, UsageError
from shadow.net.address import Endpoint
from shadow.pki.certificates import Files

NEEDED = ["--lport=2222", "--ldir=.", "--ca=ca", "--crt=crt", "--key=key"]
PEER = "--peer=s1.example:2223"
FILES = ["--peer-crt=pcrt", "--peer-key=pkey", "--engine-ca=eca", "--engine-crt=ecrt", "--engine-key=ekey"]
ENGINE = "--engine=https://a:2379,https://[::1]:2379/"


def membership(*words: str, **environment: str) -> Membership | None:
    return parse_server([*NEEDED, *words], environment).membership


def test_all_of_it() -> None:
    words = ["--fleet=robots", "--server-id=s1.example", PEER, ENGINE, *FILES]
    found = membership(*words, "--engine-login=login", "--state=state")
    assert found == Membership(
        fleet="robots",
        server="s1.example",
        peer=Endpoint("s1.example", 2223),
        peer_crt=Path("pcrt"),
        peer_key=Path("pkey"),
        engine=(Endpoint("a", 2379), Endpoint("::1", 2379)),
        files=Files(Path("eca"), Path("ecrt"), Path("ekey")),
        login=Path("login"),
        state=Path("state"),
    )


def test_the_environment_does_as_well() -> None:
    words = ["--fleet=robots", "--server-id=s1.example", ENGINE, *FILES[2:]]
    files = {"SHADOW_PEER_CRT": "pcrt", "SHADOW_PEER_KEY": "pkey"}
    assert membership(*words, SHADOW_PEER="s1.example:2223", **files) == membership(*words, PEER, *FILES[:2])


def test_rebalancing_is_on_unless_somebody_says_no() -> None:
    words = ["--fleet=robots", "--server-id=s1.example", PEER, ENGINE, *FILES]
    for found, wanted in (
        (membership(*words), True),
        (membership(*words, "--rebalance=no"), False),
        (membership(*words, SHADOW_REBALANCE="no"), False),
        (membership(*words, "--rebalance=yes", SHADOW_REBALANCE="no"), True),
    ):
        assert found is not None
        assert found.rebalance is wanted


def test_alone_its_files_mean_nothing() -> None:
    """The unit names them for everybody."""
    assert membership(*FILES, "--engine-login=login", "--state=state") is None


@pytest.mark.parametrize("word", ["--server-id=a", PEER, ENGINE])
def test_half_a_membership_is_a_mistake(word: str) -> None:
    with pytest.raises(UsageError, match=f"{word.partition('=')[0]} without --fleet"):
        membership(word)


def test_all_that_is_missing_is_said_at_once() -> None:
    missing = "--server-id, --peer, --engine, --peer-crt, --peer-key, --engine-ca, --engine-crt, --engine-key"
    with pytest.raises(UsageError, match=f"--fleet needs {missing} as well"):
        membership("--fleet=f")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("http://a:2379", "not https://HOST:PORT"),
        ("a:2379", "not https://HOST:PORT"),
        ("https://a", "not HOST:PORT"),
        ("https://a:1,", "not https://HOST:PORT"),
        ("https://a:1,https://a:1/", "twice"),
        (",".join(f"https://a:{number}" for number in range(1, 18)), "17 members"),
    ],
)
def test_members_that_are_none(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_engine(text)


@pytest.mark.parametrize("where", ["s1.example", "0.0.0.0:2223", "[::]:2223", "[fe80::1%eth0]:2223", "a/b:1"])
def test_where_no_other_server_can_dial(where: str) -> None:
    with pytest.raises(UsageError, match="--peer"):
        membership(f"--peer={where}")
    with pytest.raises(ConfigError, match="SHADOW_PEER in the environment"):
        membership(SHADOW_PEER=where)
