"""The robot's local services: what a visitor and the log get when one cannot be reached."""

import asyncio
import errno
import os
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from bench.processes import free_port
from shadow.client.services import Services
from shadow.client.streams import Streams
from shadow.net import address
from shadow.net.address import Endpoint, Target
from shadow.transport.channel import Channel
from shadow.transport.link import KernelLink
from shadow.wire.conversation import Party, State
from shadow.wire.frames import Failed, Start
from tests.support import DEADLINE, Tunnel, echo, exchange, serving, tcp_pair
from tests.support.frame_end import FrameEnd
from tests.support.log import Said
from tests.support.peer import FAILED, START, STARTED, WELCOME, Peer, server_context


def test_a_refused_service(tunnel: Tunnel) -> None:
    server = tunnel.start_server()
    client = tunnel.start_client(f"--lport={free_port()}", "--lhost=127.0.0.1")
    with tunnel.visit() as visitor:
        visitor.sendall(b"anybody?")
        with pytest.raises(ConnectionResetError):  # its bytes were never read, and it is told so
            visitor.recv(1)
    client.wait_for_log(r"visitor not connected: cannot connect to 127\.0\.0\.1:\d+: Connection refused")
    server.wait_for_log("the robot could not connect it .'refused': 'cannot connect to 127")


def test_an_unresolvable_service(tunnel: Tunnel) -> None:
    server = tunnel.start_server()
    tunnel.start_client("--service=web=no-such-host.invalid:80", "--lport=9")
    with tunnel.visit("web@011") as visitor:
        assert visitor.recv(1) == b""
    server.wait_for_log("the robot could not connect it .'unreachable': 'cannot resolve no-such-host")


@pytest.mark.long
def test_a_service_that_does_not_answer(tunnel: Tunnel) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        stuffing = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
            stuffing.append(sock)
        server = tunnel.start_server()
        tunnel.start_client(f"--lport={full.getsockname()[1]}", "--lhost=127.0.0.1")
        with tunnel.visit() as visitor:
            assert visitor.recv(1) == b""
        server.wait_for_log("the robot could not connect it .'timeout': ")
        for sock in stuffing:
            sock.close()


def test_a_service_that_comes_back_is_served_again(tunnel: Tunnel) -> None:
    with serving(echo) as service:
        port = service.port
    tunnel.start_server()
    tunnel.start_client(f"--lport={port}", "--lhost=127.0.0.1")
    with tunnel.visit() as visitor:
        assert visitor.recv(1) == b""
    with socket.create_server(("127.0.0.1", port)) as listener, tunnel.visit() as visitor:
        connection, _address = listener.accept()
        with connection:
            visitor.sendall(b"x")
            assert connection.recv(1) == b"x"


def test_a_service_that_is_not_offered(tunnel: Tunnel) -> None:
    """A server that asks for more than was offered is told so; ours never does."""
    context = server_context(tunnel.authority, tunnel.authority.server())
    with socket.create_server(("127.0.0.1", tunnel.port)) as listener:
        client = tunnel.daemon(tunnel.client_arguments("--lport=9", "--standby=1"))
        answers = []
        for _ in range(2):  # the control channel, then the data channel
            raw, _address = listener.accept()
            peer = Peer.__new__(Peer)
            peer.sock = context.wrap_socket(raw, server_side=True)
            _kind, hello = peer.receive()
            peer.send(WELCOME, version=1, session="s", keepalive=30)
            answers.append((hello["role"], peer))
        data = dict(answers)["data"]
        data.send(START, service="secret", stream="1")
        kind, answer = data.receive()
        assert (kind, answer["code"]) == (FAILED, "no-such-service")
        client.wait_for_log("visitor not connected: service 'secret' is not offered")
        for _role, peer in answers:
            peer.sock.close()
    assert STARTED != FAILED


def test_services_of_every_kind_at_once(tunnel: Tunnel) -> None:
    with serving(echo) as one, serving(echo, "::1") as two:
        tunnel.start_server()
        tunnel.start_client(
            f"--service=four={one.endpoint}", f"--service=six={two.endpoint}", f"--lport={one.port}",
            "--lhost=localhost",
        )  # fmt: skip
        for name in ("four@011", "six@011", "011"):
            with tunnel.visit(name) as visitor:
                assert exchange(visitor, name.encode()) == name.encode()


def no_streams() -> Streams:
    durable: Any = None
    return Streams("011", durable)


def test_stopping_leaves_whom_it_was_connecting_to_the_server() -> None:
    """The server finds the channel broken, and offers the visitor another."""

    async def body() -> None:
        services = Services("011", {"": Endpoint("192.0.2.1", 9)}, no_streams())
        near, far = tcp_pair()
        far.settimeout(DEADLINE)
        near.setblocking(False)
        channel = Channel(KernelLink(near, "a suite", []), Party.ROBOT, print, print)
        outcomes: list[bool] = []
        assert repr(services) == "<Services default; 0 visitors being connected>"
        services.connect(channel, Start("", "1"), outcomes.append)
        await asyncio.sleep(0)
        assert repr(services) == "<Services default; 1 visitor being connected>"
        services.stop()
        while not outcomes:
            await asyncio.sleep(0)
        assert outcomes == [False]
        assert not channel.live
        with pytest.raises(ConnectionResetError):
            far.recv(1)
        far.close()

    asyncio.run(body())


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EMFILE, "limit"), (errno.ENFILE, "limit"), (errno.ENETUNREACH, "unreachable")],
)
def test_the_server_is_told_what_is_the_matter(
    monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    async def connect(_target: Target) -> socket.socket:
        raise OSError(number, os.strerror(number))

    async def body() -> None:
        services = Services("011", {"": Endpoint("192.0.2.1", 9)}, no_streams())
        near, far = tcp_pair()
        near.setblocking(False)
        far.setblocking(False)
        channel = Channel(KernelLink(near, "a suite", []), Party.ROBOT, print, print)
        channel.conversation.state = State.STARTING
        outcomes: list[bool] = []
        services.connect(channel, Start("", "1"), outcomes.append)
        answer = await FrameEnd(far).hear()
        assert isinstance(answer, Failed)
        assert answer.code == code
        assert outcomes == [False]
        far.close()

    monkeypatch.setattr(address, "_connect", connect)
    asyncio.run(body())


def test_how_much_is_logged_is_not_for_the_server_to_decide(said: Said) -> None:
    async def body() -> None:
        services = Services("011", {}, no_streams())
        outcomes: list[bool] = []
        for number in range(200):
            near, far = tcp_pair()
            near.setblocking(False)
            channel = Channel(KernelLink(near, "a suite", []), Party.ROBOT, print, print)
            channel.conversation.state = State.STARTING
            services.connect(channel, Start("secret", str(number)), outcomes.append)
            far.close()
        while len(outcomes) < 200:
            await asyncio.sleep(0)
        assert not any(outcomes)

    asyncio.run(body())
    assert 30 <= len(said) < 40


def test_a_bug_is_heard_of_and_counts_as_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        services = Services("011", {}, no_streams())
        monkeypatch.setattr(services, "_fail", lambda *_: 1 / 0)
        bugs: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, facts: bugs.append(facts["exception"]))
        aborted: list[bool] = []
        channel: Any = SimpleNamespace(abort=lambda: aborted.append(True))
        outcomes: list[bool] = []
        services.connect(channel, Start("secret", "1"), outcomes.append)
        while not bugs:
            await asyncio.sleep(0)
        assert outcomes == [False]
        assert aborted, "the server need not wait until its patience is over"
        assert isinstance(bugs[0], ZeroDivisionError)

    asyncio.run(body())
