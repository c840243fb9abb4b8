"""What the API tells and does, on a server with robots and visitors."""

import asyncio
import datetime as dt
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import varlink

from shadow import __version__
from shadow.admin import methods
from shadow.admin.methods import Methods
from shadow.pki.certificates import load_certificates, validity
from shadow.server.directory import Alone
from shadow.server.overview import Overview, Remote
from shadow.transport import ktls
from tests.support import Authority, Daemon, Service, Tunnel, echo, make_list, serving, wait_for
from tests.support.call import INTERFACE, Call
from tests.support.peer import START, STARTED, WELCOME, Peer, client_context

KERNEL = ktls.missing() is None


@pytest.fixture
def server(tunnel: Tunnel) -> Daemon:
    return tunnel.start_server_with_api()


@pytest.fixture
def call(server: Daemon, tunnel: Tunnel) -> Iterator[Call]:
    assert server.process.poll() is None
    with Call(tunnel.ldir / INTERFACE) as made:
        yield made


@pytest.fixture
def service() -> Iterator[Service]:
    with serving(echo) as made:
        yield made


def start(tunnel: Tunnel, service: Service, robot: str, *more: str) -> Daemon:
    return tunnel.start_client(f"--lport={service.port}", "--lhost=127.0.0.1", *more, robot=robot)


def visit(tunnel: Tunnel, robot: str, data: bytes) -> socket.socket:
    sock = tunnel.visit(robot)
    sock.sendall(data)
    assert sock.recv(len(data), socket.MSG_WAITALL) == data
    return sock


def test_the_server_itself(tunnel: Tunnel, call: Call, service: Service) -> None:
    start(tunnel, service, "011")
    with visit(tunnel, "011", b"x"):
        told = call.get("GetStatus")
    assert (told["version"], told["robots"], told["streams"]) == (__version__, 1, 1)
    assert told["status"].startswith("1 robot, 1 stream, ")
    assert (told["protected"], told["revoked"]) == (0, 0)
    crt, _key = tunnel.authority.server()
    (own, ca) = told["terms"]
    until = validity(load_certificates(crt, "server")[0])[1]
    assert own == {"what": f"certificate {crt}", "until": until.isoformat(), "days": 29}
    assert ca["what"] == f"CA certificate 'Test CA' in {tunnel.authority.ca}"


def test_robots_in_order(tunnel: Tunnel, call: Call, service: Service) -> None:
    assert call.get("List") == {"robots": []}
    start(tunnel, service, "012", f"--service=web=127.0.0.1:{service.port}")
    start(tunnel, service, "011")

    def standing_by() -> list[dict[str, Any]] | None:
        robots: list[dict[str, Any]] = call.get("List")["robots"]
        return robots if all(robot["standbys"] == 2 for robot in robots) else None

    first, second = wait_for(standing_by, "two standbys of each")
    assert (first["name"], second["name"]) == ("011", "012")
    assert (first["services"], second["services"]) == ([""], ["", "web"])
    certificate = load_certificates(tunnel.authority.robot("011")[0], "robot")[0]
    assert first["serial"] == f"{certificate.serial_number:040x}"
    assert dt.datetime.fromisoformat(first["certificateEnds"]) == validity(certificate)[1]
    assert first["kernelTls"] is KERNEL
    assert first["suite"].startswith("ECDHE-ECDSA-")
    assert first["connected"] is True
    assert ":" in first["peer"]
    assert 0 <= first["seconds"] < 60
    assert (first["waiting"], first["streams"]) == (0, 0)


def test_without_a_fleet_there_is_nothing_of_one(tunnel: Tunnel, call: Call, service: Service) -> None:
    start(tunnel, service, "011")
    (robot,) = call.get("List", {"fleet": True})["robots"]
    assert "server" not in robot
    assert set(call.get("List", {"fleet": True})) == {"robots"}
    assert set(call.get("Describe", {"name": "011", "fleet": True})) == {"robot", "streams"}
    assert call.get("Servers") == {"servers": []}
    assert not {"server", "age"} & set(call.get("GetStatus"))


def test_one_robot_and_its_streams(tunnel: Tunnel, call: Call, service: Service) -> None:
    start(tunnel, service, "011")
    start(tunnel, service, "012")
    with visit(tunnel, "011", b"x" * 1000), visit(tunnel, "012", b"y"):
        told = call.get("Describe", {"name": "011"})
        assert (told["robot"]["name"], told["robot"]["streams"]) == ("011", 1)
        (stream,) = told["streams"]
        assert (stream["id"], stream["robot"], stream["service"]) == ("1", "011", "")
        assert (stream["uid"], stream["pid"]) == (os.getuid(), os.getpid())
        assert (stream["bytesToRobot"], stream["bytesFromRobot"]) == (1000, 1000)
        assert stream["kernelTls"] is KERNEL
        assert stream["protected"] is False  # nobody would keep it here
        both = call.get("ListStreams")["streams"]
        assert sorted(stream["robot"] for stream in both) == ["011", "012"]
        assert [stream["id"] for stream in call.get("ListStreams", {"robot": "012"})["streams"]] == ["2"]


