"""How sessions of a robot begin; what a server may answer is in test_client.py."""

import asyncio
from types import SimpleNamespace
from typing import Any

from shadow.client.approach import Arrival, Call
from shadow.net.address import Target
from shadow.wire.frames import Welcome
from tests.support import Authority
from tests.support.robot_session import CONFIG, Scene, play

WELCOME = Welcome(1, "an id", 20.0, renews=True)


class Approach:
    """Leads to a server that welcomes us."""

    def __init__(self, scene: Scene) -> None:
        self.calls: list[Call] = []
        self.preferred: list[Target] = []
        self._scene = scene

    def prefer(self, target: Target) -> None:
        self.preferred.append(target)

    async def call(self, call: Call, known: Target | None = None) -> Arrival:
        self.calls.append(call)
        channel, self._scene.control = self._scene.channel(call.hello.role)
        return Arrival(known or Target(2, ("198.51.100.1", 4242)), channel, WELCOME, 0.0)


def test_there_is_no_session_before_it_is_welcomed(authority: Authority) -> None:
    async def body(scene: Scene) -> None:
        opener = scene.opener()
        approach: Any = Approach(scene)
        opener._approach = approach
        settings: Any = SimpleNamespace(fingerprint="c0ffee")
        session = await opener.open(settings, 7.0)
        (call,) = approach.calls
        assert (call.hello.role, call.hello.robot, call.hello.services) == ("control", "011", ("",))
        assert (call.settings, call.interval, call.reach) == (settings, CONFIG.connect_timeout, 7.0)
        assert call.boot is opener.boot
        agreed = session.agreed
        assert (agreed.id, agreed.interval, agreed.renews) == ("an id", 20.0, True)
        assert str(agreed.target) == "198.51.100.1:4242"
        assert approach.preferred == [agreed.target]
        # Its data channels go to the very same address, and name it.
        await asyncio.sleep(0)
        data = approach.calls[1]
        assert (data.hello.role, data.hello.session, data.interval) == ("data", "an id", 20.0)
        assert data.boot is None
        # They shake hands as a reload says.
        others: Any = SimpleNamespace(fingerprint="decaf")
        session.use(others)
        session.standbys.dial(1)
        await asyncio.sleep(0)
        assert approach.calls[2].settings is others
        assert session.certificate == "c0ffee"
        session.close()

    play(authority, body)
