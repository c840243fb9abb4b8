"""Settings: command line, environment, defaults, and what is said about wrong ones."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from shadow.daemon.config import parse_client, parse_server
from shadow.errors import ConfigError, ShadowError, UsageError
from shadow.net.address import Endpoint
from shadow.options import variable_name
from shadow.transport.context import Ktls

SERVER = ["--lport=2222", "--ldir=.", "--ca=ca.crt", "--crt=server.crt", "--key=server.key"]
CLIENT = [
    "--rport=2222", "--rhost=::1", "--ca=ca.crt", "--crt=client.crt", "--key=client.key", "--robot=011",
    "--lhost=::1", "--lport=22",
]  # fmt: skip


def test_the_known_command_lines() -> None:
    server = parse_server(["-6", *SERVER], {})
    assert (server.families, server.lport, server.ldir) == ((False, True), 2222, Path())
    assert server.files.key == Path("server.key")
    assert (server.keepalive, server.ktls) == (30.0, Ktls.AUTO)
    client = parse_client(CLIENT, {})
    assert client.servers == {Endpoint("::1", 2222): ""}
    assert client.references == ("::1",)
    assert client.services == {"": Endpoint("::1", 22)}
    assert not client.once


@pytest.mark.parametrize(
    ("flags", "families"),
    [([], (True, True)), (["-4"], (True, False)), (["-6"], (False, True)), (["-4", "-6"], (True, True))],
)
def test_families(flags: list[str], families: tuple[bool, bool]) -> None:
    config = parse_server([*flags, *SERVER], {})
    assert config.families == families


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
    assert config.servers == {Endpoint("tunnel.example.com", 443): ""}
    assert config.services == {
        "": Endpoint("10.0.0.1", 22),
        "web": Endpoint("127.0.0.1", 80),
        "cam": Endpoint("::1", 8554),
    }
    assert (config.standby, config.once, config.ktls) == (5, True, Ktls.REQUIRE)
    assert (config.references, config.connect_timeout) == (("shadow.internal",), 7.5)
    assert parse_server(SERVER, {"SHADOW_IPV6": "1"}).families == (False, True)


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
        ([f"--service=s{number}=a:1" for number in range(64)], "65 services, and a robot may have 64"),
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


def test_all_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parse_client(["--ca=ca.crt"], {"SHADOW_RPORT": "22"})
    assert str(caught.value) == (
        "--rhost, --robot, --crt, --key and --lport (or --service) are missing "
        "(or SHADOW_RHOST, SHADOW_ROBOT, SHADOW_CRT, SHADOW_KEY and SHADOW_LPORT in the environment)"
    )
    rest = [word for word in CLIENT if not word.startswith(("--rhost", "--lport"))]
    for words, environment in (
        ([*rest, "--service=a=b:1"], {}),
        (rest, {"SHADOW_SERVICE": "a=b:1"}),
        (rest, {"SHADOW_LPORT": "22"}),
    ):
        with pytest.raises(UsageError, match=r"^--rhost is missing"):
            parse_client(words, environment)


def test_the_servers_port_is_missing_like_all_else_unless_systemd_passes_a_socket() -> None:
    with pytest.raises(UsageError) as caught:
        parse_server([], {"SHADOW_CA": "ca.crt", "SHADOW_CRT": "crt"})
    assert str(caught.value) == (
        "--ldir, --key and --lport are missing "
        "(or SHADOW_LDIR, SHADOW_KEY and SHADOW_LPORT in the environment)"
    )
    with pytest.raises(UsageError, match=r"^--lport is missing \(or SHADOW_LPORT in the environment\)$"):
        parse_server(SERVER[1:], {})
    passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "shadow-server"}
    assert parse_server(SERVER[1:], passed).lport is None
    with pytest.raises(UsageError, match=r"^--ldir is missing"):
        parse_server(SERVER[2:], passed)
    with pytest.raises(UsageError, match=r"^SHADOW_LPORT is missing in /etc/shadow-tunnel/server.env"):
        parse_server(SERVER[1:], {**passed, "LISTEN_FDNAMES": "cannot-start", "NOTIFY_SOCKET": "/x"})


def test_under_systemd_the_file_is_named() -> None:
    environment = {"NOTIFY_SOCKET": "/run/systemd/notify", "SHADOW_CA": "/ca", "SHADOW_LPORT": "22"}
    rest = ["--crt=c", "--key=k", "--robot=011"]
    with pytest.raises(UsageError) as caught:
        parse_client(rest, environment)
    assert str(caught.value) == (
        "SHADOW_RHOST and SHADOW_RPORT are missing in /etc/shadow-tunnel/client.env "
        "(or --rhost and --rport on the command line)"
    )
    with pytest.raises(UsageError, match=r"SHADOW_LDIR is missing in /etc/shadow-tunnel/server.env"):
        parse_server(rest[:2], environment)


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("--rhost=tunnel.example.com:443", "write --rhost=tunnel.example.com --rport=443"),
        ("--rhost=192.0.2.7:443", "write --rhost=192.0.2.7 --rport=443"),
        ("--rhost=[2001:db8::1]:443", "write --rhost=2001:db8::1 --rport=443"),
        ("--lhost=localhost:22", "write --lhost=localhost --lport=22"),
    ],
)
def test_a_host_that_holds_the_port_as_well(word: str, advice: str) -> None:
    with pytest.raises(UsageError, match=re.escape(advice)):
        parse_client([*CLIENT, word], {})
    name, _, value = word.partition("=")
    rest = [one for one in CLIENT if not one.startswith(name)]
    with pytest.raises(ConfigError, match=f"{variable_name(name)} in the environment: .*{re.escape(advice)}"):
        parse_client(rest, {variable_name(name): value})


@pytest.mark.parametrize("host", ["2001:db8::1", "[2001:db8::1]", "::1", "fe80::1%eth0", "1:2:3:4:5:6:7:8"])
def test_an_address_holds_no_port(host: str) -> None:
    ((server, name),) = parse_client([*CLIENT, f"--rhost={host}"], {}).servers.items()
    assert (server.port, name) == (2222, "")


def test_several_servers() -> None:
    config = parse_client([*CLIENT, "--rhost=a.example, 192.0.2.7,[2001:db8::1]"], {})
    assert config.references == ("a.example", "192.0.2.7", "2001:db8::1")
    assert config.servers == {
        Endpoint("a.example", 2222): "a.example",
        Endpoint("192.0.2.7", 2222): "192.0.2.7",
        Endpoint("2001:db8::1", 2222): "2001:db8::1",
    }
    assert config.whither == "a.example:2222 or 192.0.2.7:2222 or [2001:db8::1]:2222"
    # One name for all is nothing to tell them apart by.
    config = parse_client([*CLIENT, "--rhost=a.example.,b.example", "--server-name=tunnel.example"], {})
    assert config.references == ("tunnel.example",)
    assert config.servers == {Endpoint("a.example.", 2222): "", Endpoint("b.example", 2222): ""}
    assert parse_client([*CLIENT, f"--rhost={','.join('abcdefgh')}"], {}).rhost == tuple("abcdefgh")


@pytest.mark.parametrize(
    ("hosts", "complaint"),
    [
        ("a,,b", "'a,,b': there is no host before or after a comma"),
        (",a", "there is no host before or after a comma"),
        ("a,", "there is no host before or after a comma"),
        (",", "there is no host before or after a comma"),
        ("a,b.example,A", "'a,b.example,A' has A twice"),
        ("a.,a", "has a twice"),
        ("::1,0:0::1", "has 0:0::1 twice"),
        (",".join("abcdefghi"), "9 hosts, and there may be 8"),
        ("a,b c", "host 'b c' is neither a name nor an address"),
        ("a:443,b:443", "'a:443,b:443' includes the port: write --rhost=a,b --rport=443"),
        ("a,[2001:db8::1]:443", "write --rhost=a,2001:db8::1 --rport=443"),
        ("a:443,b:2222", "includes ports, but all hosts have the same one: that of --rport"),
        ("a,münchen.example", "ASCII form"),
        ("a,*.example", r"'*.example' is no name that the server's certificate could have"),
    ],
)
def test_several_servers_that_are_none(hosts: str, complaint: str) -> None:
    with pytest.raises(ShadowError, match=re.escape(complaint)) as caught:
        parse_client([*CLIENT, f"--rhost={hosts}"], {})
    assert caught.value.exit_status in {2, 78}
    rest = [word for word in CLIENT if not word.startswith("--rhost")]
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        parse_client(rest, {"SHADOW_RHOST": hosts})


def test_where_robots_are_sent() -> None:
    assert parse_server(SERVER, {}).advertise is None
    assert parse_server([*SERVER, "--advertise=a.example:443"], {}).advertise == Endpoint("a.example", 443)
    environment = {"SHADOW_ADVERTISE": "[2001:db8::1]:2222"}
    assert parse_server(SERVER, environment).advertise == Endpoint("2001:db8::1", 2222)
    with pytest.raises(UsageError, match=r"argument --advertise: 'a\.example' is not HOST:PORT"):
        parse_server([*SERVER, "--advertise=a.example"], {})
    with pytest.raises(ConfigError, match=r"SHADOW_ADVERTISE in the environment: .*stands for all addresses"):
        parse_server(SERVER, {"SHADOW_ADVERTISE": "0.0.0.0:2222"})


def test_nothing_to_offer() -> None:
    rest = [word for word in CLIENT if not word.startswith("--lport")]
    with pytest.raises(
        UsageError, match=r"^--lport \(or --service\) is missing \(or SHADOW_LPORT in the env"
    ):
        parse_client(rest, {})
    with pytest.raises(UsageError, match=r"^SHADOW_LPORT \(or SHADOW_SERVICE\) is missing in .*client.env"):
        parse_client(rest, {"NOTIFY_SOCKET": "/run/systemd/notify"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("SHADOW_LPORT", "x"), ("SHADOW_ONCE", "perhaps"), ("SHADOW_SERVICE", "a=b"), ("SHADOW_KTLS", "on")],
)
def test_a_bad_variable_is_a_configuration_error_that_names_it(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} in the environment: ") as caught:
        parse_client(CLIENT, {name: value})
    assert caught.value.exit_status == 78


def test_networks_of_load_balancers() -> None:
    words = ["--lport=1", "--ldir=.", "--ca=a", "--crt=b", "--key=c"]
    assert parse_server(words, {}).proxy_protocol == ()
    for config in (
        parse_server([*words, "--proxy-protocol=10.0.0.0/8,::1"], {}),
        parse_server(words, {"SHADOW_PROXY_PROTOCOL": "10.0.0.0/8,::1"}),
    ):
        assert list(map(str, config.proxy_protocol)) == ["10.0.0.0/8", "::1/128"]
    with pytest.raises(UsageError, match="argument --proxy-protocol: 'yes' is not a network such as"):
        parse_server([*words, "--proxy-protocol=yes"], {})
    with pytest.raises(ConfigError, match="SHADOW_PROXY_PROTOCOL in the environment: '10/8' is not"):
        parse_server(words, {"SHADOW_PROXY_PROTOCOL": "10/8"})


def test_help_tells_of_the_environment(capsys: pytest.CaptureFixture[str]) -> None:
    for parse in (parse_server, parse_client):
        with pytest.raises(SystemExit) as left:
            parse(["--help"], {})
        assert left.value.code == 0
        assert "SHADOW_SOME_THING" in capsys.readouterr().out


def test_help_shows_the_defaults_and_not_what_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_server(["--help"], {"SHADOW_KEEPALIVE": "4321", "SHADOW_CRL": "list.crl"})
    text = capsys.readouterr().out
    assert "is disconnected (default: 30.0)" in " ".join(text.split())
    assert "4321" not in text
    assert "list.crl" not in text


@pytest.mark.parametrize(("parse", "count"), [(parse_server, 4), (parse_client, 6)])
def test_help_tells_what_is_needed_and_shows_an_example(
    parse: Callable[..., object], count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"], {})
    text = capsys.readouterr().out
    usage = re.search(r"usage: \S+ (.*?) (\{|\[OPTION)", text, re.DOTALL)
    assert usage is not None
    assert "[" not in usage[1]
    assert len(re.findall(r"--\w+=[A-Z]+", usage[1])) == count
    assert not re.search(r"--(\S+) \1\b", text, re.IGNORECASE)  # no value that is called like its option
    assert "--ktls auto|require|off" in text
    assert "Exit status: 0 " in text
    assert "74 output error" in text
    _program, *words = text.partition("example:\n")[2].split()
    parse(words, {})


def test_statuses_are_one_tree() -> None:
    assert issubclass(UsageError, ShadowError)
