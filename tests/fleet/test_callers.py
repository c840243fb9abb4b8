"""Which servers may ask this one, over real TLS; who may not is told why, and the log says it."""

import socket
from pathlib import Path

import pytest

from shadow import events
from shadow.errors import Refused
from shadow.fleet import callers
from shadow.transport.handshake import handshake
from shadow.wire.codec import encode
from shadow.wire.conversation import CONTROL, DATA, PEER
from shadow.wire.frames import Hello, Here, Who
from tests.support import Authority
from tests.support.answering import peer_trust
from tests.support.asked import Asked, play
from tests.support.fleet import until
from tests.support.log import Said


def hello(server: str = "a", fleet: str = "robots", version: int = 1) -> Hello:
    return Hello(version, PEER, server, fleet=fleet)


def test_a_server_of_the_fleet_is_welcome(authority: Authority, tmp_path: Path, said: Said) -> None:
    async def body(asked: Asked) -> None:
        channel = await asked.dial()
        assert channel.conversation.role == PEER
        await asked.dial("c")
        assert list(asked.answering.describe()) == [
            "server a has 1 channels to us that carry no stream",
            "server c has 1 channels to us that carry no stream",
        ]
        assert await asked.ask(channel, Who("011")) == Here()
        assert said == []

    play(authority, tmp_path, body)


@pytest.mark.parametrize(
    ("says", "code", "text"),
    [
        (hello("c"), "name-mismatch", "the certificate is for server a"),
        (hello(version=2), "version", "protocol version 2 is not spoken here"),
        (hello(fleet="cars\n"), "fleet", "this is a server of fleet robots, not of cars?"),
        (hello(fleet="x" * 512), "fleet", f"this is a server of fleet robots, not of {'x' * 64}"),
    ],
    ids=["name", "version", "fleet", "long"],
)
def test_another_is_refused(
    authority: Authority, tmp_path: Path, said: Said, says: Hello, code: str, text: str
) -> None:
    async def body(asked: Asked) -> None:
        with pytest.raises(Refused) as caught:
            await asked.dial("a", says)
        assert (caught.value.code, caught.value.text) == (code, text)
        ((kind, line),) = said
        assert kind is events.PeerRefused
        assert line.startswith(f"server {says.robot!r} from 127.0.0.1:")
        assert line.endswith(f" refused ({code}): {text}")
        assert list(asked.answering.describe()) == []

    play(authority, tmp_path, body)


def test_one_whose_certificate_was_revoked(authority: Authority, tmp_path: Path, said: Said) -> None:
    async def body(asked: Asked) -> None:
        asked.revoked.add("a")
        with pytest.raises(Refused, match=r"refused \(revoked\): a was revoked"):
            await asked.dial()
        assert [kind for kind, _text in said] == [events.PeerRefused]
        await asked.dial("c")

    play(authority, tmp_path, body)


def test_each_has_so_many_channels_at_most(
    authority: Authority, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no server takes them from another."""
    assert callers._CHANNELS_MAX == 256
    monkeypatch.setattr(callers, "_CHANNELS_MAX", 2)

    async def body(asked: Asked) -> None:
        first = await asked.dial()
        await asked.dial()
        with pytest.raises(Refused, match=r"refused \(limit\): server a has 2 channels here already"):
            await asked.dial()
        assert [kind for kind, _text in said] == [events.PeerRefused]
        await asked.dial("c")
        first.close()
        await until(lambda: "server a has 1" in "".join(asked.answering.describe()), "its end")
        await asked.dial()

    play(authority, tmp_path, body)


@pytest.mark.parametrize("role", [CONTROL, DATA])
def test_nobody_is_a_robot_on_this_port(authority: Authority, tmp_path: Path, said: Said, role: str) -> None:
    async def body(asked: Asked) -> None:
        sock = socket.create_connection((asked.endpoint.host, asked.endpoint.port))
        sock.setblocking(False)
        with sock:
            link = await handshake(sock, peer_trust(authority, "a").dialling("b"))
            link.write(encode(Hello(1, role, "a", ("",), fleet="robots")))
            await until(lambda: said, "the line about it")
        assert f"Hello with the unknown role '{role}'" in said[0][1]
        assert not asked.robots
        assert list(asked.answering.describe()) == []

    play(authority, tmp_path, body)
