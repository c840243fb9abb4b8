"""The server's way to the signer: what robots are told when it is slow, hangs, dies, or says nonsense."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from shadow import events
from shadow.server import signer as signers
from shadow.server.signer import Signer
from shadow.transport.channel import Channel
from shadow.transport.link import KernelLink
from shadow.wire.codec import encode
from shadow.wire.conversation import CONTROL, Party
from shadow.wire.frames import Frame, Hello, Pong, Sign, Signed, Unsigned, Welcome
from tests.support import Authority, tcp_pair
from tests.support.frame_end import FrameEnd
from tests.support.log import Said

Handler = Callable[[FrameEnd], Awaitable[None]]


@dataclass
class Scene:
    """A robot's control channel, and a signer that a test plays."""

    signer: Signer
    channel: Channel
    robot: FrameEnd
    certificate: bytes

    def ask(self, certificate: bytes | None = None) -> None:
        request = Sign(b"request", self.certificate if certificate is None else certificate, b"proof")
        self.signer.ask("011", self.channel, request)


@contextlib.asynccontextmanager
async def scene(authority: Authority, path: Path | None) -> AsyncIterator[Scene]:
    certificate = x509.load_pem_x509_certificate(authority.robot("011")[0].read_bytes())
    near, far = tcp_pair()
    for sock in (near, far):
        sock.setblocking(False)
    link = KernelLink(near, "ECDHE-ECDSA-AES128-GCM-SHA256", [certificate])
    channel = Channel(link, Party.SERVER, lambda _frame: None, lambda _error: None)
    channel.conversation.received(Hello(1, CONTROL, "011"))
    channel.conversation.sent(Welcome(1, "an id", 20.0))
    signer = Signer(path)
    try:
        yield Scene(signer, channel, FrameEnd(far), certificate.public_bytes(Encoding.DER))
    finally:
        await signer.close()
        channel.abort()
        far.close()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def playing(path: Path, handler: Handler) -> AsyncIterator[None]:
    """A signer: ``handler`` answers each who connects."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        sock = writer.get_extra_info("socket")
        end = socket.socket(fileno=sock.dup().detach())
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        try:
            await handler(FrameEnd(end))
        finally:
            end.close()
            writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()


def answers(authority: Authority, path: Path, handler: Handler | None, *, patience: float = 5.0) -> Frame:
    """What the robot hears."""

    async def run() -> Frame:
        async with contextlib.AsyncExitStack() as stack:
            if handler is not None:
                await stack.enter_async_context(playing(path, handler))
            it = await stack.enter_async_context(scene(authority, path))
            it.ask()
            return await it.robot.hear()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signers, "_PATIENCE", patience)
        return asyncio.run(run())


def saying(*frames: Frame) -> Handler:
    async def handler(end: FrameEnd) -> None:
        await end.hear()
        await end.say(*frames)

    return handler


def test_a_request_reaches_the_signer_as_it_is_and_the_answer_the_robot(
    authority: Authority, tmp_path: Path, said: Said
) -> None:
    certificate = authority.robot("011")[0]
    der = x509.load_pem_x509_certificate(certificate.read_bytes()).public_bytes(Encoding.DER)
    heard: list[Frame] = []

    async def handler(end: FrameEnd) -> None:
        heard.append(await end.hear())
        await end.say(Signed(der))

    assert answers(authority, tmp_path / "s", handler) == Signed(der)
    assert heard == [Sign(b"request", der, b"proof")]
    assert [event for event, _text in said] == [events.Renewed]
    assert "robot 011: new certificate" in said[0][1]


def test_no_is_handed_on_with_its_reason(authority: Authority, tmp_path: Path, said: Said) -> None:
    no = Unsigned("early", "not before\nMonday")
    assert answers(authority, tmp_path / "s", saying(no)) == no
    assert said == [(events.RenewalFailed, "robot 011: certificate not renewed ('early'): not before?Monday")]


def test_what_is_no_certificate_is_logged(authority: Authority, tmp_path: Path, said: Said) -> None:
    assert answers(authority, tmp_path / "s", saying(Signed(b"nonsense"))) == Signed(b"nonsense")
    assert said == [(events.RenewalFailed, "robot 011: what the signer sent is no certificate")]


async def _hangs_up(end: FrameEnd) -> None:
    await end.hear()


async def _dies_half_way(end: FrameEnd) -> None:
    await end.hear()
    await asyncio.get_running_loop().sock_sendall(end.sock, encode(Signed(b"x" * 100))[:50])


async def _hangs(end: FrameEnd) -> None:
    await end.hear()
    await asyncio.sleep(60)


async def _talks_nonsense(end: FrameEnd) -> None:
    await end.hear()
    await asyncio.get_running_loop().sock_sendall(end.sock, b"HTTP/1.0 400 Bad Request\r\n\r\n")


@pytest.mark.parametrize(
    ("handler", "code", "text"),
    [
        (None, "no-signer", "the signer cannot be reached: No such file or directory"),
        (_hangs_up, "no-signer", "the signer failed: it hung up without an answer"),
        (_dies_half_way, "no-signer", "the signer failed: it hung up without an answer"),
        (_talks_nonsense, "no-signer", "the signer failed: unknown frame type 72"),
        (saying(Pong(1)), "no-signer", "the signer failed: it answered with Pong"),
        (_hangs, "timeout", "no answer from the signer within 0.2 s"),
    ],
)
def test_a_signer_that_fails(
    authority: Authority, tmp_path: Path, handler: Handler | None, code: str, text: str
) -> None:
    patience = 0.2 if code == "timeout" else 5.0
    assert answers(authority, tmp_path / "s", handler, patience=patience) == Unsigned(code, text)


def test_a_server_without_a_signer(authority: Authority) -> None:
    async def run() -> None:
        async with scene(authority, None) as it:
            assert not it.signer.there
            it.ask()
            assert await it.robot.hear() == Unsigned("no-signer", "the server knows no signer (--signer)")

    asyncio.run(run())


def test_a_certificate_that_is_not_the_connections_own(authority: Authority, tmp_path: Path) -> None:
    async def run() -> None:
        async with playing(tmp_path / "s", saying(Signed(b""))), scene(authority, tmp_path / "s") as it:
            it.ask(b"another")
            assert await it.robot.hear() == Unsigned(
                "bad-request", "the certificate is not the one of this connection"
            )

    asyncio.run(run())


def test_one_request_of_a_robot_at_a_time_and_not_too_often(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()

    async def handler(end: FrameEnd) -> None:
        await end.hear()
        await go.wait()
        await end.say(Unsigned("early"))

    async def run() -> None:
        async with playing(tmp_path / "s", handler), scene(authority, tmp_path / "s") as it:
            it.ask()
            it.ask()
            busy = Unsigned("busy", "the request before this one has not, or only just been answered")
            assert await it.robot.hear() == busy
            go.set()
            assert await it.robot.hear() == Unsigned("early")
            it.ask()
            assert await it.robot.hear() == busy
            monkeypatch.setattr(it.signer, "_rested", {})
            it.ask()
            assert await it.robot.hear() == Unsigned("early")

    asyncio.run(run())


def test_one_request_of_a_robot_over_however_many_channels(authority: Authority, tmp_path: Path) -> None:
    """A name that connects again and again must not keep the signer's machine busy."""
    asked: list[None] = []
    go = asyncio.Event()

    async def handler(end: FrameEnd) -> None:
        asked.append(None)
        await end.hear()
        await go.wait()
        await end.say(Unsigned("early"))

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(playing(tmp_path / "s", handler))
            first, *others = [
                await stack.enter_async_context(scene(authority, tmp_path / "s")) for _ in range(3)
            ]
            first.ask()
            first.channel.close()
            for other in others:
                other.signer = first.signer
                other.ask()
                answer = await other.robot.hear()
                assert isinstance(answer, Unsigned)
                assert answer.code == "busy"
            go.set()
            while first.signer._asking:
                await asyncio.sleep(0.01)

    asyncio.run(run())
    assert len(asked) == 1


