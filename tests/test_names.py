"""Names of robots, services, servers and fleets: harmless as file names, whatever they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow.errors import ConfigError
from shadow.names import (
    PEER,
    check_fleet_name,
    check_robot_name,
    check_server_name,
    check_service_name,
    full_name,
    parse_full_name,
    socket_name,
)


@pytest.mark.parametrize("name", ["011", "a", "A.b-c_d", "x" * 64, "0..1"])
def test_good_robot_names(name: str) -> None:
    assert check_robot_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\0b",
        "-x",
        "_x",
        ".hidden",
        "x" * 65,
        "x" * 200,
        "a b",
        "a@b",
        "ä",
        "a\n",
    ],
)
def test_bad_robot_names(name: str) -> None:
    with pytest.raises(ConfigError, match="robot name") as caught:
        check_robot_name(name)
    assert len(str(caught.value)) < 300
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a@b", "x" * 33, "web\n"])
def test_bad_service_names(name: str) -> None:
    with pytest.raises(ConfigError, match="service name"):
        check_service_name(name)


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,58}", fullmatch=True))
def test_no_robot_has_the_name_of_a_server_among_its_peers(server: str) -> None:
    name = f"{PEER}{check_server_name(server)}"
    assert len(name) <= 64, "X.520's upper bound of a common name"
    with pytest.raises(ConfigError, match="robot name"):
        check_robot_name(name)


@given(st.text(), st.text())
def test_what_is_accepted_makes_a_plain_file_name(robot: str, service: str) -> None:
    try:
        name = socket_name(check_robot_name(robot), check_service_name(service))
    except ConfigError:
        return
    assert "/" not in name
    assert not name.startswith(".")
    assert name.split("@") == [service, f"{robot}.sock"]


def test_no_two_pairs_share_a_file() -> None:
    assert socket_name("011") == "011.sock"
    assert socket_name("011", "web") == "web@011.sock"


@pytest.mark.parametrize(("robot", "service"), [("011", ""), ("011", "web"), ("r" * 64, "s" * 32)])
def test_a_word_for_both(robot: str, service: str) -> None:
    assert socket_name(robot, service) == f"{full_name(robot, service)}.sock"
    assert parse_full_name(full_name(robot, service)) == (robot, service)


@given(st.text("a0@./-\n\0 ", max_size=8))
def test_what_is_taken_for_both_is_such_a_word(text: str) -> None:
    try:
        robot, service = parse_full_name(text)
    except ConfigError:
        return
    assert full_name(check_robot_name(robot), service) == text
    assert service == "" or check_service_name(service)


def test_names_of_servers_and_fleets() -> None:
    assert check_server_name("s" * 59) == "s" * 59
    assert check_fleet_name("main") == "main"
    for bad in ("", "a/b", "a:b", "-a", "a\n", "s" * 60):
        with pytest.raises(ConfigError, match="server id"):
            check_server_name(bad)
    with pytest.raises(ConfigError, match=r"fleet name .* 1 to 32"):
        check_fleet_name("f" * 33)
