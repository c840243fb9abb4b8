"""Settings: command line, environment, defaults, and what is said about wrong ones."""

from pathlib import Path

import pytest

from shadow.address import Endpoint
from shadow.config import parse_client, parse_server, variable_name
from shadow.errors import ConfigError, ShadowError, UsageError
from shadow.tls import Ktls

SERVER = ["--lport=2222", "--ldir=.", "--ca=ca.crt", "--crt=server.crt", "--key=server.key"]
CLIENT = [
    "--rport=2222", "--rhost=::1", "--ca=ca.crt", "--crt=client.crt", "--key=client.key", "--robot=011",
    "--lhost=::1", "--lport=22",
]  # fmt: skip


def test_the_known_command_lines() -> None:
    server = parse_server(["-6", *SERVER], {})
    assert (server.ipv4, server.ipv6, server.lport, server.ldir) == (False, True, 2222, Path())
    assert server.files.key == Path("server.key")
    assert (server.keepalive, server.ktls) == (30.0, Ktls.AUTO)
    client = parse_client(CLIENT, {})
    assert client.server == Endpoint("::1", 2222)
    assert client.server_name == "::1"
    assert client.services == {"": Endpoint("::1", 22)}
    assert not client.once


@pytest.mark.parametrize(
    ("flags", "families"),
    [([], (True, True)), (["-4"], (True, False)), (["-6"], (False, True)), (["-4", "-6"], (True, True))],
)
def test_families(flags: list[str], families: tuple[bool, bool]) -> None:
    config = parse_server([*flags, *SERVER], {})
    assert (config.ipv4, config.ipv6) == families


def test_everything_can_come_from_the_environment() -> None:
    environment = {
        "SHADOW_RHOST": "tunnel.example.com",
        "SHADOW_RPORT": "443",
        "SHADOW_CA": "/ca",
        "SHADOW_CRT": "/crt",
        "SHADOW_KEY": "/key",
        "SHADOW_ROBOT": "007",
        "SHADOW_LPORT": "22",
        "SHADOW_LHOST": "10.0.0.1",
        "SHADOW_SERVICE": "web=127.0.0.1:80 cam=[::1]:8554",
        "SHADOW_SERVER_NAME": "shadow.internal",
        "SHADOW_STANDBY": "5",
        "SHADOW_ONCE": "yes",
        "SHADOW_KTLS": "require",
        "SHADOW_CONNECT_TIMEOUT": "7.5",
    }
    config = parse_client([], environment)
    assert config.server == Endpoint("tunnel.example.com", 443)
    assert config.services == {
        "": Endpoint("10.0.0.1", 22),
        "web": Endpoint("127.0.0.1", 80),
        "cam": Endpoint("::1", 8554),
    }
    assert (config.standby, config.once, config.ktls) == (5, True, Ktls.REQUIRE)
    assert (config.server_name, config.connect_timeout) == ("shadow.internal", 7.5)
    assert parse_server(SERVER, {"SHADOW_IPV6": "1"}).ipv4 is False


def test_the_command_line_wins() -> None:
    config = parse_client([*CLIENT, "--service=a=b:1"], {"SHADOW_LPORT": "23", "SHADOW_SERVICE": "x=y:2"})
    assert config.services == {"": Endpoint("::1", 22), "a": Endpoint("b", 1)}


def test_an_empty_variable_counts_as_unset() -> None:
    assert parse_client(CLIENT, {"SHADOW_STANDBY": ""}).standby == 2


def test_variable_names() -> None:
    assert variable_name("--handshake-timeout") == "SHADOW_HANDSHAKE_TIMEOUT"


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--lport=0"], "port '0' is not a number from 1 to 65535"),
        (["--lport=ssh"], "port 'ssh'"),
        (["--rport=65536"], "65536"),
        (["--robot=../x"], r"robot name '\.\./x' is not allowed"),
        (["--robot=" + "x" * 200], "robot name"),
        (["--robot=a\0b"], r"a\\x00b"),
        (["--rhost="], "neither a name nor an address"),
        (["--rhost=a..b"], "neither a name nor an address"),
        (["--server-name=münchen.example"], "ASCII form"),
        (["--rhost=a b"], "neither a name nor an address"),
        (["--service=web"], "'web' is not NAME=HOST:PORT"),
        (["--service=a/b=c:1"], "service name"),
        (["--service=web=::1:80"], "goes in brackets"),
        (["--service=web=a:1", "--service=web=b:2"], "given twice"),
        (["--standby=65"], "not a number from 0 to 64"),
        (["--connect-timeout=nan"], "not a number of seconds"),
        (["--ktls=maybe"], "not one of auto, require, off"),
        (["--colour"], "unrecognized arguments: --colour"),
        (["--onc"], "unrecognized arguments: --onc"),
    ],
)
def test_a_bad_word_is_a_usage_error_that_names_it(more: list[str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        parse_client([*CLIENT, *more], {})
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("missing", ["--rport", "--rhost", "--ca", "--crt", "--key", "--robot"])
def test_a_missing_option_is_named_with_its_variable(missing: str) -> None:
    rest = [word for word in CLIENT if not word.startswith(missing + "=")]
    with pytest.raises(UsageError, match=f"{missing} is missing .or {variable_name(missing)}"):
        parse_client(rest, {})


def test_nothing_to_offer() -> None:
    with pytest.raises(UsageError, match="nothing to offer: give --lport"):
        parse_client([word for word in CLIENT if not word.startswith("--lport")], {})


@pytest.mark.parametrize(
    ("name", "value"),
    [("SHADOW_LPORT", "x"), ("SHADOW_ONCE", "perhaps"), ("SHADOW_SERVICE", "a=b"), ("SHADOW_KTLS", "on")],
)
def test_a_bad_variable_is_a_configuration_error_that_names_it(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} in the environment: ") as caught:
        parse_client(CLIENT, {name: value})
    assert caught.value.exit_status == 78


def test_help_tells_of_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    for parse in (parse_server, parse_client):
        with pytest.raises(SystemExit) as left:
            parse(["--help"], {})
        assert left.value.code == 0
        assert "SHADOW_SOME_THING" in capsys.readouterr().out


def test_statuses_are_one_tree() -> None:
    assert issubclass(UsageError, ShadowError)