def test_only_those_that_have_asked_just_now_are_remembered(authority: Authority) -> None:
    async def run() -> None:
        async with scene(authority, None) as it:
            for number in range(100):
                it.signer._let_rest(f"{number:03}", float(number))
            it.signer._let_rest("099", 99.5)
            assert list(it.signer._rested.items()) == [("098", 100.0), ("099", 101.5)]

    asyncio.run(run())


def test_few_are_asked_for_at_once(authority: Authority, tmp_path: Path) -> None:
    """A whole fleet that is due costs the signer's machine a few processes at a time."""
    present, most = 0, 0

    async def handler(end: FrameEnd) -> None:
        nonlocal present, most
        present += 1
        most = max(most, present)
        await end.hear()
        await asyncio.sleep(0.01)
        present -= 1
        await end.say(Unsigned("early"))

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(playing(tmp_path / "s", handler))
            scenes = [await stack.enter_async_context(scene(authority, tmp_path / "s")) for _ in range(12)]
            for other in scenes:
                other.signer = scenes[0].signer
            for number, other in enumerate(scenes):
                request = Sign(b"request", other.certificate, b"proof")
                other.signer.ask(f"{number:03}", other.channel, request)
            for other in scenes:
                assert await other.robot.hear() == Unsigned("early")

    asyncio.run(run())
    assert most == signers._AT_ONCE


def test_a_robot_that_leaves_meanwhile(authority: Authority, tmp_path: Path, said: Said) -> None:
    async def run() -> None:
        async with playing(tmp_path / "s", saying(Unsigned("early"))), scene(authority, tmp_path / "s") as it:
            it.ask()
            it.channel.abort()
            async with asyncio.timeout(5):
                while not said:
                    await asyncio.sleep(0.01)

    asyncio.run(run())
