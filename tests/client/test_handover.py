"""What a robot's client leaves when it is restarted as planned, and how the next one takes it up.

How a session begins, lives and ends is in test_session.py and test_client.py.
"""

import asyncio
import contextlib
import json
import math
import os
import socket
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes

from shadow import events
from shadow.client import handover, opening
from shadow.client.attempts import Boot
from shadow.client.client import Client
from shadow.daemon.config import ClientConfig
from shadow.errors import ConfigError, IdentityError
from shadow.net.address import Endpoint
from shadow.pki.certificates import Purpose, load_certificates
from shadow.relay.durable import DurableStreams
from shadow.relay.pool import Relay
from shadow.systemd.bundle import Letter
from shadow.systemd.mailbox import Mailbox
from shadow.transport.link import Link
from shadow.wire.frames import Ping, Start, Welcome
from tests.support import DEADLINE, Authority
from tests.support.log import Said
from tests.support.robot_session import CONFIG, Scene, play


def test_the_server_notices_nothing(authority: Authority, said: Said) -> None:
    async def body(scene: Scene) -> None:
        before = scene.begin()
        said.clear()
        assert scene.leave(before)
        assert scene.store.kept
        assert scene.control.is_silent
        after = scene.take_up_all()
        assert isinstance(await scene.control.hear(), Ping), "the last one is nobody knows how old"
        assert scene.control.is_silent
        assert scene.standby.is_silent
        assert after.agreed == before.agreed
        assert said == [(events.SessionsResumed, "robot 011 remains connected to 198.51.100.1:4242")]
        assert not scene.store.kept
        # And everything works: a visitor, a keepalive.
        await scene.standby.say(Start("", "a1"))
        async with asyncio.timeout(10):
            while not scene.services.started:
                await asyncio.sleep(0.005)
        after._keep_alive()
        assert isinstance(await scene.control.hear(), Ping)

    play(authority, body)


LETTERS = [
    {
        "version": 1,
        "kind": "session",
        "robot": "011",
        "server": "tunnel.example:4242",
        "services": [""],
        "certificate": "c0ffee",
        "session": "an id",
        "interval": 20.0,
        "since": "2026-01-01 00:00:00",
        "renews": False,
        "target": [2, ["198.51.100.1", 4242]],
        "boot": "b007",
        "attempt": 3,
        "suite": "ECDHE-ECDSA-AES128-GCM-SHA256",
        "chain": ["base64 of DER"],
        "role": "control",
        "state": "open",
    },
    {
        "version": 1,
        "kind": "standby",
        "suite": "ECDHE-ECDSA-AES128-GCM-SHA256",
        "chain": ["base64 of DER"],
        "role": "data",
        "state": "standby",
    },
]
"""What the first release writes and reads, and every other one has to: one of them comes after, or before."""