def test_a_robot_that_has_gone_and_whose_stream_goes_on(tunnel: Tunnel, call: Call, service: Service) -> None:
    context = client_context(tunnel.authority, tunnel.authority.robot())
    with Peer(tunnel.port, context) as control:
        session = control.hello()[1]["session"]
        with Peer(tunnel.port, context) as data:
            assert data.hello(role="data", session=session)[0] == WELCOME
            with tunnel.visit() as visitor:
                assert data.receive()[0] == START
                data.send(STARTED)
                visitor.sendall(b"x")
                assert data.sock.recv(1) == b"x"
                control.sock.close()

                def gone() -> dict[str, Any] | None:
                    told: dict[str, Any] = call.get("Describe", {"name": "011"})
                    return None if told["robot"]["connected"] else told

                told = wait_for(gone, "the session's end")
                nothing = {"services": [], "standbys": 0, "waiting": 0}
                assert told["robot"] == {"name": "011", "connected": False, "streams": 1, **nothing}
                assert len(told["streams"]) == 1


def test_who_is_like_one_that_is_not_there_is_for_the_caller_to_find(
    tunnel: Tunnel, call: Call, service: Service
) -> None:
    """Among 20,000 the search takes a second, in which nothing else would be done."""
    start(tunnel, service, "011")
    for method, name in (("Describe", "name"), ("ListStreams", "robot"), ("Disconnect", "robot")):
        answer = call.ask(method, {name: "0111"})
        assert answer == {"error": f"{INTERFACE}.NoSuchRobot", "parameters": {"name": "0111"}}


def test_everything_that_happens(tunnel: Tunnel, call: Call, service: Service) -> None:
    assert call.ask("Watch", more=True) == {"continues": True, "parameters": {"ready": True}}
    client = start(tunnel, service, "011")
    visit(tunnel, "011", b"x").close()
    told: list[dict[str, Any]] = []
    while not told or told[-1]["event"] != "stream-ended":
        answer = call.hear()
        assert answer["continues"] is True
        told.append(answer["parameters"]["event"])
    assert [event["event"] for event in told] == ["robot-connected", "stream-started", "stream-ended"]
    assert told[0]["fields"]["ROBOT"] == "011"
    assert told[0]["priority"] == 6
    assert told[2]["message"].startswith("robot 011: stream 1 ended: 1 bytes to the robot, 1 bytes from it")
    assert told[2]["fields"]["BYTES_TO_ROBOT"] == "1"
    client.stop()
    assert call.hear()["parameters"]["event"]["event"] == "robot-disconnected"


def test_a_robot_is_disconnected_with_its_streams_and_comes_back(
    tunnel: Tunnel, server: Daemon, call: Call, service: Service
) -> None:
    client = start(tunnel, service, "011")
    start(tunnel, service, "012")
    with visit(tunnel, "011", b"x") as visitor, visit(tunnel, "012", b"y") as other:
        assert call.get("Disconnect", {"robot": "011"}) == {"ended": 2}
        assert visitor.recv(1) == b""
        other.sendall(b"z")
        assert other.recv(1) == b"z"
    who = f"uid {os.getuid()} has ended it"
    server.wait_for_log(f"robot 011 disconnected: {who}")
    server.wait_for_log(rf"robot 011: stream 1 cut off \({who}\)")
    client.wait_for_log(r"refused \(disconnected\): an operator has ended the session; next try in")
    client.wait_for_log("robot 011 connected", 2)
    assert "012 disconnected" not in server.log


def test_one_stream_of_two_is_ended(tunnel: Tunnel, call: Call, service: Service) -> None:
    start(tunnel, service, "011")
    with visit(tunnel, "011", b"x") as first, visit(tunnel, "011", b"y") as second:
        assert call.get("Disconnect", {"stream": "1"}) == {"ended": 1}
        assert first.recv(1) == b""
        second.sendall(b"z")
        assert second.recv(1) == b"z"
    assert call.get("Describe", {"name": "011"})["robot"]["connected"] is True