def test_the_letters_are_the_same_for_ever(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shadow.client.session.time.strftime", lambda _format: "2026-01-01 00:00:00")

    async def body(scene: Scene) -> None:
        scene.leave(scene.begin())
        with socket.socket(fileno=os.dup(scene.store.kept["p0"])) as box:
            written = [json.loads(box.recv(65536)) for _ in LETTERS]
        for facts in written:
            assert len(facts["chain"]) == 1
            facts["chain"] = ["base64 of DER"]
        assert [list(facts.items()) for facts in written] == [list(facts.items()) for facts in LETTERS]

    play(authority, body)


@pytest.mark.parametrize("lacks", [set(), {"boot", "attempt"}])
def test_the_letters_of_another_release_are_understood(authority: Authority, lacks: set[str]) -> None:
    async def body(scene: Scene) -> None:
        before = scene.begin()
        chain = before.channel.record["chain"]
        with contextlib.closing(Mailbox(scene.store)) as mailbox:  # type: ignore[arg-type]
            for facts, end in zip(LETTERS, [before.channel, *before.standbys.take()], strict=True):
                kept = {name: fact for name, fact in facts.items() if name not in lacks}
                mailbox.put(Letter({**kept, "chain": chain, "new": "word"}, [end.link.sock.fileno()]))
                end.leave()
        before.close()
        after = scene.take_up_all()
        assert after.agreed == replace(before.agreed, since="2026-01-01 00:00:00")
        assert isinstance(await scene.control.hear(), Ping)
        assert scene.standby.is_silent
        assert len(after.standbys.take()) == 1
        assert (scene.boot == Boot("b007", 3)) is not bool(lacks), "another boot, if it is not known"

    play(authority, body)


def test_where_data_channels_go_is_not_forgotten(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: list[tuple[dict[Endpoint, str], bool]] = []

    def approach(servers: dict[Endpoint, str], _patience: float, *, told: bool = False) -> Any:
        ways.append((servers, told))
        return SimpleNamespace(prefer=lambda _target: None)

    monkeypatch.setattr(opening, "Approach", approach)
    advertised = Endpoint("192.0.2.7", 2222)

    async def body(scene: Scene) -> None:
        before = scene.begin(Welcome(1, "an id", 20.0, dial="192.0.2.7:2222"))
        scene.leave(before)
        after = scene.take_up_all()
        assert after.agreed == before.agreed
        assert after.agreed.dial == advertised
        dialled = ({Endpoint("tunnel.example", 4242): ""}, False)
        assert ways == [dialled, ({advertised: ""}, True)] * 2

    play(authority, body)


@pytest.mark.parametrize("dial", ["", "nowhere", "0.0.0.0:1", 2222, None])
def test_a_letter_that_sends_data_channels_nowhere(authority: Authority, said: Said, dial: object) -> None:
    async def body(scene: Scene) -> None:
        session = scene.begin()
        facts = {**LETTERS[0], "chain": session.channel.record["chain"], "dial": dial}
        with contextlib.closing(Mailbox(scene.store)) as mailbox:  # type: ignore[arg-type]
            mailbox.put(Letter(facts, [session.channel.link.sock.fileno()]))
        session.channel.leave()
        session.close()
        said.clear()
        assert scene.take_up() is None
        await scene.control.hears_the_end()
        assert said[0][0] is events.SessionGivenUp

    play(authority, body)


SEVERAL = replace(CONFIG, rhost=("a.example", "b.example"))


@pytest.mark.parametrize(
    ("config", "goes_on"),
    [
        (SEVERAL, True),
        (replace(CONFIG, rhost=("b.example", "a.example")), True),  # they are equal
        (replace(CONFIG, rhost=("a.example", "c.example")), False),
        (replace(SEVERAL, server_name="tunnel.example"), False),
    ],
)
def test_which_of_several_servers_it_is_is_not_forgotten(
    authority: Authority, said: Said, config: ClientConfig, *, goes_on: bool
) -> None:
    """The certificates on its data channels have to be for the same name."""

    async def body(scene: Scene) -> None:
        before = scene.begin(name="b.example", config=SEVERAL)
        assert scene.leave(before, SEVERAL)
        said.clear()
        after = scene.take_up(config)
        if not goes_on or after is None:
            assert (after, goes_on) == (None, False)
            text = "robot 011 connects again: the settings have changed"
            assert said == [(events.SessionGivenUp, text)]
            return
        assert after.agreed == before.agreed
        assert after.agreed.target.name == "b.example"
        assert (after._door._approach._best, after._door._approach._servers) == (
            after.agreed.target,
            config.servers,
        )

    play(authority, body)


def test_a_letter_about_somebody_else_s_server(authority: Authority, said: Said) -> None:
    async def body(scene: Scene) -> None:
        before = scene.begin(name="evil.example", config=SEVERAL)
        assert scene.leave(before, SEVERAL)
        said.clear()
        assert scene.take_up(SEVERAL) is None
        await scene.control.hears_the_end()
        assert [event for event, _text in said] == [events.SessionGivenUp]

    play(authority, body)


def test_a_start_in_the_gap_is_heard(authority: Authority) -> None:
    async def body(scene: Scene) -> None:
        scene.leave(scene.begin())
        await scene.standby.say(Start("", "a1"))
        scene.take_up()
        async with asyncio.timeout(10):
            while not scene.services.started:
                await asyncio.sleep(0.005)
        assert scene.services.started[0][1].stream == "a1"

    play(authority, body)


def test_a_server_that_left_in_the_gap_is_noticed(authority: Authority) -> None:
    async def body(scene: Scene) -> None:
        scene.leave(scene.begin())
        scene.control.sock.close()
        session = scene.take_up_all()
        async with asyncio.timeout(10):
            await session.lost

    play(authority, body)


@pytest.mark.parametrize(
    "change",
    [
        {"service": [("web", Endpoint("127.0.0.1", 80))]},
        {"rhost": ("other.example",)},
        {"robot": "012"},
    ],
)
def test_other_settings_want_another_session(
    authority: Authority, said: Said, change: dict[str, Any]
) -> None:
    async def body(scene: Scene) -> None:
        scene.leave(scene.begin())
        said.clear()
        assert scene.take_up(replace(CONFIG, **change)) is None
        await scene.control.hears_the_end()
        await scene.standby.hears_the_end()
        text = f"robot {change.get('robot', '011')} connects again: the settings have changed"
        assert said == [(events.SessionGivenUp, text)]

    play(authority, body)


def test_a_new_certificate_wants_another_session(authority: Authority) -> None:
    """The server is to see it, and not to go by the old one."""

    async def body(scene: Scene) -> None:
        scene.leave(scene.begin())
        scene.fingerprint = "decaf"
        assert scene.take_up() is None
        await scene.control.hears_the_end()

    play(authority, body)


def test_a_server_that_is_not_trusted_today(authority: Authority, said: Said) -> None:
    def check(_link: Link) -> None:
        raise IdentityError("not good any more")

    async def body(scene: Scene) -> None:
        scene.leave(scene.begin())
        said.clear()
        assert scene.take_up(check=check) is None
        await scene.control.hears_the_end()
        assert said[0][0] is events.SessionGivenUp
        assert said[0][1].endswith("not good any more")

    play(authority, body)


def test_what_is_lost_already_is_not_left(authority: Authority) -> None:
    async def body(scene: Scene) -> None:
        session = scene.begin()
        scene.control.sock.close()
        async with asyncio.timeout(10):
            await session.lost
        assert not scene.leave(session)
        assert not scene.store.kept

    play(authority, body)


def test_a_part_that_this_version_does_not_know_is_no_standby(
    authority: Authority, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(scene: Scene) -> None:
        with monkeypatch.context() as other:
            other.setattr(handover, "_STANDBY", "horse")
            scene.leave(scene.begin())
        scene.take_up_all()
        await scene.standby.hears_the_end()
        assert "this version does not know what it is" in "".join(text for _event, text in said)

    play(authority, body)


@pytest.mark.parametrize("descriptors", [0, 1, 2])
def test_letters_that_make_no_sense(authority: Authority, said: Said, descriptors: int) -> None:
    async def body(scene: Scene) -> None:
        ours, theirs = socket.socketpair()
        with contextlib.closing(Mailbox(scene.store)) as mailbox, ours:  # type: ignore[arg-type]
            mailbox.put(Letter({"kind": "session"}, [ours.fileno()] * descriptors))
        assert scene.take_up() is None
        assert [event for event, _text in said] == [events.SessionGivenUp]
        theirs.settimeout(10)
        assert theirs.recv(1) == b""
        theirs.close()

    play(authority, body)


@pytest.mark.parametrize("left", [True, False])
def test_a_robot_whose_certificate_expired_lately_keeps_its_session(
    authority: Authority, *, left: bool
) -> None:
    """Over it, and over no other, it can have its certificate renewed; without it, it says what is wrong."""
    pair = authority.issue("late", "011", Purpose.ROBOT, days=(-4, -0.5))
    config = replace(CONFIG, server_name="localhost", ca=authority.ca, crt=pair[0], key=pair[1])

    async def body(scene: Scene) -> None:
        scene.fingerprint = load_certificates(pair[0], "robot")[0].fingerprint(hashes.SHA256()).hex()
        if left:
            assert scene.leave(scene.begin())
            scene.store.start_again()
        relay = Relay()
        scene.store.limit = 0  # for streams
        try:
            client = Client(config, DurableStreams(relay, scene.store))  # type: ignore[arg-type]
            await client.start()
            assert client._session is not None
            assert isinstance(await scene.control.hear(), Ping)
            await client.stop()
        finally:
            relay.stop()

    with contextlib.nullcontext() if left else pytest.raises(ConfigError, match="expired"):
        play(authority, body)


def test_a_client_that_is_stopped_leaves_what_it_has_been_left(authority: Authority, said: Said) -> None:
    """Its one task ends first, and must not take the session with it."""
    crt, key = authority.robot()
    config = replace(CONFIG, server_name="localhost", ca=authority.ca, crt=crt, key=key)

    async def live(scene: Scene) -> None:
        """One client after another, in the very same session."""
        scene.store.start_again()
        relay = Relay(1)
        try:
            client = Client(config, DurableStreams(relay, scene.store))  # type: ignore[arg-type]
            await client.start()
            assert isinstance(await scene.control.hear(), Ping)
            async with asyncio.timeout(DEADLINE):
                while client._attempts.reach(1) == math.inf:  # until its task has the session
                    await asyncio.sleep(0.001)
            assert client.status.startswith("Connected to 198.51.100.1:4242 since ")
            await client.stop()
        finally:
            relay.stop()

    async def body(scene: Scene) -> None:
        scene.fingerprint = load_certificates(crt, "robot")[0].fingerprint(hashes.SHA256()).hex()
        assert scene.leave(scene.begin())
        for _ in range(2):
            said.clear()
            await live(scene)
            assert (events.Stopping, "robot 011: the session is left for the next start") in said
            assert scene.control.is_silent
            assert scene.standby.is_silent
        assert scene.take_up() is not None

    play(authority, body)