def test_reload(tmp_path: Path) -> None:
    own = Authority(tmp_path / "own")
    crl = make_list(own)
    with Tunnel(own, tmp_path) as tunnel:
        server = tunnel.start_server_with_api(f"--crl={crl}")
        with Call(tunnel.ldir / INTERFACE) as call:
            make_list(own, 1, 2, 3, number=2)
            assert call.get("Reload") == {}
            server.wait_for_log("reloaded: new connections use the new certificates")
            assert call.get("GetStatus")["revoked"] == 3
            crl.write_text("broken")
            answer = call.ask("Reload")
            assert answer["error"] == f"{INTERFACE}.ReloadFailed"
            assert answer["parameters"]["reason"].startswith(f"revocation list {crl}")
            server.wait_for_log("reload failed")
            assert call.get("GetStatus")["revoked"] == 3


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("Disconnect", {"robot": "011", "stream": None, "server": None, "fleet": None}),
        ("Disconnect", {"robot": "011", "stream": None, "server": "s2", "fleet": True}),
        ("Reload", {}),
        ("Drain", {"draining": True, "timeout": None, "server": None}),
        ("Drain", {"draining": True, "timeout": None, "server": "s2"}),
    ],
)
def test_steering_is_for_administrators(method: str, parameters: dict[str, Any]) -> None:
    made = Methods(cast("Any", SimpleNamespace(robots={"011": None})))
    with pytest.raises(varlink.VarlinkError) as caught:
        getattr(made, method)(**parameters, _request=SimpleNamespace(may_steer=False, uid=1000))
    assert caught.value.error() == "org.varlink.service.PermissionDenied"


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, [0]), (1, [1]), (100, [100]), (101, [100, 1]), (250, [100, 100, 50])]
)
def test_long_lists_come_in_batches(count: int, sizes: list[int]) -> None:
    replies = list(methods._in_batches("them", range(count), lambda one: {"n": one}, more=True))
    assert [len(reply["them"]) for reply in replies] == sizes
    assert [reply["_continues"] for reply in replies] == [True] * (len(sizes) - 1) + [False]
    assert [one["n"] for reply in replies for one in reply["them"]] == list(range(count))


def test_of_a_long_list_only_what_is_asked_for_is_looked_at() -> None:
    found = iter(range(10**6))
    described: list[int] = []

    def describe(number: int) -> dict[str, Any]:
        described.append(number)
        return {}

    replies = methods._in_batches("them", found, describe, more=True)
    assert next(replies)["_continues"]
    assert next(found) == 200  # two batches: whether there is another must be known
    assert described == list(range(100))


class Robots(dict[str, Any]):
    """Those of a server that is alone."""

    elsewhere: Any = Alone()


def test_a_robot_that_leaves_while_it_is_listed() -> None:
    robots = Robots(
        {
            f"{number:03}": SimpleNamespace(name=f"{number:03}", session=None, streams={}, is_here=True)
            for number in range(250)
        }
    )
    made = Methods(cast("Any", SimpleNamespace(robots=robots)))

    async def scenario() -> list[str]:
        replies = made.List(None, _more=True)
        names = [robot["name"] for robot in next(replies)["robots"]]
        robots.clear()
        return [*names, *(robot["name"] for reply in replies for robot in reply["robots"])]

    assert len(asyncio.run(scenario())) == 100  # the others had left


class Name(str):
    """Counts how often one is compared with another."""

    __slots__ = ()
    compared = 0

    def __lt__(self, other: str) -> bool:
        Name.compared += 1
        return str.__lt__(self, other)


def listed(reply: dict[str, Any]) -> list[str]:
    return [robot["name"] for robot in reply["robots"]]


def test_many_robots_are_in_order_and_not_sorted_at_once() -> None:
    names = [Name(f"{number * 7919 % 20_000:05}") for number in range(20_000)]
    robots = Robots(
        {name: SimpleNamespace(name=name, session=None, streams={}, is_here=True) for name in names}
    )
    made = Methods(cast("Any", SimpleNamespace(robots=robots)))

    async def scenario() -> list[str]:
        Name.compared = 0
        replies = made.List(None, _more=True)
        first = listed(next(replies))
        assert Name.compared < 5 * len(names), "to sort them takes three times as many"
        return [*first, *(name for reply in replies for name in listed(reply))]

    assert asyncio.run(scenario()) == sorted(names)


class Others(Overview):
    """Another server, with some robots."""

    def names(self) -> list[str]:
        return ["013", "012", "011"]

    def find(self, name: str) -> Remote:
        return Remote("b", live=True, services=("",), peer="", since=0.0, serial="")


def test_a_robot_that_goes_elsewhere_while_it_is_listed_is_listed_once() -> None:
    there: Any = SimpleNamespace(overview=Others())
    robots = Robots()
    robots.elsewhere = there
    for name in ("011", "012"):
        robots[name] = SimpleNamespace(name=name, session=None, streams={}, is_here=name == "011")
    made = Methods(cast("Any", SimpleNamespace(robots=robots)))

    async def scenario() -> list[str]:
        names = made._names(fleet=True)
        first = next(names)
        del robots["011"]
        return [first, *names]

    assert asyncio.run(scenario()) == ["011", "013", "012"]


def test_a_list_too_long_for_one_reply() -> None:
    with pytest.raises(varlink.VarlinkError) as caught:
        list(methods._in_batches("them", range(1001), lambda one: {"n": one}, more=False))
    assert caught.value.error() == "org.varlink.service.ExpectedMore"
    (reply,) = methods._in_batches("them", range(1000), lambda one: {"n": one}, more=False)
    assert len(reply["them"]) == 1000
